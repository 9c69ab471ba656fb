"""Find the patients in a folder, whatever its layout, and read one of them safely.

A data set is recognised by its file names alone: each way to name files is one entry of `LAYOUTS`,
and a new layout is a new entry. A file that cannot be used is never skipped in silence: its case is
left out by name, with a sentence that says why.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from unetlib import naming
from unetlib.archive import open_data
from unetlib.errors import UnetlibError, counted, first_of
from unetlib.volumes import Source, Volume, assumption, read_volume

MODALITIES = ("flair", "t1", "t1ce", "t2")
MASK, STACK, TEST = "seg", "stack", "test"  # a mask; a file with a channel per modality; an image without a mask


@dataclass(frozen=True)
class Layout:
    """How one data set names its files.

    `names` matches "folder/file" and captures `id`, `word` and, of a slice, `number`. `words` says what
    a word means: a modality, `MASK`, `STACK` or `TEST`. `labels` maps each value allowed in a mask file
    to its label. `channels` gives each modality's index in a stack. Whom an id names, `naming` says.
    """

    name: str
    example: str
    names: re.Pattern[str]
    words: dict[str, str]
    labels: dict[int, int]
    channels: dict[str, int] = field(default_factory=dict)


def _names(
    id: str, rest: str = r"_(?P<word>flair|t1|t1ce|t2|seg)\.nii(\.gz)?", folder: str = "[^/]*"
) -> re.Pattern[str]:
    return re.compile(f"{folder}/(?P<id>{id}){rest}", re.IGNORECASE | re.ASCII)


SHARE = 50  # cases that are read by the time that another process has started
WORDS = {word: word for word in (*MODALITIES, MASK)}
BRATS = {0: 0, 1: 1, 2: 2, 4: 4}
NAMELESS = re.compile(r"(seg|segm|segmentation|mask)\.nii(\.gz)?", re.IGNORECASE)  # a mask that names no case
STRAY = {"w39_1998.09.19_segm.nii": "brats20_training_355"}  # published under another name than its case

# Labels. BraTS 2017-2021: 1 necrotic core, 2 oedema, 4 enhancing (Baid et al. 2021, arXiv:2107.02314). BraTS 2023:
# 3 enhancing; BraTS 2024 adds 4, the resection cavity (de Verdier et al. 2024, arXiv:2405.18368). MSD: 1 oedema,
# 2 non-enhancing, 3 enhancing (Antonelli et al. 2022, Nat. Commun. 13:4128). TCGA-LGG: the FLAIR abnormality as
# 255 (Buda et al. 2019, Comput. Biol. Med. 109). The first entry that matches a name wins.
LAYOUTS = (
    *(
        Layout(f"BraTS 20{year}", "Brats18_TCIA02_151_1_flair.nii.gz", _names(rf"brats{year}_.+"), WORDS, BRATS)
        for year in (17, 18, 19)
    ),
    Layout("BraTS 2020", "BraTS20_Training_001_flair.nii", _names(r"brats20_[a-z]+_\d+"), WORDS, BRATS),
    Layout("BraTS 2021", "BraTS2021_00000_flair.nii.gz", _names(r"brats2021_\d+"), WORDS, BRATS),
    Layout(
        "BraTS 2023/2024",
        "BraTS-GLI-00000-000-t2f.nii.gz",
        _names(r"brats-[a-z-]+-\d+(-\d+)?", r"-(?P<word>t2f|t1n|t1c|t2w|seg)\.nii(\.gz)?"),
        words={"t2f": "flair", "t1n": "t1", "t1c": "t1ce", "t2w": "t2", "seg": MASK},
        labels={0: 0, 1: 1, 2: 2, 3: 3, 4: 4},
    ),
    Layout(
        "Medical Segmentation Decathlon",
        "imagesTr/BRATS_001.nii.gz",
        _names(r"brats_\d+", r"\.nii(\.gz)?", folder="(?P<word>imagesTr|labelsTr|imagesTs)"),
        words={"imagestr": STACK, "labelstr": MASK, "imagests": TEST},
        labels={0: 0, 1: 1, 2: 2, 3: 3},
        channels={"flair": 0, "t1": 1, "t1ce": 2, "t2": 3},
    ),
    Layout(
        "TCGA-LGG (Kaggle)",
        "TCGA_CS_5395_19981004_8.tif",
        _names(r"tcga_.+_\d{8}", r"_(?P<number>\d+)(?P<word>|_mask)\.tiff?"),
        words={"": STACK, "_mask": MASK},
        labels={0: 0, 255: 1},
        channels={"t1": 0, "flair": 1, "t1ce": 2},
    ),
    Layout("BraTS-style names", "<id>_flair.nii.gz", _names(".+"), WORDS, BRATS),
)
_BY_NAME = {layout.name: layout for layout in LAYOUTS}


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
        """Return the files of one modality and of the mask."""
        return (*self.images[modality].paths, *(self.seg.paths if self.seg else ()))

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
    """A case while its files are being collected; `files` maps (kind, slice number) to the path."""

    id: str
    layout: Layout
    files: dict[tuple[str, int], Path] = field(default_factory=dict)
    clash: str = ""

    def claim(self, layout: Layout, kind: str, number: int, path: Path) -> None:
        """Note that `path` is this case's `kind`, or that another file says so already."""
        other = self.files.get((kind, number)) if layout is self.layout else next(iter(self.files.values()))
        if other is None:
            self.files[kind, number] = path
        elif not self.clash:
            self.clash = f"two files claim this case, {other} and {path}. Keep one and move the other elsewhere."

    def numbers(self, kind: str) -> list[int]:
        """Return the slice numbers of a kind in order: [0] for a file that is not a slice."""
        return sorted(number for kind_, number in self.files if kind_ == kind)

    def problem(self, modality: str) -> str:
        """Return why this case cannot be used with `modality`, in a sentence; empty when it can."""
        if self.clash:
            return self.clash
        case, folder = self.case(), next(iter(self.files.values())).parent
        if modality not in case.images:
            return f"it has no {modality} image (found in {folder}: {', '.join(case.images) or 'a mask only'}). Add it."
        if case.seg is None:
            return f"it has no tumour mask in {folder}. Add it, or keep the case for `predict`."
        slices, masks = self.numbers(STACK), self.numbers(MASK)
        if slices and set(slices) != set(masks):
            odd = min(set(slices) ^ set(masks))
            lacks = "has no mask" if odd in slices else "is a mask without its image"
            return f"slice {odd} in {folder} {lacks}. Copy the folder again."
        if slices and len(slices) <= slices[-1] - slices[0]:
            gap = min(set(range(slices[0], slices[-1])) - set(slices))
            return (
                f"slice {gap} is missing in {folder}: {slices[0]} to {slices[-1]} were expected. Copy the folder again."
            )
        return ""

    def case(self, assume: str | None = None) -> Case:
        """Return what was collected as a case, whose files are to be read with `assume`."""

        def source(kind: str, channel: int | None = None) -> Source:
            return Source(tuple(self.files[kind, number] for number in self.numbers(kind)), channel, assume)

        kinds = {kind for kind, _ in self.files}
        images = {kind: source(kind) for kind in MODALITIES if kind in kinds}
        if STACK in kinds:
            images = {
                kind: source(STACK, self.layout.channels[kind]) for kind in MODALITIES if kind in self.layout.channels
            }
        return Case(
            self.id, naming.patient_of(self.id), self.layout.name, images, source(MASK) if MASK in kinds else None
        )


@dataclass
class _Scan:
    """What one pass over the folder has met."""

    drafts: dict[str, _Draft] = field(default_factory=dict)  # by the id in lower case, as Windows and macOS compare
    files: list[Path] = field(default_factory=list)  # that no layout knows
    tests: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, folder: Path, name: str) -> None:
        """Give one file to the case that its name tells."""
        for layout in LAYOUTS:
            if match := layout.names.fullmatch(f"{folder.name}/{name}"):
                kind, number = layout.words[match["word"].lower()], int(match.groupdict().get("number") or 0)
                if kind == TEST:
                    self.tests += 1
                else:
                    draft = self.drafts.setdefault(match["id"].lower(), _Draft(match["id"], layout))
                    draft.claim(layout, kind, number, folder / name)
                return
        self.files.append(folder / name)

    def adopt(self) -> None:
        """Give a mask whose name tells no case to the one case of its folder, where that has none."""
        masks = defaultdict(list)
        for path in self.files:
            if NAMELESS.fullmatch(path.name) or path.name.lower() in STRAY:
                masks[path.parent].append(path)
        owners = defaultdict(list)
        for draft in self.drafts.values() if masks else ():
            for folder in {path.parent for path in draft.files.values()}:
                owners[folder].append(draft)
        for folder, (path, *more) in masks.items():
            if more or len(owners[folder]) != 1 or (draft := owners[folder][0]).numbers(MASK):
                continue
            if STRAY.get(path.name.lower(), draft.id.lower()) == draft.id.lower():
                draft.claim(draft.layout, MASK, 0, path)
                self.files.remove(path)
                self.notes.append(f"{draft.id}: {path.name} was taken as its mask, the only one in {folder}.")


def find_cases(data: Path, modality: str = "flair", assume: str | None = None) -> Cohort:
    """Return the cases in `data`, from file names alone: no voxel is read.

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
    scan = _Scan()
    for folder, names in _walk(root, scan.notes):
        for name in names:
            scan.add(folder, name)
    scan.adopt()
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
        if layout == "TCGA-LGG (Kaggle)":
            yield f"{layout} has no voxel size: a nominal 1 mm is used, so millimetres mean pixels."
    if scan.tests:
        yield f"{counted(scan.tests, 'image')} in imagesTs, without masks: ignored."
    if other := [path.name for path in scan.files if path.name.lower().endswith((".nii", ".nii.gz", ".tif", ".tiff"))]:
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
        raise UnetlibError(
            f"{case.id}: it cannot be read ({type(error).__name__}: {error}). Copy or download it again."
        ) from error


def _read(case: Case, modality: str) -> tuple[Volume, np.ndarray, frozenset[int]]:
    source = case.images.get(modality)
    if source is None:
        raise UnetlibError(f"it has no {modality} image. Choose one of {', '.join(case.images) or 'another case'}.")
    if case.seg is None:
        raise UnetlibError("it has no tumour mask. Add it to the folder of the case.")
    image, mask = read_volume(source), read_volume(case.seg)
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
    allowed = _BY_NAME[case.layout].labels
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
        f"{case.seg} holds the labels {first_of([f'{value:g}' for value in strange], 5)}; "
        f"{case.layout} has {', '.join(map(str, allowed))} only. {advice}"
    )
