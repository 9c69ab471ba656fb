"""Give each file of a data folder to the case that its path names, without reading it.

Two files that claim to be the same thing are compared; only then are voxels read.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from unetlib.data import layouts, naming
from unetlib.data.cases import Case
from unetlib.data.layouts import AUTOMATIC, MASK, MODALITIES, NAMELESS, STACK, Found, Layout
from unetlib.data.nifti import files_of, stem
from unetlib.data.volumes import Source, read_volume
from unetlib.support.errors import UnetlibError, counted, is_text
from unetlib.support.paths import fold

STRAY = {"w39_1998.09.19_segm.nii": "brats20_training_355"}  # masks published under another name than their case
IMAGE_KINDS = (*MODALITIES, STACK)
NAME_CHANNELS = (
    'Let dataset.json beside imagesTr name the channels, such as "channel_names": {"0": "FLAIR", "1": "T1"}; add the '
    "image where there is none."
)


@dataclass
class Draft:
    """A case while its files are collected; `files` maps (kind, slice number) to the path.

    `twins`: pairs of files that claim the same; `clash`: one whose content differs, or two folders whose paths give the
    same id. `hint`: a sentence on a file that looks like the one it lacks.
    """

    id: str
    layout: Layout
    files: dict[tuple[str, int], Path] = field(default_factory=dict)
    twins: list[tuple[Path, Path]] = field(default_factory=list)
    clash: tuple[Path, Path] | None = None
    hint: str = ""

    def claim(self, layout: Layout, kind: str, number: int, path: Path) -> None:
        """Note that `path` is this case's `kind`, or that another file is so already."""
        same = layout.agrees_with(self.layout)
        other = self.files.get((kind, number)) if same else next(iter(self.files.values()))
        if other is None:
            self.files[kind, number] = path
        elif same:
            self.twins.append((other, path))
        else:
            self.clash = self.clash or (other, path)

    def compare_twins(self) -> bool:
        """Tell whether there are twins, all with the same content; two that differ are a clash."""
        self.clash = self.clash or next((pair for pair in self.twins if not _hold_the_same(*pair)), None)
        return bool(self.twins) and not self.clash

    @property
    def folders(self) -> list[Path]:
        """The folders that its files lie in."""
        return list(dict.fromkeys(path.parent for path in self.files.values()))

    def has(self, *kinds: str) -> bool:
        """Tell whether there is a file of one of the kinds."""
        return any(kind in kinds for kind, _ in self.files)

    def numbers(self, kind: str) -> list[int]:
        """Return the slice numbers of a kind in order: [0] for a file that is not a slice."""
        return sorted(number for kind_, number in self.files if kind_ == kind)

    def problem(self, modalities: tuple[str, ...], fill: bool, masked: bool) -> str:
        """Return why this case cannot be used, in a sentence; empty when it can.

        It needs all `modalities`, or with `fill` one of them; and if `masked`, a mask.
        """
        if self.clash:
            kind, action = "files", "Keep one and move the other elsewhere"
            if self.clash[1].is_dir():
                kind, action = "folders", "Rename one, or if they are copies move one elsewhere"
            return f"two {kind} claim this case, {self.clash[0]} and {self.clash[1]}. {action}."
        case, folder = self.case(), next(iter(self.files.values())).parent
        lacking = [name for name in modalities if name not in case.images]
        if lacking and not (fill and len(lacking) < len(modalities)):
            found = ", ".join(case.images) or "a mask only"
            add = NAME_CHANNELS if self.layout.name == layouts.NNUNET else "Add it."
            return f"it has no {' and no '.join(lacking)} image (found in {folder}: {found}). {self.hint or add}"
        if masked and case.seg is None:
            return f"it has no tumour mask in {folder}. {self.hint or 'Add it, or keep the case for `predict`.'}"
        slices, masks, fault = self.numbers(STACK), self.numbers(MASK), ""
        if masked and slices and (odd := set(slices) ^ set(masks)):
            lacks = "has no mask" if min(odd) in slices else "is a mask without its image"
            fault = f"slice {min(odd)} in {folder} {lacks}"
        elif slices and (gaps := set(range(slices[0], slices[-1])) - set(slices)):
            fault = f"slice {min(gaps)} is missing in {folder}: {slices[0]} to {slices[-1]} were expected"
        return fault and f"{fault}. Unpack or copy the folder again."

    def case(self, assume: str | None = None) -> Case:
        """Return what was collected as a case, to be read with `assume`; an expert's mask goes first."""

        def source(kind: str, channel: int | None = None) -> Source:
            return Source(tuple(self.files[kind, number] for number in self.numbers(kind)), channel, assume)

        channels = self.layout.channels if self.has(STACK) else {}
        images = {kind: source(STACK, channels[kind]) for kind in MODALITIES if kind in channels}
        images = images or {kind: source(kind) for kind in MODALITIES if self.has(kind)}
        mask = next((source(kind) for kind in (MASK, AUTOMATIC) if self.has(kind)), None)
        return Case(self.id, naming.patient_of(self.id), self.layout.name, images, mask)


def _hold_the_same(one: Path, other: Path) -> bool:
    """Tell whether two files hold the same, byte for byte or voxel for voxel; a damaged file is like no other."""
    try:
        stats = [file.stat() for path in (one, other) for file in files_of(path)]
        return _compare(one, other, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))
    except OSError:  # a link to what is not there, as datalad leaves it, must not end the search of the others
        return False


@lru_cache(maxsize=100_000)
def _compare(one: Path, other: Path, stamps: tuple[tuple[int, int], ...]) -> bool:
    if len(stamps) == 2 and stamps[0][0] == stamps[1][0] > 0 and one.read_bytes() == other.read_bytes():
        return True
    try:
        first, second = (read_volume(Source((path,), assume="las")) for path in (one, other))
    except UnetlibError:
        return False
    return first.assumed == second.assumed and first.lies_on(second) and np.array_equal(first.voxels, second.voxels)


@dataclass
class Folder:
    """What lies in a data folder: `drafts` by the id as file systems compare it; `unknown`: files of no layout.

    `tests` counts the images that are for testing (imagesTs), cases only if not `masked`. `notes` are for the user.
    """

    root: Path
    masked: bool = True
    drafts: dict[str, Draft] = field(default_factory=dict)
    unknown: list[Path] = field(default_factory=list)
    tests: int = 0
    notes: list[str] = field(default_factory=list)
    tasks: dict[Path, Layout | None] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path, masked: bool = True) -> "Folder":
        """Return what lies in `root`, at any depth."""
        folder = cls(root, masked)
        for place, names in walk(root, folder.notes):
            # An image of two files is known by its header; either may be compressed.
            headers = {stem(name).lower() for name in names if re.search(r"\.hdr(\.gz)?$", name.lower())}
            for name in names:
                if not (re.search(r"\.img(\.gz)?$", name.lower()) and stem(name).lower() in headers):
                    folder._add(place, name)
        folder._adopt()
        folder._count_twins_once()
        folder._drop_further_masks()
        return folder

    @property
    def images(self) -> list[Path]:
        """The files of no layout that are named like images."""
        return [path for path in self.unknown if path.name.lower().endswith(layouts.IMAGES)]

    def owners(self) -> dict[Path, list[Draft]]:
        """Return the cases that have files in a folder."""
        owners = defaultdict(list)
        for draft in self.drafts.values():
            for place in draft.folders:
                owners[place].append(draft)
        return owners

    def _add(self, place: Path, name: str) -> None:
        path = "/".join((self.root.name, *place.relative_to(self.root).parts, name))
        found = None if name.lower() in STRAY else layouts.recognise(path) or self._in_task(place, name)
        if found is None:
            self.unknown.append(place / name)
        elif found.kind == layouts.TEST:
            self.tests += 1
        elif found.kind != layouts.OTHER:
            self._draft(found.id, found.layout).claim(found.layout, found.kind, found.number, place / name)

    def _draft(self, id: str, layout: Layout) -> Draft:
        return self.drafts.setdefault(fold(id), Draft(unicodedata.normalize("NFC", id), layout))

    def _in_task(self, place: Path, name: str) -> Found | None:
        if place.name.lower() not in layouts.TASK:
            return None
        if (task := place.parent) not in self.tasks:
            self.tasks[task], note = layouts.task_layout(task)
            self.notes += [note] if note else []
        layout, inside = self.tasks[task], place.name
        if inside.lower() == "imagests" and not self.masked:
            inside = "imagesTr"
        return layout.find(f"{inside}/{name}") if layout else None

    def _adopt(self) -> None:
        """Give files whose names say a kind and no case to the one case of their folder, or make that a case."""
        nameless: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        strangers = set()
        for path in self.unknown:
            if found := layouts.BY_NAME[NAMELESS].find(f"{path.parent.name}/{path.name}"):
                nameless[path.parent][found.kind].append(path)
            elif path.name.lower() in STRAY:
                nameless[path.parent][MASK].append(path)
            elif path.name.lower().endswith(layouts.IMAGES):
                strangers.add(path.parent)
        owners, homes = self.owners() if nameless else {}, dict[str, Path]()
        for place, kinds in nameless.items():
            own = owners.get(place, [])
            if not own and kinds.keys() & set(MODALITIES):
                parts = place.relative_to(self.root).parts or (self.root.name,)
                draft = self._draft("_".join(parts), layouts.BY_NAME[NAMELESS])
                if (home := homes.setdefault(fold(draft.id), place)) != place:  # a_b/c and a/b_c are two patients
                    draft.clash = draft.clash or (home, place)
                own = [draft]
            if len(own) == 1:
                self._give(own[0], kinds, place in strangers)

    def _give(self, draft: Draft, kinds: dict[str, list[Path]], strangers: bool) -> None:
        """Give a case the files of its own folder that it lacks, where there is one of a kind."""
        nameless = draft.layout.name == NAMELESS
        for kind, (path, *more) in kinds.items():
            wanted = not (draft.has(MASK, AUTOMATIC) or strangers) if kind == MASK else nameless
            if wanted and not more and STRAY.get(path.name.lower(), fold(draft.id)) == fold(draft.id):
                draft.claim(draft.layout, kind, 0, path)
                self.unknown.remove(path)
                if not nameless:
                    self.notes.append(f"{draft.id}: {path.name} was taken as its mask, the only one in {path.parent}.")

    def _count_twins_once(self) -> None:
        twins = [draft.twins[0] for draft in self.drafts.values() if draft.compare_twins()]
        if twins:
            number, example = counted(len(twins), "case"), "for example as {} and {}".format(*twins[0])
            self.notes.append(f"There twice with the same voxels, so counted once: {number}, {example}.")

    def _drop_further_masks(self) -> None:
        """Take `x_brain_segmentation` beside the images of `x` for a mask of another kind, not for a case.

        Elsewhere, or named like a scan of another time, it is of a case that lacks its images.
        """
        for key, draft in list(self.drafts.items()):
            whole = ((self.drafts.get(short), key[len(short) :]) for short in beginnings(key))
            beside = (
                other.has(*IMAGE_KINDS) and {*draft.folders} <= {*other.folders} and not naming.is_time(end)
                for other, end in whole
                if other
            )
            if not draft.has(*IMAGE_KINDS) and any(beside):
                self.unknown += self.drafts.pop(key).files.values()


def beginnings(key: str) -> Iterator[str]:
    """Yield the beginnings of a case's id that end before a sign such as `_`, the longest first."""
    return (key[:at] for at in range(len(key) - 1, 0, -1) if not key[at].isalnum())


def walk(root: Path, notes: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with its files in alphabetical order, nothing hidden, a folder once however it is linked."""
    seen = set()

    def unreadable(error: OSError) -> None:
        notes.append(f"{error.filename} cannot be read ({error.strerror}): what lies in it is not counted.")

    def usable(names: list[str], folder: str) -> list[str]:
        for name in names:
            if not is_text(name):  # bytes that are no text cannot be written to any table
                notes.append(f"{name!r} in {folder!r} is ignored: its name holds what is no text. Rename it.")
        return sorted(name for name in names if is_text(name) and not name.startswith("."))

    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        status = Path(folder).stat()
        # Some network drives number no files.
        identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = usable(folders, folder)
        yield Path(folder), usable(names, folder)
