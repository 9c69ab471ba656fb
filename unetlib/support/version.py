"""The version of the library, which prepared folders, runs and evaluations keep."""

__version__ = "0.4.0"
