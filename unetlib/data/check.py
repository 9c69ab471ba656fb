"""Read every case of a folder and say what is there and what cannot be used: `unetlib check`."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetlib.data.cases import (
    NO_SIZE,
    SHARE,
    Case,
    has_nominal_spacing,
    hash_images,
    read_case,
    unforeseen,
    without_copies,
)
from unetlib.data.layouts import MODALITIES
from unetlib.data.patients import Cohort, find_cases
from unetlib.data.volumes import Volume, read_shape
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.jobs import run_jobs
from unetlib.support.paths import takes_paths

LINES = textwrap.TextWrapper(100, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True)
class Finding:
    """What reading one case showed: `tumour` is the fraction of voxels in the mask, `scans` the hash of each image."""

    labels: frozenset[int]
    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    tumour: float
    notes: tuple[str, ...]
    scans: list[str]


@dataclass(frozen=True)
class Report:
    """What reading every case of a cohort showed; as a string, what `unetlib check` prints.

    `findings`: id -> what was found in a case that can be read. `left_out`: id -> why not, by file names or content.
    """

    cohort: Cohort
    findings: dict[str, Finding]
    left_out: dict[str, str]

    @property
    def labels(self) -> dict[str, frozenset[int]]:
        """The labels in the mask of each usable case, by id."""
        return {id: finding.labels for id, finding in self.findings.items()}

    @property
    def usable(self) -> tuple[Case, ...]:
        """The cases that can be read."""
        return tuple(case for case in self.cohort.cases if case.id in self.findings)

    @property
    def nominal(self) -> list[str]:
        """The usable cases whose voxel size is only nominal, whatever the layout of their files."""
        return [id for id, finding in self.findings.items() if has_nominal_spacing(id, finding.spacing)]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should read, though nothing is left out for it."""
        found = [note for finding in self.findings.values() for note in finding.notes]
        cavities = sum(case.layout == "BraTS 2023/2024" and 4 in self.labels[case.id] for case in self.usable)
        if cavities:
            found.append(
                f"Label 4 is in {cavities} BraTS 2023/2024 cases: in gliomas of 2024 it is the resection cavity, "
                "which the rule label > 0 counts as tumour."
            )
        return tuple(dict.fromkeys([*self.cohort.notes, *[NO_SIZE] * bool(self.nominal), *found]))

    def __str__(self) -> str:
        rows = [("Data", str(self.cohort.root)), *(self._rows() if self.findings else ())]
        rows += [("Note", note) for note in self.notes]
        rows += [("Left out", f"{id}: {why}") for id, why in sorted(self.left_out.items())]
        total = len(self.findings) + len(self.left_out)
        lines = [LINES.fill(f"{title:11}{text}") for title, text in rows]
        return "\n".join([*lines, f"{len(self.findings)} of {total} cases usable."])

    def _rows(self) -> Iterator[tuple[str, str]]:
        cases, findings = self.usable, self.findings.values()
        for layout, count in sorted(Counter(case.layout for case in cases).items()):
            patients = {case.patient for case in cases if case.layout == layout}
            yield "Layout", f"{layout}: {counted(count, 'case')} of {counted(len(patients), 'patient')}"
        images = Counter(modality for case in cases for modality in case.images)
        numbers = [f"{modality} {images[modality]}" for modality in MODALITIES if images[modality]]
        yield "Images", f"{', '.join(numbers)}, mask {len(cases)}"
        yield "Shape", f"{_ranges(finding.shape for finding in findings)} voxels"
        nominal = f" (nominal in {counted(len(self.nominal), 'case')})" if self.nominal else ""
        yield "Voxel", f"{_ranges(finding.spacing for finding in findings)} mm{nominal}"
        labels = Counter(label for finding in findings for label in finding.labels if label)
        yield "Labels", ", ".join(f"{label} ({counted(n, 'case')})" for label, n in sorted(labels.items())) or "none"
        percent = [100 * finding.tumour for finding in findings]
        spread = f" ({min(percent):.2f} to {max(percent):.2f} %)" if len(percent) > 1 else ""
        yield "Tumour", f"{np.mean(percent):.2f} % of the voxels of a case{spread}"
        empty = sorted(id for id, finding in self.findings.items() if not finding.tumour)
        yield "No tumour", f"{counted(len(empty), 'case')}{': ' * bool(empty)}{first_of(empty)}"


def _ranges(rows: Iterable[tuple[float, ...]]) -> str:
    """Return e.g. "240 x 240 x 20-155": the least and the greatest along each axis."""
    axes = [sorted({round(value, 3) for value in axis}) for axis in zip(*rows, strict=True)]
    return " x ".join(f"{axis[0]:g}" if len(axis) == 1 else f"{axis[0]:g}-{axis[-1]:g}" for axis in axes)


@takes_paths
def check(data: Path, workers: int | None = None, assume: str | None = None, modalities: str = "flair") -> Report:
    """Read the images and the mask of every case in `data`, the headers of the rest, and report.

    `workers` is the number of processes; `assume` and `modalities` are those of `find_cases`. A case that cannot be
    read is listed in the report; raises `UnetlibError` where `find_cases` does.
    """
    cohort = find_cases(data, modalities, assume)
    findings: dict[str, Finding] = {}
    left_out = dict(cohort.left_out)
    for case, result in run_jobs(_inspect, cohort.cases, "check", "case", workers, SHARE):
        if isinstance(result, Finding):
            findings[case.id] = result
        else:
            left_out[case.id] = result
    _, copies = without_copies((case, findings[case.id].scans) for case in cohort.cases if case.id in findings)
    usable = {id: finding for id, finding in sorted(findings.items()) if id not in copies}
    return Report(cohort, usable, left_out | copies)


def _inspect(case: Case) -> Finding | str:
    """Return what reading a case showed, or the sentence why it cannot be read."""
    try:
        image, mask, labels = read_case(case)
        notes = tuple(filter(None, (_compare(case, modality, image) for modality in case.images)))
        return Finding(labels, mask.shape, image.spacing, float(mask.mean()), notes, hash_images(image))
    except UnetlibError as error:
        return str(error).removeprefix(f"{case.id}: ")
    except Exception as error:  # one strange file must not end the check of a thousand
        return unforeseen(error)


def _compare(case: Case, modality: str, image: Volume) -> str:
    """Return what a user should know of the header of a modality that was not read; empty when there is nothing."""
    source, first = case.images[modality], case.modalities[0]
    expected = image.to_stored(image.voxels if image.voxels.ndim == 3 else image.voxels[0]).shape
    if source.paths in (case.images[name].paths for name in case.modalities):
        return ""
    try:
        shape = read_shape(source)
    except UnetlibError as error:
        return f"{case.id}: {error} The case is usable without {modality}."
    if sorted(shape) == sorted(expected):  # its axes may be stored in another order
        return ""
    return (
        f"{case.id}: {modality} has shape {shape}, {first} {expected}. If you use both, `prepare` interpolates the one "
        "that --modalities names later to the grid of the first."
    )
