"""The version of the library, which prepared folders, runs and evaluations store."""

__version__ = "0.5.0"
