"""Find the patients in a folder, whatever its layout.

A data set is recognised by its file names alone (see `layouts`). A file that cannot be used is never skipped in
silence: its case is left out by name, with a sentence that says why, and which file looks like the one that it lacks.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from unetlib.data import naming
from unetlib.data.archive import TAR, open_data
from unetlib.data.cases import NO_SIZE, Case, read_case, read_labels, read_regions
from unetlib.data.folder import IMAGE_KINDS, Draft, Folder, beginnings
from unetlib.data.layouts import AUTOMATIC, BY_NAME, ENDINGS, KAGGLE, LAYOUTS, MASK, MODALITIES, NAMELESS, WORDS
from unetlib.data.nifti import OURS, read_description, stem
from unetlib.data.volumes import assumption
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.paths import fold, takes_paths

MASK_WORDS = re.compile(
    r"seg|mask|label|roi|tumou?r|lesion|gt[vl]?(?![a-z])|truth|annot|contour|delineat|outline|manual|expert|o?edema"
    r"|(?<![a-z])(?:wt|tc|et|core|whole|glioma)(?![a-z])",
    re.IGNORECASE,
)
NO_MASK = re.compile(r"brain|skull|bet(?![a-z])|prob", re.IGNORECASE)
MODALITY_WORDS = re.compile(rf"(?:^|[^a-z0-9])(?P<word>{'|'.join(WORDS)})(?:[^a-z0-9]|$)", re.IGNORECASE)
FLAIR_WORDS = re.compile(
    r"tirm|(?:dark|black).?fluid|fluid.?att|flair|(?<![a-z0-9])t2.?f(?:l|luid)?(?![a-z])", re.IGNORECASE
)

# What a data folder may hold that is no image for this library, by the end of a name, and what to do about it.
FOREIGN = {
    (".mha", ".mhd"): "BraTS 2012 to 2016 come as .mha: convert them to NIfTI, for example with SimpleITK",
    (".dcm", ".ima", "dicomdir"): "DICOM: convert the series to NIfTI, for example with dcm2niix",
    (".h5", ".hdf5"): "slices in HDF5: take the data set as its publisher gives it, in NIfTI",
    (".nrrd", ".nhdr"): "NRRD: convert it to NIfTI, for example with 3D Slicer",
    (".npy", ".npz"): "NumPy arrays, which do not say how they are oriented: take the original images",
    (".mgz", ".mgh"): "MGH of FreeSurfer: convert it to NIfTI with mri_convert",
    (".png", ".jpg", ".jpeg"): "PNG or JPEG, which have lost the intensities: take the original images",
    (".zip", ".7z", ".rar"): "archives: unpack them first",
}
# The file that marks a folder which this library made from patients.
MADE = {"prepared.json": "prepared slices or volumes", "recipe.json": "a run"}

__all__ = ["Case", "Cohort", "find_cases", "find_images", "read_case", "read_labels", "read_regions"]


@dataclass(frozen=True)
class Cohort:
    """The cases of a folder.

    `cases`: usable as far as file names tell (image and mask are there), sorted by id. `left_out`: id -> the sentence
    why not. `notes`: what a user should read. `assume`: as in `Source`. `table`: id -> patient, as in `patients.csv`.
    """

    root: Path
    cases: tuple[Case, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    assume: str | None = None
    table: dict[str, str] = field(default_factory=dict)


@takes_paths
def find_cases(data: Path, modalities: str = "flair", assume: str | None = None, missing: str = "leave-out") -> Cohort:
    """Return the cases in `data`, from file names: voxels are read only where two files claim the same.

    `data` is a folder in any of the `LAYOUTS`, at any depth, or a .tar of one (see `open_data`). Each case must have
    all `modalities` (words, as in the recipe) beside its mask; if those that are `missing` become `"zero"`, one of them
    will do. `assume` ("ras" or "lps") is the orientation of files that do not say theirs: needed to read them.
    A table `patients.csv` (case, patient) in the folder says who is one patient where the names do not. Raises
    `UnetlibError` when there is no folder, no case in it, none with one of the modalities, or the table cannot be used.
    """
    assume, wanted, fill = assumption(assume), tuple(modalities.split()), missing == "zero"
    if unknown := set(wanted or [modalities]) - set(MODALITIES):
        raise UnetlibError(f"{min(unknown)!r} is not a modality. Choose one of {', '.join(MODALITIES)}.")
    folder, drafts, left_out = _read(open_data(data), wanted, fill, masked=True)
    if not fill and wanted != ("flair",):  # without FLAIR, the names of each case's files say more
        require_sequences(folder.root, wanted, (draft.case() for draft in drafts))
    table, about_table = _table(folder)
    usable = (replace(draft.case(assume), modalities=wanted, fill=fill) for draft in drafts if draft.id not in left_out)
    cases = _with_patients(usable, table)
    doubt = naming.doubt(case.id for case in cases if case.id not in table)
    notes = (*folder.notes, *_notes(cases, folder), *about_table, doubt)
    return Cohort(folder.root, cases, left_out, tuple(filter(None, notes)), assume, table)


def require_sequences(root: Path, modalities: Iterable[str], cases: Iterable[Case]) -> None:
    """Raise `UnetlibError` unless each of the modalities is in one of the cases, if there are any."""
    there = [set(case.images) for case in cases]
    if absent := [name for name in modalities if there and not any(name in images for images in there)]:
        names = " or ".join(absent)
        raise UnetlibError(f"{root}: no case has a {names} image. Add it, or prepare without it (--modalities).")


def find_images(folder: Path, modalities: str, assume: str | None = None, fill: bool = False) -> Cohort:
    """Return the cases in a folder that have all `modalities`, or with `fill` one of them, with a mask or without.

    Raises `UnetlibError` when there is no case.
    """
    found, drafts, left_out = _read(folder, tuple(modalities.split()), fill, masked=False)
    cases = tuple(draft.case(assume) for draft in drafts if draft.id not in left_out)
    return Cohort(found.root, cases, left_out, (*found.notes, *_ignored(found)), assume)


def _read(root: Path, wanted: tuple[str, ...], fill: bool, masked: bool) -> tuple[Folder, list[Draft], dict[str, str]]:
    """Return what a folder holds, its cases sorted by id, and those that cannot be used, with the reason."""
    folder = Folder.read(root, masked)
    _suggest(folder, wanted[0])
    if not folder.drafts:
        raise UnetlibError(_nothing_found(folder))
    drafts = sorted(folder.drafts.values(), key=lambda draft: draft.id)
    problems = {draft.id: draft.problem(wanted, fill, masked) for draft in drafts}
    return folder, drafts, {id: problem for id, problem in problems.items() if problem}


def _table(folder: Folder) -> tuple[dict[str, str], list[str]]:
    """Return what `patients.csv` says, the one that lies highest, and a sentence on it; empty where there is none."""
    paths = sorted((len(path.parts), path) for path in folder.unknown if naming.is_table(path))
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
    named = ((case, table.get(case.id, case.patient)) for case in cases)
    return tuple(replace(case, patient=first.setdefault(naming.key(name), name)) for case, name in named)


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
            yield NO_SIZE
    yield from _ignored(folder)


def _ignored(folder: Folder) -> Iterator[str]:
    if folder.tests:
        yield f"{counted(folder.tests, 'image')} in imagesTs, which is for testing: ignored."
    if other := [path.name for path in folder.images]:
        yield f"No layout knows the names of {counted(len(other), 'image')}, ignored: {first_of(other, 3)}."


def _suggest(folder: Folder, modality: str) -> None:
    """Note as a case's `hint` which file, under a name that no layout knows, looks like the one that it lacks."""
    owners, homes, named = folder.owners(), defaultdict(list), defaultdict(list)
    for path in folder.images:
        homes[path.parent].append(path)
    for name, path in sorted((fold(path.name), path) for path in folder.images):
        for start in (name, *beginnings(name)):
            named[start].append(path)
    for key, draft in list(folder.drafts.items()):
        lacks = modality if modality not in draft.case().images else "" if draft.has(MASK, AUTOMATIC) else MASK
        if draft.clash or not lacks or not (draft.has(*IMAGE_KINDS) or lacks == modality):
            continue
        near = [*named[key]]
        for place in draft.folders:
            alone = all(other is draft or not other.has(*IMAGE_KINDS) for other in owners[place])
            near += homes[place] if alone else []
        short = next((short for short in beginnings(key) if lacks == MASK and short in folder.drafts), "")
        lone: list[Path] = []
        if short and not folder.drafts[short].has(*IMAGE_KINDS):
            lone += folder.drafts[short].files.values()
        alike = (path for path in (*near, *lone) if _looks_like(path, lacks))
        like = next((path for path in alike if not read_description(path).startswith(OURS)), None)  # no reference
        draft.hint = _rename(like, draft, lacks) if like else ""
        if lone == [like]:  # it is the mask of this case, and no case; any other keeps a sentence of its own
            folder.unknown += folder.drafts.pop(short).files.values()


def _rename(path: Path, draft: Draft, kind: str) -> str:
    what, name = f"its {kind} image", f"as in {draft.layout.example}"
    if kind == MASK:
        what, name = "its mask", draft.layout.mask.format(id=draft.id)
    return f"{path} looks like {what}: if it is, rename it {name}."


def _looks_like(path: Path, kind: str) -> bool:
    name = stem(path.name)
    if kind == MASK:
        return bool(MASK_WORDS.search(name) and not NO_MASK.search(name))
    if kind == "flair" and FLAIR_WORDS.search(name):
        return True
    return any(BY_NAME[NAMELESS].kind_of(found["word"]) == kind for found in MODALITY_WORDS.finditer(name))


def _nothing_found(folder: Folder) -> str:
    """Return the sentence about a folder without a case: what it holds, what was expected, what to do."""
    files, root = folder.unknown, folder.root
    kinds = ENDINGS, *FOREIGN  # an image whose name no layout knows comes first
    ends = Counter(kind for path in files for kind in kinds if path.name.lower().endswith(kind))
    made = next((what for name, what in MADE.items() if (root / name).is_file()), "")
    if made and not ends[ENDINGS]:
        return f"{root} is the folder of {made}. Give the folder that the patients lie in."
    found = "no file at all"
    if files:
        kind = max(kinds, key=ends.__getitem__) if ends else ("",)
        example = next(path for path in files if path.name.lower().endswith(kind))
        why = f" ({FOREIGN[kind]})" if kind in FOREIGN else ""
        found = f"{counted(len(files), 'other file')}, for example {example.relative_to(root)}{why}"
    if folder.tests:
        found = f"{counted(folder.tests, 'image')} in imagesTs, which is for testing, and {found}"
    archive = next((path for path in files if path.name.lower().endswith(TAR)), None)
    action = f"Give the archive itself, {archive}." if archive else "Give the folder that the patients lie in."
    expected = ", ".join(dict.fromkeys(layout.example for layout in LAYOUTS))
    found = " ".join([f"{found}.", *folder.notes])
    return (
        f"{root} holds no patient: it holds {found} Names like these were expected, at any depth: {expected}. {action}"
    )
