"""Studies of quality: what each part of a recipe gains on real patients, and our metrics beside those of others.

Each study is a command: `python -m studies.NAME --help`. It trains what is missing, or resumes it; several processes
may share the work. A result in `results.csv` is read, not computed again.
"""

import benchmarks  # noqa: F401 (before all else: it heeds a Ctrl-C)
