"""Flags shared by several commands, and the types of their values."""

import argparse
from pathlib import Path
from typing import Any

from unetlib.support.errors import UnetlibError
from unetlib.support.paths import home


def path(text: str) -> Path:
    """Return a path with `~` expanded, which shells do not do in --out=~/masks."""
    try:
        return home(text)
    except UnetlibError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


class Words(argparse.Action):
    """Store several words as one text, separated by spaces."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option_string: object = None
    ) -> None:
        """Store them."""
        setattr(namespace, self.dest, " ".join(values))


class Files(argparse.Action):
    """Append a dictionary from name to path, given as NAME=FILE words."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option_string: object = None
    ) -> None:
        """Append it; a word without = or FILE, or a name that was given already, is an error of the command line."""
        found: dict[str, Path] = {}
        for word in values:
            name, _, file = word.partition("=")
            if not name or not file:
                raise argparse.ArgumentError(
                    self, f"{word!r} was given; {self.metavar} was expected, as flair=a.nii.gz"
                )
            if name in found:
                raise argparse.ArgumentError(self, f"{name} was given twice, {found[name]} and {file}: one is enough")
            found[name] = path(file)
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), found])


def workers(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`."""
    text = "processes (default: one for each idle processor, fewer for small jobs)"
    parser.add_argument("--workers", type=positive, metavar="N", help=text)


def strict(parser: argparse.ArgumentParser) -> None:
    """Add `--strict`."""
    parser.add_argument("--strict", action="store_true", help="stop at a patient who cannot be used")


def assume(parser: argparse.ArgumentParser) -> None:
    """Add `--assume-ras` and `--assume-lps`."""
    group = parser.add_mutually_exclusive_group()
    for assume, where in (("ras", "right, front and head"), ("lps", "left, back and head")):
        text = f"in files that state no orientation, the axes run to the patient's {where}"
        group.add_argument(f"--assume-{assume}", dest="assume", action="store_const", const=assume, help=text)


def others(parser: argparse.ArgumentParser) -> None:
    """Add `--with`."""
    text = "run whose probabilities are averaged with those of RUN; may be given several times"
    parser.add_argument("--with", dest="others", type=path, action="append", default=[], metavar="OTHER", help=text)


def device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)")


def threads(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--threads`; `default` describes the default."""
    text = f"number of CPU threads (default: OMP_NUM_THREADS, else {default})"
    parser.add_argument("--threads", type=positive, metavar="N", help=text)
