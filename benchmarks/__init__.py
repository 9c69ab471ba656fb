"""Measurements of the library. Each module is a command: `python -m benchmarks.NAME --help`."""

import sys

if sys.argv[0] == "-m":  # one of them is being started, not imported
    import unetlib.__main__  # noqa: F401 (before all else: it heeds a Ctrl-C)
    from unetlib.support.command import begin

    begin()
