"""What each sequence shows of a tumour, on phantoms and on patients: `python -m studies.contrasts FOLDER ...`.

Each FOLDER holds skull-stripped patients with four sequences, such as BraTS's and those of `unetlib phantom`; patients
with their heads are left out. Of each patient it takes the median of a sequence over a tissue, relative to white
matter; the table gives the median of the patients and the quartiles. What is CSF, grey and white matter is told by
T1 far from the tumour, in three clusters, the same way in all folders.
"""

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from benchmarks.common import machine, markdown_table, parser, record, spread
from unetlib.phantom.cohort import MODALITIES
from unetlib.phantom.tumours import ENHANCING, NECROSIS, OEDEMA
from unetlib.support.command import BEGINS_ANEW, run_command

PAGE = Path(__file__).with_name("PHANTOMS.md")
LABELS = {"oedema": OEDEMA, "enhancing": ENHANCING, "necrosis": NECROSIS}
LEAST = 30  # voxels of a tissue
Images = dict[str, np.ndarray]


def patients(data: Path) -> Iterator[tuple[Images, np.ndarray]]:
    """Yield the sequences and labels of each skull-stripped patient of a folder."""
    for folder in sorted(path.parent for path in data.glob("*/*_seg.nii.gz")):
        found = {
            name: np.asarray(nib.load(folder / f"{folder.name}_{name}.nii.gz").dataobj) for name in (*MODALITIES, "seg")
        }
        if (found["flair"] == 0).mean() > 0.5:
            yield found, found.pop("seg")


def tissues(images: Images, labels: np.ndarray) -> Images:
    """Return the masks of CSF, grey and white matter and of the parts of the tumour."""
    brain = images["flair"] > 0
    healthy = brain & ~ndimage.binary_dilation(labels > 0, iterations=5) & ndimage.binary_erosion(brain, iterations=2)
    t1 = np.clip(images["t1"][healthy].astype(float), *np.quantile(images["t1"][healthy], (0.01, 0.99)))
    centres, cluster = kmeans2(t1[:, None], np.quantile(t1, (0.03, 0.4, 0.8))[:, None], minit="matrix")
    found = {name: np.zeros_like(brain) for name in ("CSF", "grey matter", "white matter")}
    for mask, which in zip(found.values(), np.argsort(centres[:, 0]), strict=True):
        mask[healthy] = cluster == which
    for name in ("grey matter", "white matter"):
        found[name] = ndimage.binary_erosion(found[name])  # CSF is too thin for that
    return found | {name: labels == label for name, label in LABELS.items()}


def contrasts(images: Images, labels: np.ndarray) -> dict[tuple[str, str], float]:
    """Return the signal of each sequence and tissue of a patient, relative to white matter."""
    masks = tissues(images, labels)
    white = {name: np.median(voxels[masks["white matter"]]) for name, voxels in images.items()}
    return {
        (name, tissue): float(np.median(voxels[mask]) / white[name])
        for name, voxels in images.items()
        for tissue, mask in masks.items()
        if np.count_nonzero(mask) >= LEAST
    }


def main() -> None:
    """Measure, and put the table into the page."""
    made = parser("studies.contrasts", __doc__)
    made.add_argument("data", type=Path, nargs="+")
    folders: list[Path] = made.parse_args().data
    found = [[contrasts(*patient) for patient in patients(data)] for data in folders]
    rows = []
    for name in MODALITIES:
        for tissue in ("CSF", "grey matter", *LABELS):
            values = [[one[name, tissue] for one in own if (name, tissue) in one] for own in found]
            rows.append([name, tissue, *(spread(some, 2) if some else "" for some in values)])
    columns = [f"{data.name} ({len(own)})" for data, own in zip(folders, found, strict=True)]
    record("contrasts", markdown_table(("", "", *columns), rows), machine(("scipy",)), page=PAGE)


if __name__ == "__main__":
    run_command(main, BEGINS_ANEW)
