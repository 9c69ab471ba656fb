"""Studies of quality: what each part of a recipe gains on real patients, and our metrics beside those of others.

Each study is a command: `python -m studies.NAME --help`. `results.csv` holds what every run has reached.
"""

import benchmarks  # noqa: F401 (before all else: it heeds a Ctrl-C)
