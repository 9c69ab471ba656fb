"""Say what a folder holds instead of what is missing: files under other names, or data of another kind."""

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from unetlib.data.archive import TAR
from unetlib.data.folder import IMAGE_KINDS, Draft, Folder, beginnings
from unetlib.data.layouts import AUTOMATIC, BY_NAME, LAYOUTS, MASK, NAMELESS, WORDS
from unetlib.data.nifti import stem
from unetlib.support.errors import counted
from unetlib.support.files import fold

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


def suggest(folder: Folder, modality: str) -> None:
    """Note as a case's `hint` which file, under a name that no layout knows, looks like the one that it lacks."""
    owners, names, homes = folder.owners(), sorted((fold(path.name), path) for path in folder.images), defaultdict(list)
    for path in folder.images:
        homes[path.parent].append(path)
    for key, draft in list(folder.drafts.items()):
        lacks = modality if modality not in draft.case().images else "" if draft.has(MASK, AUTOMATIC) else MASK
        if draft.clash or not lacks or not (draft.has(*IMAGE_KINDS) or lacks == modality):
            continue
        near = [*_starting_with(names, key)]
        for place in draft.folders:
            alone = all(other is draft or not other.has(*IMAGE_KINDS) for other in owners[place])
            near += homes[place] if alone else []
        short = next((short for short in beginnings(key) if lacks == MASK and short in folder.drafts), "")
        if short and not folder.drafts[short].has(*IMAGE_KINDS):
            near += folder.drafts.pop(short).files.values()
        draft.hint = next((_rename(path, draft, lacks) for path in near if _looks_like(path, lacks)), "")


def _rename(path: Path, draft: Draft, kind: str) -> str:
    what, name = f"its {kind} image", f"as in {draft.layout.example}"
    if kind == MASK:
        what, name = "its mask", draft.layout.mask.format(id=draft.id)
    return f"{path} looks like {what}: if it is, rename it {name}."


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
    return any(BY_NAME[NAMELESS].kind_of(found["word"]) == kind for found in MODALITY_WORDS.finditer(name))


def nothing_found(folder: Folder) -> str:
    """Return the sentence about a folder without a case: what it holds, what was expected, what to do."""
    files, root = folder.unknown, folder.root
    example = f", for example {files[0].relative_to(root)}" if files else ""
    found = f"{counted(len(files), 'other file')}{example}" if files else "no file at all"
    if folder.tests:
        found = f"{counted(folder.tests, 'image')} in imagesTs, without masks, and {found}"
    ends = Counter(kind for path in files for kind in FOREIGN if path.name.lower().endswith(kind))
    if ends:
        found += f" ({FOREIGN[ends.most_common(1)[0][0]]})"
    archive = next((path for path in files if path.name.lower().endswith(TAR)), None)
    action = f"Give the archive itself, {archive}." if archive else "Give the folder that the patients lie in."
    expected = ", ".join(dict.fromkeys(layout.example for layout in LAYOUTS))
    found = " ".join([f"{found}.", *folder.notes])
    return (
        f"{root} holds no patient: it holds {found} Names like these were expected, at any depth: {expected}. {action}"
    )
