"""The kill matrix: every command, stopped at many moments, must end with the result of an undisturbed one.

`python -m tests.faults` (or `make faults`) tries many points and writes the table; `make test` tries a few,
and `make test-long` as many.
"""

import random
import shutil
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.conftest import LATEST, SMALL, write_patient
from tests.faults.harness import ANY_CALL, WITHIN_WRITE, Fault, Outcome, content, run, same
from unetlib.runs.checkpoint import load_checkpoint

EVERY = 3  # steps from one checkpoint to the next
PREPARE = ["--image-size", SMALL.image_size]
TRAIN = ["--width", SMALL.width, "--depth", SMALL.depth, "--epochs", SMALL.epochs, "--precision", SMALL.precision]
MORE = ["--neighbours", 1, "--upright"]  # tried beside it
STRONG = "train --recipe strong"  # and the choice of threshold and smallest component after it
MEMBERS, PATIENTS = "a training of two members", "a training on a folder of patients"
COMMANDS = (
    *("prepare", "prepare, 2 workers", "prepare --rebuild", "prepare --dims 3"),
    *("train", STRONG, MEMBERS, PATIENTS, "evaluate", "predict", "card", "export"),
)
KILLS = (
    ANY_CALL,
    *(f"{when} {what}" for what in ("write", "fsync", "replace", "link") for when in ("before", "after")),
    WITHIN_WRITE,
)
FAILURES = ("before write", "before fsync", "before replace", "before mkdir", WITHIN_WRITE)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Trial:
    """One point of the matrix: what happened, how the command ended, and how the same command ended after it.

    `different`: names of the files that differ from those of an undisturbed run. `lost`: training steps that had to
    be done again.
    """

    command: str
    fault: Fault
    first: Outcome
    again: Outcome
    different: list[str]
    lost: int

    @property
    def problems(self) -> list[str]:
        """What is wrong, in sentences; empty when all is well."""
        found = [f"{name} differs from that of an undisturbed run" for name in self.different]
        if self.again.code != 0:
            found.append(f"the same command ended with {self.again.code}: {self.again.output[-500:]}")
        for output in (self.first.output, self.again.output):  # Python drops a signal that comes in a destructor
            if "Traceback" in output and "Exception ignored in" not in output:
                found.append(f"a traceback: {output[-2000:]}")
        return found + [wrong for wrong in self._ending() if wrong]

    def _ending(self) -> list[str]:
        code, output, what = self.first.code, self.first.output, self.fault.what
        told = output.rstrip().rsplit("\n", 1)[-1]
        refused = code == 1 and told.startswith("error: ")
        if what == signal.SIGKILL:  # a worker is a new interpreter, to which a cut write is an error, not a signal
            expected = code in (0, -signal.SIGKILL, -signal.SIGXFSZ) or (refused and self.fault.where == WITHIN_WRITE)
            return [
                "" if expected else f"killed, it ended with {code}",
                "" if self.lost <= EVERY else f"{self.lost} steps lost, {EVERY} promised",
            ]
        if what in SIGNALS:  # one that comes after the last step finds the work done
            return [
                "" if code in (0, 130) else f"asked to stop, it ended with {code}: {output[-500:]}",
                "" if code == 0 or "ame command" in output else f"no word on how to go on: {output[-500:]}",
                "" if self.lost == 0 else f"{self.lost} steps lost, a checkpoint was promised",
            ]
        return ["" if code == 0 or refused else f"ended with {code}: {told}"]


class Matrix:
    """A small cohort with everything that the commands start from, and their undisturbed results.

    `folder` is a new folder, in which every trial leaves what it made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for index in range(6):
            write_patient(folder / "data", index)
        self.images = sorted((folder / "data").glob("*/*_flair.nii.gz"))[:3]
        self._make("prepare", folder / "prepared")
        self._make("train", folder / "run")
        self._make("evaluate", folder / "evaluated")
        self._make("prepare", folder / "older", "--slices", "all")
        self._make("prepare", folder / "prepared-strong", "--recipe", "strong", "--train-fraction", 0.5)

    def _make(self, command: str, out: Path, *flags: str) -> Outcome:
        self.start(command, out)
        outcome = run([*self.words(command, out), *flags], self.folder / "log")
        assert outcome.code == 0, outcome.output
        return outcome

    def words(self, command: str, out: Path) -> list[Any]:
        """Return the words of a command that writes to `out`."""
        folder = self.folder
        data, prepared, trained = (folder / name for name in ("data", "prepared", "run"))
        return {
            "prepare": ["prepare", data, out, *PREPARE, "--workers", 1],
            "prepare, 2 workers": ["prepare", data, out, *PREPARE, "--workers", 2],
            "prepare --dims 3": ["prepare", data, out, "--dims", 3, *PREPARE, "--workers", 1],
            "prepare --rebuild": ["prepare", data, out, *PREPARE, "--workers", 1, "--rebuild"],
            "train": ["train", prepared, out, *TRAIN, "--device", "cpu", "--checkpoint-every", EVERY],
            STRONG: [
                *("train", folder / "prepared-strong", out, "--recipe", "strong", "--no-phantoms", *TRAIN, *MORE),
                *("--device", "cpu", "--checkpoint-every", EVERY),
            ],
            MEMBERS: ["train", prepared, out, *TRAIN, "--members", 2, "--device", "cpu", "--checkpoint-every", EVERY],
            PATIENTS: ["train", data, out / "run", *TRAIN, "--device", "cpu", "--checkpoint-every", EVERY],
            "export": ["export", data, out / "Dataset501_Boxes", "--nnunet", "--workers", 1],
            "evaluate": ["evaluate", out, "--device", "cpu"],
            "card": ["card", out],
            "predict": ["predict", trained, *self.images, "--out", out, "--probabilities", "--device", "cpu"],
        }[command]

    def start(self, command: str, out: Path) -> None:
        """Put what the command finds into `out`."""
        found = {"evaluate": "run", "card": "evaluated", "prepare --rebuild": "older"}
        if command in found:
            shutil.copytree(self.folder / found[command], out)

    @cache  # noqa: B019 (a matrix lives as long as its trials)
    def undisturbed(self, command: str) -> tuple[dict[str, Any], Outcome]:
        """Return what the command leaves, and how often it does what."""
        out = self.folder / "undisturbed" / command
        outcome = self._make(command, out)
        return content(out), outcome

    def points(self, command: str, what: Any, kinds: tuple[str, ...], number: int, seed: int) -> list[Fault]:
        """Return `number` moments of the command, drawn by `seed`; the next seed goes on with the next kinds."""
        rng, (left, outcome) = random.Random(f"{seed} {command} {what}"), self.undisturbed(command)
        most = {**outcome.events, WITHIN_WRITE: max(len(file) for file in left.values() if isinstance(file, bytes))}
        possible = [kind for kind in kinds if most.get(kind)]
        in_turn = [possible[(seed * number + index) % len(possible)] for index in range(number)]
        return [Fault(what, kind, rng.randint(1, most[kind])) for kind in in_turn]

    def trial(self, command: str, fault: Fault, name: str, flags: list[Any] | None = None) -> Trial:
        """Let `fault` happen to a command, give the same command again, and compare with an undisturbed one.

        `flags` change both, so that they have to differ.
        """
        out, log = self.folder / name, self.folder / f"{name}.log"
        self.start(command, out)
        words = [*self.words(command, out), *(flags or [])]
        first = run(words, log, fault)
        lost = first.steps - self._steps_kept(command, out) if command.startswith("train") else 0
        again = run(words, log)
        expected, found = self.undisturbed(command)[0], content(out)
        names = sorted(expected.keys() | found.keys())
        different = [name for name in names if not same(expected.get(name), found.get(name))]
        shutil.rmtree(out, ignore_errors=True)
        return Trial(command, fault, first, again, different, lost)

    def _steps_kept(self, command: str, run: Path) -> int:
        """Return how many steps the latest checkpoint of this trial holds."""
        if not (run / LATEST).exists():
            return 0
        done, total = load_checkpoint(run / LATEST)["progress"], self.undisturbed(command)[1].steps
        return int(done["epoch"] * total / SMALL.epochs + done["step"])
