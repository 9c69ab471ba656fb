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

from unetlib.data import naming
from unetlib.data.cases import TOLERANCE, Case
from unetlib.data.layouts import (
    AUTOMATIC,
    BY_NAME,
    IMAGES,
    MASK,
    MODALITIES,
    NAMELESS,
    NNUNET,
    OTHER,
    STACK,
    TEST,
    Found,
    Layout,
    recognise,
    task_layout,
)
from unetlib.data.nifti import files_of, stem
from unetlib.data.volumes import Source, read_volume
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.files import fold

STRAY = {"w39_1998.09.19_segm.nii": "brats20_training_355"}  # masks published under another name than their case
NAME_CHANNELS = (
    'Let dataset.json beside imagesTr name the channels, such as "channel_names": {"0": "FLAIR", "1": "T1"}; add the '
    "image where there is none."
)


@dataclass
class Draft:
    """A case while its files are collected; `files` maps (kind, slice number) to the path.

    `twins`: pairs of files that claim the same, which is no fault if their content is the same. `clash`: the sentence
    about two files that differ. `hint`: the sentence about a file that looks like the one that the case lacks.
    """

    id: str
    layout: Layout
    files: dict[tuple[str, int], Path] = field(default_factory=dict)
    twins: list[tuple[Path, Path]] = field(default_factory=list)
    clash: str = ""
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
            self._note_clash(other, path)

    def compare_twins(self) -> bool:
        """Tell whether there are twins and all have the same content; if some differ, that is a clash."""
        for one, other in () if self.clash else self.twins:
            if not _hold_the_same(one, other):
                self._note_clash(one, other)
                return False
        return bool(self.twins)

    def _note_clash(self, one: Path, other: Path) -> None:
        self.clash = self.clash or (
            f"two files claim this case, {one} and {other}. Keep one and move the other elsewhere."
        )

    @property
    def folders(self) -> set[Path]:
        """The folders that its files lie in."""
        return {path.parent for path in self.files.values()}

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask, by an expert or by a program."""
        return bool(self.numbers(MASK) or self.numbers(AUTOMATIC))

    @property
    def has_image(self) -> bool:
        """Whether there is an image of any modality."""
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
            return f"it has no {modality} image (found in {folder}: {found}). {self.hint or add}"
        if case.seg is None:
            return f"it has no tumour mask in {folder}. {self.hint or 'Add it, or keep the case for `predict`.'}"
        slices, masks = set(self.numbers(STACK)), set(self.numbers(MASK))
        first, last = min(slices, default=0), max(slices, default=0)
        if slices and (odd := slices ^ masks):
            lacks = "has no mask" if min(odd) in slices else "is a mask without its image"
            return f"slice {min(odd)} in {folder} {lacks}. Unpack or copy the folder again."
        if slices and (gaps := set(range(first, last)) - slices):
            gap = f"slice {min(gaps)} is missing in {folder}: {first} to {last} were expected."
            return f"{gap} Unpack or copy the folder again."
        return ""

    def case(self, assume: str | None = None) -> Case:
        """Return what was collected as a case, to be read with `assume`; an expert's mask goes first."""

        def source(kind: str, channel: int | None = None) -> Source:
            return Source(tuple(self.files[kind, number] for number in self.numbers(kind)), channel, assume)

        kinds = {kind for kind, _ in self.files}
        channels = self.layout.channels if STACK in kinds else {}
        images = {kind: source(STACK, channels[kind]) for kind in MODALITIES if kind in channels}
        images = images or {kind: source(kind) for kind in MODALITIES if kind in kinds}
        mask = next((source(kind) for kind in (MASK, AUTOMATIC) if kind in kinds), None)
        return Case(self.id, naming.patient_of(self.id), self.layout.name, images, mask)


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
        and np.allclose(first.affine, second.affine, rtol=0, atol=TOLERANCE)
    )


@dataclass
class Folder:
    """What lies in a data folder: `drafts` by the id as file systems compare it; `unknown`: files of no layout.

    `tests` counts images without masks by design (imagesTs), `notes` are sentences for the user.
    """

    root: Path
    drafts: dict[str, Draft] = field(default_factory=dict)
    unknown: list[Path] = field(default_factory=list)
    tests: int = 0
    notes: list[str] = field(default_factory=list)
    tasks: dict[Path, Layout | None] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> "Folder":
        """Return what lies in `root`, at any depth."""
        folder = cls(root)
        for place, names in _walk(root, folder.notes):
            there = set(map(str.lower, names))
            for name in names:
                if not (re.search(r"\.img(\.gz)?$", name.lower()) and f"{stem(name).lower()}.hdr" in there):
                    folder._add(place, name)
        folder._adopt()
        folder._count_twins_once()
        folder._drop_further_masks()
        return folder

    @property
    def images(self) -> list[Path]:
        """The files of no layout that are named like images."""
        return [path for path in self.unknown if path.name.lower().endswith(IMAGES)]

    def owners(self) -> dict[Path, list[Draft]]:
        """Return the cases that have files in a folder."""
        owners = defaultdict(list)
        for draft in self.drafts.values():
            for place in draft.folders:
                owners[place].append(draft)
        return owners

    def _add(self, place: Path, name: str) -> None:
        """Give one file to the case that its path names."""
        path = "/".join((self.root.name, *place.relative_to(self.root).parts, name))
        found = None if name.lower() in STRAY else recognise(path) or self._in_task(place, name)
        if found is None:
            self.unknown.append(place / name)
        elif found.kind == TEST:
            self.tests += 1
        elif found.kind != OTHER:
            self._draft(found.id, found.layout).claim(found.layout, found.kind, found.number, place / name)

    def _draft(self, id: str, layout: Layout) -> Draft:
        return self.drafts.setdefault(fold(id), Draft(unicodedata.normalize("NFC", id), layout))

    def _in_task(self, place: Path, name: str) -> Found | None:
        if place.name.lower() not in ("imagestr", "labelstr", "imagests"):
            return None
        if (task := place.parent) not in self.tasks:
            self.tasks[task], note = task_layout(task)
            self.notes += [note] if note else []
        layout = self.tasks[task]
        return layout.find(f"{place.name}/{name}") if layout else None

    def _adopt(self) -> None:
        """Give files whose names say a kind and no case to the one case of their folder, or make that a case."""
        nameless: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for path in self.unknown:
            if found := BY_NAME[NAMELESS].find(f"{path.parent.name}/{path.name}"):
                nameless[path.parent][found.kind].append(path)
            elif path.name.lower() in STRAY:
                nameless[path.parent][MASK].append(path)
        taken = {path for kinds in nameless.values() for paths in kinds.values() for path in paths}
        strangers = {path.parent for path in self.images if path not in taken}
        owners = self.owners() if nameless else {}
        for place, kinds in nameless.items():
            own = owners.get(place, [])
            if not own and kinds.keys() & set(MODALITIES):
                parts = place.relative_to(self.root).parts or (self.root.name,)
                own = [self._draft("_".join(parts), BY_NAME[NAMELESS])]
            if len(own) == 1:
                self._give(own[0], kinds, place, place in strangers)

    def _give(self, draft: Draft, kinds: dict[str, list[Path]], place: Path, strangers: bool) -> None:
        """Give a case the files of its own folder that it lacks, where there is one of a kind."""
        bare = draft.layout.name == NAMELESS
        for kind, paths in kinds.items():
            wanted = not draft.has_mask and not strangers if kind == MASK else bare
            if wanted and len(paths) == 1 and STRAY.get(paths[0].name.lower(), fold(draft.id)) == fold(draft.id):
                draft.claim(draft.layout, kind, 0, paths[0])
                self.unknown.remove(paths[0])
                if not bare:
                    self.notes.append(f"{draft.id}: {paths[0].name} was taken as its mask, the only one in {place}.")

    def _count_twins_once(self) -> None:
        twins = [draft.twins[0] for draft in self.drafts.values() if draft.compare_twins()]
        if twins:
            self.notes.append(
                f"There twice with the same voxels, so counted once: {counted(len(twins), 'case')}, "
                f"for example as {twins[0][0]} and {twins[0][1]}."
            )

    def _drop_further_masks(self) -> None:
        """Take `x_brain_segmentation` beside the images of `x` for a mask of another kind, not for a case."""
        for key, draft in list(self.drafts.items()):
            whole = (self.drafts.get(short) for short in beginnings(key))
            if not draft.has_image and any(other and other.has_image for other in whole):
                self.unknown += self.drafts.pop(key).files.values()


def beginnings(key: str) -> Iterator[str]:
    """Yield the beginnings of a case's id that end before a sign such as `_`, the longest first."""
    return (key[:at] for at in range(len(key) - 1, 0, -1) if not key[at].isalnum())


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
