"""Which case a mask belongs to, by its name and by the folders that it lies in."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

from unetlib.data.folder import walk
from unetlib.data.naming import key
from unetlib.data.nifti import ENDINGS, files_of, stem
from unetlib.data.patients import Cohort
from unetlib.support.errors import UnetlibError
from unetlib.support.messages import warn

WORDS = (
    "seg|segm|segmentations?|masks?|labels?|labelmap|pred|predictions?|predicted|tumou?r|lesions?|wt|whole|output|"
    "result|final|auto|automatic|manual"
)
SUFFIX = re.compile(rf"(?:[-_. ]+(?:{WORDS}))*", re.IGNORECASE)  # what may follow the name of a case


def nifti_files(root: Path) -> tuple[list[Path], int]:
    """Return the NIfTI files of a folder (or the one file), .hdr for a pair, and how many other files there are."""
    if not root.exists():
        raise UnetlibError(f"{root} does not exist. Give the folder of the masks, or one mask.")
    notes: list[str] = []
    walked = (place / name for place, names in walk(root, notes) for name in names)
    files = [root] if root.is_file() else sorted(path for path in walked if path.is_file())
    for note in notes:
        warn(note)
    nifti = [path for path in files if path.name.lower().endswith(ENDINGS)]
    return list(dict.fromkeys(files_of(path)[0] for path in nifti)), len(files) - len(nifti)


def index_names(cohort: Cohort) -> dict[str, set[str]]:
    """Return the ids of the cases by the names that a mask may begin with: of the case, and of its files."""
    index = defaultdict[str, set[str]](set)
    for case in cohort.cases:
        index[key(case.id)].add(case.id)
        for source in (*case.images.values(), *([case.seg] if case.seg else [])):
            if (name := key(stem(source.paths[0].name))).startswith(key(case.id)):
                index[name].add(case.id)
    return index


def fitting_cases(path: Path, root: Path, index: Mapping[str, set[str]], left_out: Collection[str]) -> set[str]:
    """Return the ids of the cases that a mask fits, by its own name and by the folders that it lies in.

    None if its name is rather that of a case that was `left_out`, such as P1_final beside P1.
    """
    name, folders = key(stem(path.name)), path.relative_to(root).parts[:-1] if path != root else (path.parent.name,)
    begins = [name[:at] for at in range(1, len(name) + 1) if SUFFIX.fullmatch(name[at:])]
    if max(begins, key=lambda one: len(one) * (one in index or one in left_out), default="") in left_out:
        return set()
    within = [key("_".join(folders[i : j + 1])) for j in range(len(folders)) for i in range(j + 1)]
    return set().union(*(index.get(one, ()) for one in (*begins, *within)))
