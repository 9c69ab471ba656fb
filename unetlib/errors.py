"""The one exception a user of the course meets, and two turns of phrase for its sentences."""


class UnetlibError(Exception):
    """Bad input or a refused action, told in a sentence.

    The message names the file or patient, what was found, what was expected and what to do. The
    command line prints it without a traceback and exits with status 1.
    """


def counted(number: int, unit: str) -> str:
    """Return a number with its noun, such as "1 case" or "3 cases"."""
    return f"{number} {unit}{'s' * (number != 1)}"


def first_of(names: list[str], most: int = 20) -> str:
    """Return the first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
