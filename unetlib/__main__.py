"""`unetlib` and `python -m unetlib`, which are the same."""

# `signal` itself takes milliseconds to load, in which a Ctrl-C would be a traceback
import _signal  # type: ignore[import-not-found]

_signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def main() -> None:
    """Run one command; from `begin` on a stop ends with a sentence."""
    from unetlib.support.command import begin

    begin()
    from unetlib.cli import main

    main()


if __name__ == "__main__":
    main()
