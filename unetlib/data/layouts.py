"""How public data sets name their files: each way is one entry of `LAYOUTS`, and a new layout is a new entry.

    Layout("My data", "P001_FLAIR.nii.gz", r"p\\d+", {**WORDS, "tumour": MASK}, mask="{id}_tumour.nii.gz")

reads `P001_FLAIR.nii.gz`, `P001_T1.nii.gz`, ... and `P001_tumour.nii.gz` as the case `P001`.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from unetlib.data.nifti import ENDINGS
from unetlib.recipe import MODALITIES
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json

# A mask by an expert and one by a program; a file with a channel per modality; an image without a mask; another file.
MASK, AUTOMATIC, STACK, TEST, OTHER = "seg", "automatic", "stack", "test", "other"
IMAGES = (*ENDINGS, ".tif", ".tiff")
NIFTI = r"\.(?:nii|hdr|img)(?:\.gz)?"


@dataclass(frozen=True)
class Found:
    """What the path of a file says: its layout, the id of its case, its kind, and the number of a slice."""

    layout: "Layout"
    id: str
    kind: str
    number: int = 0


@dataclass(frozen=True)
class Layout:
    """How one data set names its files.

    `id` matches the id of a case. `words` maps what may follow it, a regular expression, to its kind: a modality,
    `MASK`, `AUTOMATIC`, `STACK`, `TEST` or `OTHER`. `pattern` is that of a path such as "folder/file" without its
    `ending`: ID and WORD in it stand for both; it may have the groups `time` (a part of the id), `channel` (a part of
    the word) and `number` (of a slice). `labels` maps each value allowed in a mask file to its label, `channels` a
    modality to its index in a stack. `mask` is the name of a mask. `sure`: whether a path alone shows the layout.
    """

    name: str
    example: str
    id: str
    words: dict[str, str]
    pattern: str = "ID_WORD"
    labels: dict[int, int] = field(default_factory=lambda: {label: label for label in range(5)})
    channels: dict[str, int] = field(default_factory=dict)
    mask: str = "{id}_seg.nii.gz"
    ending: str = NIFTI
    sure: bool = True
    scheme: str = ""  # of its labels, in `regions.SCHEMES`; empty where the names do not show it

    @cached_property
    def names(self) -> re.Pattern[str]:
        """The pattern of the path of a file."""
        groups = {"ID": f"(?P<id>{self.id})", "WORD": f"(?P<word>{'|'.join(self.words)})"}
        path = re.sub("ID|WORD", lambda found: groups[found[0]], self.pattern)
        return re.compile(f"(?:.*/)?{path}{self.ending}", re.IGNORECASE | re.ASCII)

    def find(self, path: str) -> Found | None:
        """Return what a path says under this layout, `None` when it does not match."""
        if (match := self.names.fullmatch(path)) is None:
            return None
        groups = match.groupdict()
        id, word = ("_".join(filter(None, map(groups.get, names))) for names in (("id", "time"), ("word", "channel")))
        return Found(self, id, self.kind_of(word), int(groups.get("number") or 0))

    def kind_of(self, word: str) -> str:
        """Return the kind that a word of a name means."""
        return next((kind for known, kind in self.words.items() if re.fullmatch(known, word, re.IGNORECASE)), OTHER)

    def agrees_with(self, other: "Layout") -> bool:
        """Tell whether files named in both ways can be of one case: a file per volume, the same meaning of labels."""
        return self.name == other.name or (self.labels == other.labels and not (self.channels or other.channels))


WORDS = {
    "t2[-_]?flair|flair|t2f|fla": "flair",
    "t1ce|t1c|ct1|t1gd|t1[-_]?post|t1cw?e?": "t1ce",
    "t1w?|t1n|t1[-_]?pre": "t1",
    "t2w?": "t2",
}
SEG = {**WORDS, "seg|segm|segmentations?": MASK}
_brats = partial(Layout, words=SEG, labels={0: 0, 1: 1, 2: 2, 4: 4}, scheme="brats2021")
KAGGLE, MSD, NNUNET = "TCGA-LGG (Kaggle)", "Medical Segmentation Decathlon", "nnU-Net"
NAMELESS, BRATS_STYLE = "A folder per case", "BraTS-style names"
# Folders; dataset.json says which channel is FLAIR. The masks in labelsTs are those of images that are passed over.
TASK = {"imagestr": STACK, "labelstr": MASK, "imagests": TEST, "labelsts": OTHER}
_NNUNET_PATH = r"(?P<word>labelsT[rs]|(?P<image>imagesT[rs]))/ID(?(image)_(?P<channel>\d{4}))"
_BIDS_MASK = "(?:label|desc)-(?:tumou?r|lesion|glioma|wholetumou?r|wt)[a-z0-9]*(?:_(?:mask|dseg|roi|seg))?|dseg"

# The first sure entry that matches a path wins. Labels: BraTS 2017-2021: 1 necrotic core, 2 oedema, 4 enhancing (Baid
# et al. 2021, arXiv:2107.02314). BraTS 2023: 3 enhancing; BraTS 2024 adds 4, the resection cavity (de Verdier et al.
# 2024, arXiv:2405.18368). BraTS-PED has four parts of another kind (Kazerooni et al. 2024, arXiv:2404.15009).
# Decathlon: 1 oedema, 2 non-enhancing, 3 enhancing (Antonelli et al. 2022, Nat. Commun. 13:4128). TCGA-LGG: the FLAIR
# abnormality as 255 (Buda et al. 2019, Comput. Biol. Med. 109).
# fmt: off
LAYOUTS = (
    *(_brats(f"BraTS 20{year}", "Brats18_TCIA02_151_1_flair.nii.gz", f"brats{year}_[^/]+?") for year in (17, 18, 19)),
    _brats("BraTS 2020", "BraTS20_Training_001_flair.nii", r"brats20_[a-z]+_\d+"),
    _brats("BraTS 2021", "BraTS2021_00000_flair.nii.gz", r"brats2021_\d+"),
    Layout("BraTS-PED", "BraTS-PED-00001-000-t2f.nii.gz", r"brats-peds?-\d+(?:-\d+)?", SEG, "ID[-_]WORD",
           mask="{id}-seg.nii.gz"),
    Layout("BraTS 2023/2024", "BraTS-GLI-00000-000-t2f.nii.gz", r"brats-[a-z-]+-\d+(?:-\d+)?", SEG, "ID[-_]WORD",
           mask="{id}-seg.nii.gz", scheme="brats2023"),
    Layout(NNUNET, "imagesTr/NAME_0000.nii.gz", "[^/]+?", TASK, _NNUNET_PATH, mask="labelsTr/{id}.nii.gz", sure=False),
    Layout(MSD, "imagesTr/BRATS_001.nii.gz", "[^/]+?", TASK, "WORD/ID", {label: label for label in range(4)},
           {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}, "labelsTr/{id}.nii.gz", sure=False,
           scheme="decathlon"),
    Layout(KAGGLE, "TCGA_CS_5395_19981004_8.tif", r"tcga_[^/]+_\d{8}", {"": STACK, "_mask": MASK},
           r"ID_(?P<number>\d+)WORD", {0: 0, 255: 1}, {"t1": 0, "flair": 1, "t1ce": 2}, ending=r"\.tiff?"),
    Layout("TCGA-GBM/LGG (TCIA)", "TCGA-02-0006_1996.08.23_flair.nii.gz",
           r"tcga-[a-z0-9]+-[a-z0-9]+_\d{4}\.\d\d\.\d\d",
           {**SEG, "glistrboost_manuallycorrected": MASK, "glistrboost": AUTOMATIC},
           mask="{id}_GlistrBoost_ManuallyCorrected.nii.gz", scheme="brats2021"),
    Layout("UPENN-GBM", "UPENN-GBM-00006_11_FLAIR.nii.gz", r"upenn-gbm-\d+_\d+",
           {**SEG, "automated_approx_segm": AUTOMATIC}, mask="{id}_segm.nii.gz", scheme="brats2021"),
    Layout("UCSF-PDGM", "UCSF-PDGM-0004_FLAIR.nii.gz", r"ucsf-pdgm-\d+(?:_fu\w+?)?",
           {**SEG, "tumor_segmentation": MASK}, mask="{id}_tumor_segmentation.nii.gz", scheme="brats2021"),
    Layout("UCSD-PTGBM", "UCSD-PTGBM-0002_01_FLAIR.nii.gz", r"ucsd-ptgbm-\d+_\d+",
           {**SEG, "brats_tumor_seg": MASK}, mask="{id}_BraTS_tumor_seg.nii.gz"),
    Layout("LUMIERE", "Patient-001/week-000-1/FLAIR.nii.gz", r"patient-\d+",
           {**WORDS, "deepbratumia-segmentation/native/segmentation/flair_seg_mask": AUTOMATIC},
           r"ID/(?P<time>week-\d+(?:-\d+)?)/WORD"),
    Layout("EGD", "EGD-0001/FLAIR.nii.gz", r"(?:mr_)?egd-\d+", {**WORDS, "mask": MASK},
           r"ID(?:/\d_[a-z0-9]+/nifti)?/WORD", mask="{id}/MASK.nii.gz"),
    Layout("BIDS", "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?",
           {"flair": "flair", "ce-[^/]+?_t1w": "t1ce", "t1w": "t1", "t2w": "t2", _BIDS_MASK: MASK},
           "ID(?:_(?!ce-|label-|desc-)[a-z]+-[^_/]+)*_WORD", mask="{id}_label-tumor_mask.nii.gz"),
    _brats("Phantoms", "Phantom_00000_flair.nii.gz", r"phantom_\d+"),
    Layout("FeTS", "NAME_brain_flair.nii.gz", "[^/]+?",
           {**{f"brain_(?:{word})": kind for word, kind in WORDS.items()}, "final_seg|tumormask": MASK},
           mask="{id}_final_seg.nii.gz"),
    Layout(BRATS_STYLE, "<id>_flair.nii.gz", "[^/]+?", SEG),
    Layout(NAMELESS, "<id>/FLAIR.nii.gz", "[^/]*", {**WORDS, "seg|segm|segmentation|mask": MASK}, "ID/WORD",
           mask="seg.nii.gz", sure=False),
)
# fmt: on
BY_NAME = {layout.name: layout for layout in LAYOUTS}


def recognise(path: str) -> Found | None:
    """Return what a path, "folder/file" from the data folder on, says under the first layout that knows it.

    Kaggle unpacks a file into a folder of its name; the one file in it may have another name.
    """
    outer = path.rpartition("/")[0]
    paths = [outer, path] if outer.lower().endswith(ENDINGS) else [path]
    return next(filter(None, (layout.find(path) for path in paths for layout in LAYOUTS if layout.sure)), None)


def task_layout(task: Path) -> tuple[Layout | None, str]:
    """Return the layout of a folder that holds `imagesTr`, as its files and `dataset.json` say, and a note.

    One file a channel, `NAME_0000.nii.gz`, is nnU-Net; all in one, the Decathlon. `None`: nothing says which is FLAIR.
    """
    inside = {path.name.lower(): path for path in task.iterdir()}
    images = inside.get("imagestr", inside.get("imagests"))
    there = [path.name for path in images.iterdir() if not path.name.startswith(".")] if images else []
    names = [name for name in there if name.lower().endswith(ENDINGS)]
    channels, note = _channels(inside.get("dataset.json"))
    if any(BY_NAME[NNUNET].find(f"imagesTr/{name}") for name in names):
        if not (channels or note):
            note = f"{task} has no dataset.json that says which channel is FLAIR. Write that into it."
        words = {f"imagestr_{number:04}": kind for kind, number in channels.items()}
        return replace(BY_NAME[NNUNET], words={**words, "imagests_0000": TEST, "labelstr": MASK}), note
    if channels:
        return replace(BY_NAME[MSD], channels=channels), note
    return (BY_NAME[MSD] if all(re.match(r"brats_\d+", name, re.IGNORECASE) for name in names) else None), note


def _channels(about: Path | None) -> tuple[dict[str, int], str]:
    """Return the channel of each modality that a `dataset.json` names, and what is wrong with the file."""
    if about is None:
        return {}, ""
    try:
        content = read_json(about)
    except UnetlibError as error:
        return {}, str(error)
    names = content.get("channel_names", content.get("modality"))
    found: dict[str, int] = {}
    for number, name in names.items() if isinstance(names, dict) else ():
        word = re.sub(r"^mri?[-_ ]+|[-_ ]+mri?$", "", str(name).strip(), flags=re.IGNORECASE).replace(" ", "-")
        if (kind := BY_NAME[NAMELESS].kind_of(word)) in MODALITIES and str(number).isdecimal():
            found.setdefault(kind, int(number))
    return found, ""
