"""Whether two scans are the same, and whether a case has changed: by their voxels, not by their files.

A scan is recognised whatever its file's name, type, compression, number type or header, as long as its voxels in LPS
order have the same values; a scan that was rescaled, resampled, cropped or skull-stripped is another one.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from unetlib.data.cases import Case, read_labels
from unetlib.data.volumes import Volume
from unetlib.support.errors import UnetlibError
from unetlib.support.files import digest, sha256

HASHES = ("sha256", "image", "content")  # of a case's files; of its image; of its image and mask


def hash_voxels(voxels: np.ndarray, dtype: str = "<f4") -> str:
    """Return the SHA-256 of the shape and values of an array (X, Y, Z) in LPS order, by default in single precision."""
    found = hashlib.sha256(str(voxels.shape).encode())
    for z in range(voxels.shape[2]):  # slice by slice, x fastest, as NIfTI stores them: 4 x faster than in C order
        plane = np.ascontiguousarray(voxels[:, :, z].T, dtype=dtype)
        found.update((plane + plane.dtype.type(0) if voxels.dtype.kind == "f" else plane).data)  # -0 becomes 0
    return found.hexdigest()


def hash_case(image: Volume, labels: np.ndarray) -> tuple[str, str]:
    """Return two hashes of a case: of the image, which says whose scan it is, and of image and mask together."""
    scan = hash_voxels(image.voxels)
    return scan, digest([scan, hash_voxels(labels.round() if labels.dtype.kind == "f" else labels, "u1")])


def is_unchanged(case: Case, root: Path, stamp: list[list[str | int]], known: dict[str, Any]) -> bool:
    """Tell whether a case holds what it held when its `stamp` was taken: by files, then by bytes, then by voxels.

    `known` holds the hashes of that time; version 0.3 has written none of voxels.
    """
    try:
        if case.stamp(root) == stamp or sha256(*case.files()) == known["sha256"]:
            return True
        return "content" in known and hash_case(*read_labels(case)[:2])[1] == known["content"]
    except (UnetlibError, OSError):
        return False


def copy_of(other: str) -> str:
    """Return the sentence for a case whose image is there already."""
    return f"its image has the same voxels as that of {other}: a scan counts once."
