"""Start and end of a command: it always ends with a message and a status, never with a traceback.

This module imports little, so that Ctrl-C works from the start.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

from unetlib.support.errors import UnetlibError, printable
from unetlib.support.messages import show_messages

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what batch systems send
GOES_ON = "Stopped. The same command goes on where it was."
BEGINS_ANEW = "Stopped. The same command begins anew."
NOT_BEGUN = "Stopped before the work began. Give the same command again."
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # PyTorch: Linux, Windows, Mac's GPU


def begin() -> None:
    """Let a signal end this process at once, and let the reader of its output leave; call this before other imports.

    A stop during imports would otherwise give a traceback. No work has started yet, so nothing is lost.
    """
    for number in SIGNALS:
        signal.signal(number, _leave)
    sys.stdout, sys.stderr = _outliving_its_reader(sys.stdout), _outliving_its_reader(sys.stderr)


def _leave(*_: object) -> None:
    with suppress(OSError):
        os.write(2, f"{NOT_BEGUN}\n".encode())
    os._exit(130)


class _Pipe(FileIO):
    """An output whose reader may leave, as `head` does: the work goes on, and further output is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # EINVAL on Windows
                raise
            return len(data)


def _outliving_its_reader(stream: Any) -> Any:
    if stream is None:  # closed by the caller
        return open(os.devnull, "w")
    if stream.isatty():
        return stream
    pipe = _Pipe(stream.fileno(), "w", closefd=False)
    # A name that the encoding of a file or pipe does not know, as on Windows, is written with escapes.
    errors = "backslashreplace" if stream.errors == "strict" else stream.errors
    return TextIOWrapper(BufferedWriter(pipe), stream.encoding, errors, line_buffering=True)


def run_command(work: Callable[[], int | None], stopped: str = GOES_ON) -> None:
    """Call `work`; raise `SystemExit` when it fails (1), is stopped (130) or returns a status other than 0.

    Messages are printed. Bad input ends with the message of its `UnetlibError`, a stop by SIGINT or SIGTERM with its
    own message or `stopped`.
    """
    asked = []

    def stop(*_: object) -> None:
        asked.append(True)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    before = {number: signal.getsignal(number) for number in SIGNALS if is_main}
    try:
        try:
            for number in before:
                signal.signal(number, stop)
            show_messages()
            status = work()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    except BaseException as error:
        if asked or isinstance(error, KeyboardInterrupt):  # some libraries turn a stop into another error
            # Python's codecs, when interrupted, change its message
            print(error if "same command goes on" in str(error) else stopped, file=sys.stderr)
            sys.exit(130)
        _end(error)
        raise
    if status:
        sys.exit(status)


def _end(error: BaseException) -> None:
    if isinstance(error, UnetlibError):
        sys.exit(f"error: {printable(str(error))}")
    if isinstance(error, OSError):
        sys.exit(f"error: {error.filename or 'a file'} cannot be used ({error.strerror or error}).")
    # PyTorch's errors, on a GPU and on the CPU, are no `MemoryError`.
    if isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY):
        reason = (str(error) or "the system gave no more").splitlines()[0]
        sys.exit(
            f"error: there is not enough memory ({reason}). Close other programs, use a machine with more of it, or, "
            "to train, choose a smaller --batch-size or --width."
        )
