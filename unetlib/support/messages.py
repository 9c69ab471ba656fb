"""Messages through `logging` under the name "unetlib", so that a program can show, store or silence them."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from unetlib.support.errors import printable

LOG = logging.getLogger("unetlib")


def say(text: str) -> None:
    """Log a message; of several processes only the first one does."""
    if first_process():
        LOG.info(text)


def warn(text: str) -> None:
    """Log a warning, such as a patient who is left out; it is shown without any configuration."""
    if first_process():
        LOG.warning(text)


def process_count() -> int:
    """Return how many processes torchrun has started, including this one; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in os.environ else 1  # other programs set the rest, too


def first_process() -> bool:
    """Tell whether this process writes files and logs: of those started by torchrun, only one does."""
    return process_count() == 1 or os.environ["RANK"] == "0"


class _Printer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # here, so that a command starts without it

        tqdm.write(printable(record.getMessage()))  # without breaking a progress bar


def show_messages() -> None:
    """Print messages from now on, as commands and notebooks do."""
    LOG.setLevel(logging.INFO)
    LOG.propagate = False  # a handler of the root logger would print them again
    if not any(isinstance(handler, _Printer) for handler in LOG.handlers):
        LOG.addHandler(_Printer())


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress messages below warnings while the block runs."""
    before = LOG.level
    LOG.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOG.setLevel(before)
