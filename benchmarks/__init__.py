"""Measurements of the library. Each module is a command: `python -m benchmarks.NAME --help`."""

import sys

if sys.argv[0] == "-m":  # one of them is being started, not imported
    from unetlib.command import begin

    begin()
