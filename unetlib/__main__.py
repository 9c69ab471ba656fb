"""`python -m unetlib` is the same as `unetlib`."""

from unetlib.cli import main

if __name__ == "__main__":
    main()
