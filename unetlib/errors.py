"""The one exception a user of the course meets."""


class UnetlibError(Exception):
    """Bad input or a refused action, told in a sentence.

    The message names the file or patient, what was found, what was expected and what to do. The
    command line prints it without a traceback and exits with status 1.
    """
