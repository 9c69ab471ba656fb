"""`unetlib` and `python -m unetlib`, which are the same."""

from unetlib.command import begin


def main() -> None:
    """Run one command."""
    begin()
    from unetlib.cli import main  # from here on a stop ends with a sentence

    main()


if __name__ == "__main__":
    main()
