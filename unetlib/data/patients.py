"""Find the patients in a folder, whatever its layout.

A data set is recognised by its file names alone (see `layouts`). A file that cannot be used is never skipped in
silence: its case is left out by name, with a sentence that says why.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from unetlib.data import naming
from unetlib.data.advice import nothing_found, suggest
from unetlib.data.archive import open_data
from unetlib.data.cases import SHARE, Case, read_case, read_labels, unforeseen
from unetlib.data.folder import Folder
from unetlib.data.layouts import AUTOMATIC, KAGGLE, LAYOUTS, MASK, MODALITIES
from unetlib.data.volumes import assumption
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.files import takes_paths

__all__ = ["LAYOUTS", "MODALITIES", "SHARE", "Case", "Cohort", "find_cases", "read_case", "read_labels", "unforeseen"]


@dataclass(frozen=True)
class Cohort:
    """The cases of a folder.

    `cases`: usable as far as file names tell (image and mask are there), sorted by id. `left_out`: the other cases,
    id -> the sentence why. `notes`: what a user should read. `assume`: the orientation of files that do not say
    theirs, as in `Source`. `table`: id -> patient, as `patients.csv` says.
    """

    root: Path
    cases: tuple[Case, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    assume: str | None = None
    table: dict[str, str] = field(default_factory=dict)

    @property
    def doubt(self) -> str:
        """The sentence about names that could hide time points; empty if there are none."""
        return naming.doubt(case.id for case in self.cases if case.id not in self.table)


@takes_paths
def find_cases(data: Path, modality: str = "flair", assume: str | None = None) -> Cohort:
    """Return the cases in `data`, from file names: voxels are read only where two files claim the same.

    `data` is a folder in any of the `LAYOUTS`, at any depth, or a .tar of one (see `open_data`). Each case must have
    `modality` beside its mask. `assume` ("ras" or "lps") is the orientation of files that do not say theirs; without
    it, they are refused on reading. A table `patients.csv` (case, patient) in the folder says who is one patient where
    the names do not. Raises `UnetlibError` when there is no such folder, no case in it, or the table cannot be used.
    """
    assume = assumption(assume)
    if modality not in MODALITIES:
        raise UnetlibError(f"{modality!r} is not a modality. Choose one of {', '.join(MODALITIES)}.")
    folder = Folder.read(open_data(data))
    suggest(folder, modality)
    if not folder.drafts:
        raise UnetlibError(nothing_found(folder))
    drafts = sorted(folder.drafts.values(), key=lambda draft: draft.id)
    left_out = {draft.id: problem for draft in drafts if (problem := draft.problem(modality))}
    table, about_table = _table(folder)
    cases = _with_patients((draft.case(assume) for draft in drafts if draft.id not in left_out), table)
    cohort = Cohort(folder.root, cases, left_out, (), assume, table)
    notes = (*folder.notes, *_notes(cases, folder), *about_table, cohort.doubt)
    return replace(cohort, notes=tuple(filter(None, notes)))


def _table(folder: Folder) -> tuple[dict[str, str], list[str]]:
    """Return what `patients.csv` says, the one that lies highest, and a sentence on it; empty where there is none."""
    paths = sorted((len(path.parts), path) for path in folder.unknown if path.name.lower() == naming.TABLE)
    if not paths:
        return {}, []
    (depth, path), lower = paths[0], [path for _, path in paths[1:]]
    if lower and paths[1][0] == depth:
        raise UnetlibError(
            f"{folder.root} holds two tables of patients, {path} and {lower[0]}. Make one of them, in {folder.root}."
        )
    ids = [draft.id for draft in folder.drafts.values()]
    table = naming.read_table(path, ids)
    note = f"{path.name} names the patients of {counted(len(table), 'case')}."
    if lower:
        note += f" Ignored, because it lies deeper: {first_of(list(map(str, lower)))}."
    if rest := sorted(set(ids) - table.keys()):
        note += f" The patients of {counted(len(rest), 'case')} follow from their names: {first_of(rest, 5)}."
    return table, [note]


def _with_patients(cases: Iterable[Case], table: dict[str, str]) -> tuple[Case, ...]:
    """Return the cases with their patients, each spelled in one way, since a split compares them exactly."""
    first: dict[str, str] = {}

    def patient(case: Case) -> str:
        name = table.get(case.id, case.patient)
        return first.setdefault(naming.key(name), name)

    return tuple(replace(case, patient=patient(case)) for case in cases)


def _notes(cases: tuple[Case, ...], folder: Folder) -> Iterator[str]:
    layouts = sorted({case.layout for case in cases})
    if len(layouts) > 1:
        yield (
            f"The folder mixes {', '.join(layouts)}. One patient may be in several of these data sets under different "
            "names; then a split cannot keep that patient on one side. Use one data set at a time for results."
        )
    for layout in layouts:
        of_layout = [case for case in cases if case.layout == layout]
        counts = Counter(modality for case in of_layout for modality in case.images)
        for modality in MODALITIES:
            lacking = [case.id for case in of_layout if modality not in case.images]
            if lacking and 2 * counts[modality] > len(of_layout):
                yield f"Without {modality}, which the rest of {layout} has, but usable: {first_of(lacking)}."
        drafts = [draft for draft in folder.drafts.values() if draft.layout.name == layout and draft.has(AUTOMATIC)]
        both = sum(draft.has(MASK) for draft in drafts)
        if both:
            yield f"{layout}: {counted(both, 'case')} with an expert's mask and an automatic one; the expert's is used."
        if alone := len(drafts) - both:
            yield f"{layout}: {counted(alone, 'case')} without a mask by an expert; the automatic one is used."
        if layout == KAGGLE:
            yield f"{layout} has no voxel size: a nominal 1 mm is used, so millimetres mean pixels."
    if folder.tests:
        yield f"{counted(folder.tests, 'image')} in imagesTs, without masks: ignored."
    if other := [path.name for path in folder.images]:
        yield f"No layout knows the names of {counted(len(other), 'image')}, ignored: {first_of(other, 3)}."
