"""Find the patients in a folder, whatever its layout, and read one of them safely.

A data set is recognised by its file names alone: each way to name files is one entry of `LAYOUTS`,
and a new layout is a new entry. A file that cannot be used is never skipped in silence: its case is
left out by name, with a sentence that says why.
"""

import os
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from unetlib.data import naming
from unetlib.data.archive import open_data
from unetlib.data.layouts import (
    AUTOMATIC,
    BY_NAME,
    FLAIR_WORDS,
    FOREIGN,
    IMAGES,
    KAGGLE,
    LAYOUTS,
    MASK,
    MASK_WORDS,
    MODALITIES,
    NAMELESS,
    NNUNET,
    NO_ID,
    NO_MASK,
    OTHER,
    SERIES,
    STACK,
    STRAY,
    TEST,
    Found,
    Layout,
    recognise,
    recognise_task,
    task_layout,
)
from unetlib.data.nifti import files_of, stem
from unetlib.data.volumes import Source, Volume, assumption, read_volume, whole_labels
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.files import fold, takes_paths

NAME_CHANNELS = (
    'Let dataset.json beside imagesTr name the channels, such as "channel_names": {"0": "FLAIR", "1": "T1"}; add the '
    "image where there is none."
)
SHARE = 50  # cases that are read by the time that another process has started


@dataclass(frozen=True)
class Case:
    """One scan of one patient: where each modality and the mask lie.

    `patient` is what a split groups by: time points of one patient share it (see `naming`). `layout` names an entry
    of `LAYOUTS`. `images` maps a modality ("flair", "t1", "t1ce", "t2") to its source.
    """

    id: str
    patient: str
    layout: str
    images: dict[str, Source]
    seg: Source | None

    def files(self, modality: str = "flair") -> tuple[Path, ...]:
        """Return the files of one modality and of the mask: two of a pair of header and voxels."""
        paths = (*self.images[modality].paths, *(self.seg.paths if self.seg else ()))
        return tuple(file for path in paths for file in files_of(path))

    def stamp(self, root: Path) -> list[list[str | int]]:
        """Return name (below `root`), size and time of change of these files: equal stamps spare reading them.

        A file that is not there (a link to nowhere) has size and time -1.
        """
        stats = [(path.relative_to(root).as_posix(), path.stat() if path.exists() else None) for path in self.files()]
        return [[name, stat.st_size, stat.st_mtime_ns] if stat else [name, -1, -1] for name, stat in stats]


@dataclass(frozen=True)
class Cohort:
    """The cases of a folder.

    `cases`: usable as far as file names tell (image and mask are there), sorted by id. `left_out`: the
    other cases, id -> the sentence why. `notes`: what a user should read, nothing left out. `assume`: the
    orientation of files that do not say theirs, as in `Source`. `table`: id -> patient, as `patients.csv` says.
    """

    root: Path
    cases: tuple[Case, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    assume: str | None = None
    table: dict[str, str] = field(default_factory=dict)

    @property
    def doubt(self) -> str:
        """The sentence about names that could hide time points; empty where there are none."""
        return naming.doubt(case.id for case in self.cases if case.id not in self.table)


@dataclass
class _Draft:
    """A case while its files are being collected; `files` maps (kind, slice number) to the path.

    `twins`: pairs of files that claim the same, which is no fault where they hold the same.
    """

    id: str
    layout: Layout
    files: dict[tuple[str, int], Path] = field(default_factory=dict)
    twins: list[tuple[Path, Path]] = field(default_factory=list)
    clash: str = ""
    likely: str = ""  # what looks like the file that it lacks, and what to do

    def claim(self, layout: Layout, kind: str, number: int, path: Path) -> None:
        """Note that `path` is this case's `kind`, or that another file says so already."""
        same = layout.agrees_with(self.layout)
        other = self.files.get((kind, number)) if same else next(iter(self.files.values()))
        if other is None:
            self.files[kind, number] = path
        elif same:
            self.twins.append((other, path))
        elif not self.clash:
            self.clash = _two_claim(other, path)

    def settle(self) -> int:
        """Return how many files are there twice with the same content; where it differs, that is a clash."""
        for one, other in () if self.clash else self.twins:
            if not _hold_the_same(one, other):
                self.clash = _two_claim(one, other)
                return 0
        return len(self.twins)

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask, by an expert or by a program."""
        return bool(self.numbers(MASK) or self.numbers(AUTOMATIC))

    @property
    def has_image(self) -> bool:
        """Whether there is an image of whatever modality."""
        return any(kind in (*MODALITIES, STACK) for kind, _ in self.files)

    def numbers(self, kind: str) -> list[int]:
        """Return the slice numbers of a kind in order: [0] for a file that is not a slice."""
        return sorted(number for kind_, number in self.files if kind_ == kind)

    def problem(self, modality: str) -> str:
        """Return why this case cannot be used with `modality`, in a sentence; empty when it can."""
        if self.clash:
            return self.clash
        case, folder = self.case(), next(iter(self.files.values())).parent
        if modality not in case.images:
            found = ", ".join(case.images) or "a mask only"
            add = NAME_CHANNELS if self.layout.name == NNUNET else "Add it."
            return f"it has no {modality} image (found in {folder}: {found}). {self.likely or add}"
        if case.seg is None:
            return f"it has no tumour mask in {folder}. {self.likely or 'Add it, or keep the case for `predict`.'}"
        slices, masks = self.numbers(STACK), self.numbers(MASK)
        if slices and set(slices) != set(masks):
            odd = min(set(slices) ^ set(masks))
            lacks = "has no mask" if odd in slices else "is a mask without its image"
            return f"slice {odd} in {folder} {lacks}. Unpack or copy the folder again."
        if slices and len(slices) <= slices[-1] - slices[0]:
            gap = min(set(range(slices[0], slices[-1])) - set(slices))
            return (
                f"slice {gap} is missing in {folder}: {slices[0]} to {slices[-1]} were expected. Unpack or copy the "
                "folder again."
            )
        return ""

    def case(self, assume: str | None = None) -> Case:
        """Return what was collected as a case, to be read with `assume`; an expert's mask goes first."""

        def source(kind: str, channel: int | None = None) -> Source:
            return Source(tuple(self.files[kind, number] for number in self.numbers(kind)), channel, assume)

        kinds = {kind for kind, _ in self.files}
        images = {kind: source(kind) for kind in MODALITIES if kind in kinds}
        if STACK in kinds:
            images = {
                kind: source(STACK, self.layout.channels[kind]) for kind in MODALITIES if kind in self.layout.channels
            }
        mask = next((kind for kind in (MASK, AUTOMATIC) if kind in kinds), None)
        patient = naming.patient_of(self.id)
        return Case(self.id, patient, self.layout.name, images, source(mask) if mask else None)


def _two_claim(one: Path, other: Path) -> str:
    return f"two files claim this case, {one} and {other}. Keep one and move the other elsewhere."


def _hold_the_same(one: Path, other: Path) -> bool:
    """Tell whether two files hold the same, byte for byte or voxel for voxel; a damaged file is like no other."""
    stats = [file.stat() for path in (one, other) for file in files_of(path)]
    return _compare(one, other, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@lru_cache(maxsize=100_000)
def _compare(one: Path, other: Path, stamps: tuple[tuple[int, int], ...]) -> bool:
    if len(stamps) == 2 and stamps[0][0] == stamps[1][0] > 0 and one.read_bytes() == other.read_bytes():
        return True
    try:
        first, second = (read_volume(Source((path,), assume="las")) for path in (one, other))
    except UnetlibError:
        return False
    return (
        first.assumed == second.assumed
        and np.array_equal(first.voxels, second.voxels)
        and np.allclose(first.affine, second.affine, rtol=0, atol=1e-2)
    )


@dataclass
class _Scan:
    """What one pass over the folder has met."""

    root: Path
    drafts: dict[str, _Draft] = field(default_factory=dict)  # by the id as file systems compare it
    files: list[Path] = field(default_factory=list)  # that no layout knows
    tests: int = 0
    notes: list[str] = field(default_factory=list)
    tasks: dict[Path, Layout | None] = field(default_factory=dict)

    def add(self, folder: Path, name: str) -> None:
        """Give one file to the case that its path tells."""
        place = (self.root.name, *folder.relative_to(self.root).parts)
        found = None if name.lower() in STRAY else recognise("/".join((*place, name))) or self._in_task(folder, name)
        if found is None:
            self.files.append(folder / name)
        elif found.kind == TEST:
            self.tests += 1
        elif found.kind != OTHER:
            self._draft(found.id, found.layout).claim(found.layout, found.kind, found.number, folder / name)

    def _draft(self, id: str, layout: Layout) -> _Draft:
        return self.drafts.setdefault(fold(id), _Draft(unicodedata.normalize("NFC", id), layout))

    def _in_task(self, folder: Path, name: str) -> Found | None:
        if folder.name.lower() not in ("imagestr", "labelstr", "imagests"):
            return None
        if (task := folder.parent) not in self.tasks:
            self.tasks[task], note = task_layout(task)
            self.notes += [note] if note else []
        layout = self.tasks[task]
        return recognise_task(layout, folder.name, name) if layout else None

    def adopt(self) -> None:
        """Give files whose names tell no case to the one case of their folder, or make that a case."""
        nameless: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        strangers = set()
        for path in self.files:
            if match := NO_ID.fullmatch(path.name):
                word = match["word"]
                nameless[path.parent][BY_NAME[NAMELESS].kind_of(word) if word else MASK].append(path)
            elif path.name.lower() in STRAY:
                nameless[path.parent][MASK].append(path)
            elif path.name.lower().endswith(IMAGES):
                strangers.add(path.parent)
        owners = self._owners() if nameless else {}
        for folder, kinds in nameless.items():
            own = owners.get(folder, [])
            if not own and kinds.keys() & set(MODALITIES):
                parts = folder.relative_to(self.root).parts or (self.root.name,)
                own = [self._draft("_".join(parts), BY_NAME[NAMELESS])]
            if len(own) == 1:
                self._give(own[0], kinds, folder, folder in strangers)

    def _owners(self) -> dict[Path, list[_Draft]]:
        """Return the cases that have files in a folder."""
        owners = defaultdict(list)
        for draft in self.drafts.values():
            for folder in {path.parent for path in draft.files.values()}:
                owners[folder].append(draft)
        return owners

    def _give(self, draft: _Draft, kinds: dict[str, list[Path]], folder: Path, strangers: bool) -> None:
        """Give a case the files of its own folder that it lacks, where there is one of a kind."""
        bare = draft.layout.name == NAMELESS
        for kind, paths in kinds.items():
            wanted = not draft.has_mask and not strangers if kind == MASK else bare
            owner = STRAY.get(paths[0].name.lower(), fold(draft.id))
            if wanted and len(paths) == 1 and owner == fold(draft.id):
                draft.claim(draft.layout, kind, 0, paths[0])
                self.files.remove(paths[0])
                if not bare:
                    self.notes.append(f"{draft.id}: {paths[0].name} was taken as its mask, the only one in {folder}.")

    def settle(self) -> None:
        """Count files that are there twice once, and say so."""
        twice = {draft.id: draft.twins[0] for draft in self.drafts.values() if draft.settle()}
        if twice:
            one, other = next(iter(twice.values()))
            self.notes.append(
                f"There twice with the same voxels, so counted once: {counted(len(twice), 'case')}, "
                f"for example as {one} and {other}."
            )

    def demote(self) -> None:
        """Take masks of further kinds, `x_brain_segmentation` beside the images of `x`, for what they are: no case."""
        for key, draft in list(self.drafts.items()):
            whole = (self.drafts.get(short) for short in _beginnings(key))
            if not draft.has_image and any(other and other.has_image for other in whole):
                self.files += self.drafts.pop(key).files.values()

    def look_around(self, modality: str) -> None:
        """Find what looks like the file that a case lacks, under a name that no layout knows."""
        loose = [path for path in self.files if path.name.lower().endswith(IMAGES)]
        owners, names, homes = self._owners(), sorted((fold(path.name), path) for path in loose), defaultdict(list)
        for path in loose:
            homes[path.parent].append(path)
        for key, draft in list(self.drafts.items()):
            lacks = modality if modality not in draft.case().images else "" if draft.has_mask else MASK
            if draft.clash or not lacks or not (draft.has_image or lacks == modality):
                continue
            near = [*_starting_with(names, key)]
            for folder in {path.parent for path in draft.files.values()}:
                near += homes[folder] if _alone(draft, owners[folder]) else []
            short = next((short for short in _beginnings(key) if lacks == MASK and short in self.drafts), "")
            if short and not self.drafts[short].has_image:
                near += self.drafts.pop(short).files.values()
            draft.likely = next((_advise(path, draft, lacks) for path in near if _looks_like(path, lacks)), "")


def _advise(path: Path, draft: _Draft, kind: str) -> str:
    """Return the sentence on a file that looks like the mask, or the image, that a case lacks."""
    what, name = f"its {kind} image", f"as in {draft.layout.example}"
    if kind == MASK:
        what, name = "its mask", draft.layout.mask.format(id=draft.id)
    return f"{path} looks like {what}: if it is, rename it {name}."


def _beginnings(key: str) -> Iterator[str]:
    """Yield the beginnings of a case's id that end before a sign such as `_`, the longest first."""
    for at in range(len(key) - 1, 0, -1):
        if not key[at].isalnum():
            yield key[:at]


def _alone(draft: _Draft, owners: list[_Draft]) -> bool:
    """Tell whether a case is the only one with an image in a folder."""
    return all(other is draft or not other.has_image for other in owners)


def _starting_with(names: list[tuple[str, Path]], key: str) -> Iterator[Path]:
    """Yield the files of a sorted list whose names begin with a case's id."""
    at = bisect_left(names, (key,))
    while at < len(names) and names[at][0].startswith(key):
        if not names[at][0][len(key) :][:1].isalnum():
            yield names[at][1]
        at += 1


def _looks_like(path: Path, kind: str) -> bool:
    """Tell whether a name could be that of a mask, or of an image of a modality."""
    name = stem(path.name)
    if kind == MASK:
        return bool(MASK_WORDS.search(name) and not NO_MASK.search(name))
    if kind == "flair" and FLAIR_WORDS.search(name):
        return True
    return any(BY_NAME[NAMELESS].kind_of(found["word"]) == kind for found in SERIES.finditer(name))


@takes_paths
def find_cases(data: Path, modality: str = "flair", assume: str | None = None) -> Cohort:
    """Return the cases in `data`, from file names: voxels are read only where two files claim the same.

    `data` is a folder in any of the `LAYOUTS`, at any depth, or a .tar of one (see `open_data`).
    `modality` is the one that a case must have beside its mask. `assume` ("ras" or "lps") is the orientation
    of files that do not say theirs; without it, reading them is refused. Hidden files are ignored. A table
    `patients.csv` (case, patient) in the folder says who is one patient where the names do not. Raises
    `UnetlibError` when there is no such folder, no case in it, or the table cannot be used.
    """
    assume = assumption(assume)
    if modality not in MODALITIES:
        raise UnetlibError(f"{modality!r} is not a modality. Choose one of {', '.join(MODALITIES)}.")
    root = open_data(data)
    scan = _Scan(root)
    for folder, names in _walk(root, scan.notes):
        there = set(map(str.lower, names))
        for name in names:
            if not (re.search(r"\.img(\.gz)?$", name.lower()) and f"{stem(name).lower()}.hdr" in there):
                scan.add(folder, name)
    scan.adopt()
    scan.settle()
    scan.demote()
    scan.look_around(modality)
    if not scan.drafts:
        raise UnetlibError(_nothing_found(root, scan))
    cases, left_out = [], {}
    for draft in sorted(scan.drafts.values(), key=lambda draft: draft.id):
        if problem := draft.problem(modality):
            left_out[draft.id] = problem
        else:
            cases.append(draft.case(assume))
    table, told = _table(root, scan)
    notes = (*scan.notes, *_notes(cases, scan), *told)
    cohort = Cohort(root, _with_patients(cases, table), left_out, notes, assume, table)
    return replace(cohort, notes=(*cohort.notes, *filter(None, [cohort.doubt])))


def _walk(root: Path, notes: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with its files in alphabetical order, nothing hidden, a folder once however it is linked."""
    seen = set()

    def unreadable(error: OSError) -> None:
        notes.append(f"{error.filename} cannot be read ({error.strerror}): what lies in it is not counted.")

    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in (*folders, *names):
            if not name.isprintable():  # bytes that are no text cannot be written to any table
                notes.append(f"{name!r} in {folder!r} is ignored: its name is not valid text. Rename it.")
        folders[:] = sorted(name for name in folders if name.isprintable() and not name.startswith("."))
        yield Path(folder), sorted(name for name in names if name.isprintable() and not name.startswith("."))


def _nothing_found(root: Path, scan: _Scan) -> str:
    files = scan.files
    found = (
        f"{counted(len(files), 'other file')}, for example {files[0].relative_to(root)}" if files else "no file at all"
    )
    if scan.tests:
        found = f"{counted(scan.tests, 'image')} in imagesTs, without masks, and {found}"
    ends = Counter(kind for path in files for kind in FOREIGN if path.name.lower().endswith(kind))
    if ends:
        found += f" ({FOREIGN[ends.most_common(1)[0][0]]})"
    archive = next((path for path in files if path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))), None)
    action = f"Give the archive itself, {archive}." if archive else "Give the folder that the patients lie in."
    expected = ", ".join(dict.fromkeys(layout.example for layout in LAYOUTS))
    found = " ".join([f"{found}.", *scan.notes])
    return (
        f"{root} holds no patient: it holds {found} Names like these were expected, at any depth: {expected}. {action}"
    )


def _table(root: Path, scan: _Scan) -> tuple[dict[str, str], list[str]]:
    """Return what `patients.csv` says, the one that lies highest, and a sentence on it; empty where there is none."""
    paths = sorted((len(path.parts), path) for path in scan.files if path.name.lower() == naming.TABLE)
    if not paths:
        return {}, []
    if [depth for depth, _ in paths[:2]] == [paths[0][0]] * 2:
        raise UnetlibError(
            f"{root} holds two tables of patients, {paths[0][1]} and {paths[1][1]}. Make one of them, in {root}."
        )
    ids = [draft.id for draft in scan.drafts.values()]
    table = naming.read_table(paths[0][1], ids)
    told = f"{paths[0][1].name} names the patients of {counted(len(table), 'case')}."
    if lower := [str(path) for _, path in paths[1:]]:
        told += f" Not heeded, because it lies deeper: {first_of(lower)}."
    if rest := sorted(set(ids) - table.keys()):
        told += f" The patients of {counted(len(rest), 'case')} are told by their names: {first_of(rest, 5)}."
    return table, [told]


def _with_patients(cases: list[Case], table: dict[str, str]) -> tuple[Case, ...]:
    """Return the cases with their patients, each spelled in one way, since a split compares them exactly."""
    first: dict[str, str] = {}
    patients = [table.get(case.id, case.patient) for case in cases]
    return tuple(
        replace(case, patient=first.setdefault(naming.key(patient), patient))
        for case, patient in zip(cases, patients, strict=True)
    )


def _notes(cases: list[Case], scan: _Scan) -> Iterator[str]:
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
        automatic = [
            draft for draft in scan.drafts.values() if draft.layout.name == layout and draft.numbers(AUTOMATIC)
        ]
        if both := [draft.id for draft in automatic if draft.numbers(MASK)]:
            told = f"an expert's mask and an automatic one lie there for {counted(len(both), 'case')}"
            yield f"{layout}: {told}; the expert's is used."
        if alone := len(automatic) - len(both):
            yield f"{layout}: for {counted(alone, 'case')} there is no mask by an expert; the automatic one is used."
        if layout == KAGGLE:
            yield f"{layout} has no voxel size: a nominal 1 mm is used, so millimetres mean pixels."
    if scan.tests:
        yield f"{counted(scan.tests, 'image')} in imagesTs, without masks: ignored."
    if other := [path.name for path in scan.files if path.name.lower().endswith(IMAGES)]:
        yield f"No layout knows the names of {counted(len(other), 'image')}, ignored: {first_of(other, 3)}."


def read_case(case: Case, modality: str = "flair") -> tuple[Volume, np.ndarray, frozenset[int]]:
    """Return a case's image, its whole-tumour mask and the labels found in the mask file.

    The image is in LPS order, its voxels as stored; the mask is boolean, (X, Y, Z), on the same grid:
    whole tumour = label > 0. Raises `UnetlibError` naming case and file when either is missing or
    damaged, they do not share one grid, a voxel is not finite, the image is constant, or the mask
    holds a value that the layout does not know.
    """
    image, labels, found = read_labels(case, modality)
    return image, labels > 0, found


def read_labels(case: Case, modality: str = "flair") -> tuple[Volume, np.ndarray, frozenset[int]]:
    """Return what `read_case` does, with the voxels of the mask as stored in the place of the boolean mask."""
    try:
        return _read(case, modality)
    except UnetlibError as error:
        raise UnetlibError(f"{case.id}: {error}") from error
    except Exception as error:  # one strange file must not end the work on a thousand
        raise UnetlibError(f"{case.id}: {unforeseen(error)}") from error


def unforeseen(error: Exception) -> str:
    """Return the sentence for a case whose files broke something that no message foresees."""
    if isinstance(error, MemoryError):
        return "it cannot be read: there is not enough memory. Close other programs, or use fewer --workers."
    return (
        f"it cannot be read ({type(error).__name__}: {error}). See whether another program, such as ITK-SNAP, opens "
        "its files, and save them again from there."
    )


def _read(case: Case, modality: str) -> tuple[Volume, np.ndarray, frozenset[int]]:
    source = case.images.get(modality)
    if source is None:
        raise UnetlibError(f"it has no {modality} image. Choose one of {', '.join(case.images) or 'another case'}.")
    if case.seg is None:
        raise UnetlibError("it has no tumour mask. Add it to the folder of the case.")
    image, mask = read_volume(source), read_volume(case.seg)
    mask = replace(mask, voxels=whole_labels(mask.voxels))
    if image.voxels.shape != mask.voxels.shape:
        raise UnetlibError(
            f"{case.seg} has shape {mask.voxels.shape} and the image {source} has {image.voxels.shape}; "
            "they must be the same. Find the mask that belongs to this image."
        )
    if bool(image.assumed) != bool(mask.assumed):
        _require_one_order(source, image, case.seg, mask)
    elif not np.allclose(image.affine, mask.affine, rtol=0, atol=1e-2):
        raise UnetlibError(
            f"{case.seg} has the affine {mask.affine.round(3).tolist()} and the image {source} has "
            f"{image.affine.round(3).tolist()}; they must be the same, for a mask that lies elsewhere marks the "
            "wrong tissue. Resample or export the mask on the grid of the image."
        )
    image.require_contrast(str(source))
    return image, mask.voxels, _labels_of(case, mask.voxels)


def _require_one_order(source: Source, image: Volume, seg: Source, mask: Volume) -> None:
    """Raise `UnetlibError` unless image and mask, one without an orientation, are stored voxel by voxel alike.

    The position of the one without is nobody's word, so it is not compared.
    """
    if image.stored_axes != mask.stored_axes or not np.allclose(image.spacing, mask.spacing, rtol=0, atol=1e-2):
        silent, other = (source, seg) if image.assumed else (seg, source)
        raise UnetlibError(
            f"{silent} does not say how it is oriented: {(image.assumed or mask.assumed).upper()} was assumed, while "
            f"{other} is stored as {(mask if image.assumed else image).stored_axes}, with voxels of {image.spacing} mm "
            f"in the image and {mask.spacing} mm in the mask. Save {silent} again with the header of {other}."
        )


def _labels_of(case: Case, voxels: np.ndarray) -> frozenset[int]:
    """Return the labels in a mask; raises `UnetlibError` when one is not among those of the layout."""
    allowed = BY_NAME[case.layout].labels
    stored = voxels.ravel("K")  # in the order of memory: 4 x faster
    foreground = stored[stored != 0]  # few voxels: sorting all of them would take ten times longer
    values = np.unique(foreground).tolist() + [0] * (foreground.size < voxels.size)
    strange = [value for value in values if value not in allowed]
    if not strange:
        return frozenset(allowed[value] for value in values)
    advice = "Find the mask of this case, or map its labels to these."
    if set(values) <= {0, 255}:
        advice = "It looks like an 8-bit 0/255 mask: divide it by 255."
    raise UnetlibError(
        f"{case.seg} holds the labels {first_of([f'{value:.9g}' for value in strange], 5)}; "
        f"{case.layout} has {', '.join(map(str, allowed))} only. {advice}"
    )
