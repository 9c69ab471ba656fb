"""How public data sets name their files: each way is one entry of `LAYOUTS`, and a new layout is a new entry.

A line says it for most of them. Two need a look at other files: task folders (`imagesTr`, `labelsTr`), whose
`dataset.json` says which channel is FLAIR, and folders whose files name a modality and no case.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from unetlib.data.nifti import ENDINGS
from unetlib.support.errors import UnetlibError
from unetlib.support.files import read_json

MODALITIES = ("flair", "t1", "t1ce", "t2")
# A mask by an expert and one by a program; a file with a channel per modality; an image without a mask; no concern.
MASK, AUTOMATIC, STACK, TEST, OTHER = "seg", "automatic", "stack", "test", "other"


@dataclass(frozen=True)
class Layout:
    """How one data set names its files.

    `names` matches the path of a file from the data folder on, "folder/file", and captures `id`, `word`, of a slice
    `number`, and `time` where a folder of its own names the time point. `words` says what a word, a regular
    expression, means: a modality, `MASK`, `AUTOMATIC`, `STACK`, `TEST` or `OTHER`. `labels` maps each value allowed
    in a mask file to its label. `channels` gives each modality's index in a stack. `mask` is how a mask is named.
    Whom an id names, `naming` says.
    """

    name: str
    example: str
    names: re.Pattern[str]
    words: dict[str, str]
    labels: dict[int, int]
    channels: dict[str, int] = field(default_factory=dict)
    mask: str = "{id}_seg.nii.gz"

    def agrees_with(self, other: "Layout") -> bool:
        """Tell whether files named by both ways can be of one case: a volume a file, and labels of one meaning."""
        return self.name == other.name or (self.labels == other.labels and not (self.channels or other.channels))

    def kind_of(self, word: str) -> str:
        """Return what a word of a name means."""
        return next((kind for known, kind in self.words.items() if re.fullmatch(known, word, re.IGNORECASE)), OTHER)


NIFTI = r"\.(?:nii|hdr|img)(?:\.gz)?"
FLAIR, T1, T1CE, T2 = (
    "t2[-_]?flair|flair|t2f|fla",
    "t1w?|t1n|t1[-_]?pre",
    "t1ce|t1c|ct1|t1gd|t1[-_]?post|t1cw?e?",
    "t2w?",
)
WORDS = {FLAIR: "flair", T1CE: "t1ce", T1: "t1", T2: "t2"}
SEG = {**WORDS, "seg|segm|segmentations?": MASK}
ANY_OF = "|".join(SEG)


def _names(id: str, rest: str = f"_(?P<word>{ANY_OF})", end: str = NIFTI) -> re.Pattern[str]:
    return re.compile(rf"(?:.*/)?(?P<id>{id}){rest}{end}", re.IGNORECASE | re.ASCII)


BRATS = {0: 0, 1: 1, 2: 2, 4: 4}
LABELS = {label: label for label in range(5)}  # the target is label > 0
MSD, NNUNET, KAGGLE, NAMELESS = "Medical Segmentation Decathlon", "nnU-Net", "TCGA-LGG (Kaggle)", "A folder per case"
BRATS_TASK = re.compile(r"brats_\d+", re.IGNORECASE)
_BRATS_2023 = f"[-_](?P<word>{ANY_OF})"
_BIDS_MASK = "(?:label|desc)-(?:tumou?r|lesion|glioma|wholetumou?r|wt)[a-z0-9]*(?:_(?:mask|dseg|roi|seg))?|dseg"

# Labels. BraTS 2017-2021: 1 necrotic core, 2 oedema, 4 enhancing (Baid et al. 2021, arXiv:2107.02314). BraTS 2023:
# 3 enhancing; BraTS 2024 adds 4, the resection cavity (de Verdier et al. 2024, arXiv:2405.18368). MSD: 1 oedema,
# 2 non-enhancing, 3 enhancing (Antonelli et al. 2022, Nat. Commun. 13:4128). TCGA-LGG: the FLAIR abnormality as
# 255 (Buda et al. 2019, Comput. Biol. Med. 109). The first entry that matches a name wins.
LAYOUTS = (
    *(
        Layout(
            *(f"BraTS 20{year}", "Brats18_TCIA02_151_1_flair.nii.gz", _names(rf"brats{year}_[^/]+?"), SEG, BRATS),
        )
        for year in (17, 18, 19)
    ),
    Layout("BraTS 2020", "BraTS20_Training_001_flair.nii", _names(r"brats20_[a-z]+_\d+"), SEG, BRATS),
    Layout("BraTS 2021", "BraTS2021_00000_flair.nii.gz", _names(r"brats2021_\d+"), SEG, BRATS),
    Layout(
        "BraTS 2023/2024",
        "BraTS-GLI-00000-000-t2f.nii.gz",
        _names(r"brats-[a-z-]+-\d+(?:-\d+)?", _BRATS_2023),
        SEG,
        LABELS,
        mask="{id}-seg.nii.gz",
    ),
    Layout(
        MSD,
        "imagesTr/BRATS_001.nii.gz",
        re.compile(rf"(?:.*/)?(?P<word>imagesTr|labelsTr|imagesTs)/(?P<id>[^/]+?)(?<!_\d{{4}}){NIFTI}", re.IGNORECASE),
        words={"imagestr": STACK, "labelstr": MASK, "imagests": TEST},
        labels={0: 0, 1: 1, 2: 2, 3: 3},
        channels={"flair": 0, "t1": 1, "t1ce": 2, "t2": 3},
        mask="labelsTr/{id}.nii.gz",
    ),
    Layout(
        NNUNET,
        "imagesTr/NAME_0000.nii.gz",
        re.compile(rf"(?:.*/)?imagesTr/(?P<id>[^/]+)_(?P<word>\d{{4}}){NIFTI}", re.IGNORECASE),
        words={},  # by number, as dataset.json says
        labels=LABELS,
        mask="labelsTr/{id}.nii.gz",
    ),
    Layout(
        KAGGLE,
        "TCGA_CS_5395_19981004_8.tif",
        _names(r"tcga_[^/]+_\d{8}", r"_(?P<number>\d+)(?P<word>|_mask)", r"\.tiff?"),
        words={"": STACK, "_mask": MASK},
        labels={0: 0, 255: 1},
        channels={"t1": 0, "flair": 1, "t1ce": 2},
    ),
    Layout(
        "TCGA-GBM/LGG (TCIA)",
        "TCGA-02-0006_1996.08.23_flair.nii.gz",
        _names(
            r"tcga-[a-z0-9]+-[a-z0-9]+_\d{4}\.\d\d\.\d\d",
            f"_(?P<word>{ANY_OF}|glistrboost(?:_manuallycorrected)?)",
        ),
        {**SEG, "glistrboost_manuallycorrected": MASK, "glistrboost": AUTOMATIC},
        LABELS,
        mask="{id}_GlistrBoost_ManuallyCorrected.nii.gz",
    ),
    Layout(
        "UPENN-GBM",
        "UPENN-GBM-00006_11_FLAIR.nii.gz",
        _names(r"upenn-gbm-\d+_\d+", f"_(?P<word>{ANY_OF}|automated_approx_segm)"),
        {**SEG, "automated_approx_segm": AUTOMATIC},
        LABELS,
        mask="{id}_segm.nii.gz",
    ),
    Layout(
        "UCSF-PDGM",
        "UCSF-PDGM-0004_FLAIR.nii.gz",
        _names(r"ucsf-pdgm-\d+(?:_fu\w+?)?", f"_(?P<word>{ANY_OF}|tumor_segmentation)"),
        {**SEG, "tumor_segmentation": MASK},
        LABELS,
        mask="{id}_tumor_segmentation.nii.gz",
    ),
    Layout(
        "UCSD-PTGBM",
        "UCSD-PTGBM-0002_01_FLAIR.nii.gz",
        _names(r"ucsd-ptgbm-\d+_\d+", f"_(?P<word>{ANY_OF}|brats_tumor_seg)"),
        {**SEG, "brats_tumor_seg": MASK},
        LABELS,
        mask="{id}_BraTS_tumor_seg.nii.gz",
    ),
    Layout(
        "LUMIERE",
        "Patient-001/week-000-1/FLAIR.nii.gz",
        _names(
            r"patient-\d+",
            rf"/(?P<time>week-\d+(?:-\d+)?)/(?P<word>{'|'.join(WORDS)}|"
            "deepbratumia-segmentation/native/segmentation/flair_seg_mask)",
        ),
        {**WORDS, "deepbratumia.*": AUTOMATIC},
        LABELS,
    ),
    Layout(
        "EGD",
        "EGD-0001/FLAIR.nii.gz",
        _names(r"(?:mr_)?egd-\d+", rf"(?:/\d_[a-z0-9]+/nifti)?/(?P<word>{'|'.join(WORDS)}|mask)"),
        {**WORDS, "mask": MASK},
        LABELS,
        mask="{id}/MASK.nii.gz",
    ),
    Layout(
        "BIDS",
        "sub-01/anat/sub-01_FLAIR.nii.gz",
        _names(
            r"sub-[a-z0-9]+(?:_ses-[a-z0-9]+)?",
            rf"(?:_(?!ce-|label-|desc-)[a-z]+-[^_/]+)*_(?P<word>flair|ce-[^/]+?_t1w|t1w|t2w|{_BIDS_MASK})",
        ),
        {"flair": "flair", "ce-.+_t1w": "t1ce", "t1w": "t1", "t2w": "t2", _BIDS_MASK: MASK},
        LABELS,
        mask="{id}_label-tumor_mask.nii.gz",
    ),
    Layout(
        "FeTS",
        "NAME_brain_flair.nii.gz",
        _names("[^/]+?", f"_(?P<word>brain_(?:{'|'.join(WORDS)})|final_seg|tumormask)"),
        {**{f"brain_(?:{word})": kind for word, kind in WORDS.items()}, "final_seg": MASK, "tumormask": MASK},
        LABELS,
        mask="{id}_final_seg.nii.gz",
    ),
    Layout("BraTS-style names", "<id>_flair.nii.gz", _names("[^/]+?"), SEG, LABELS),
    Layout(NAMELESS, "<id>/FLAIR.nii.gz", _names("[^/]+", f"/(?P<word>{ANY_OF}|mask)"), SEG, LABELS, mask="seg.nii.gz"),
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}

NO_ID = re.compile(f"(?:(?P<word>{'|'.join(WORDS)})|seg|segm|segmentation|mask){NIFTI}", re.IGNORECASE)
STRAY = {"w39_1998.09.19_segm.nii": "brats20_training_355"}  # published under another name than its case
MASK_WORDS = re.compile(
    r"seg|mask|label|roi|tumou?r|lesion|gt[vl]?(?![a-z])|truth|annot|contour|delineat|outline|manual|expert|o?edema"
    r"|(?<![a-z])(?:wt|tc|et|core|whole|glioma)(?![a-z])",
    re.IGNORECASE,
)
NO_MASK = re.compile(r"brain|skull|bet(?![a-z])|prob", re.IGNORECASE)
SERIES = re.compile(rf"(?:^|[^a-z0-9])(?P<word>{'|'.join(WORDS)})(?:[^a-z0-9]|$)", re.IGNORECASE)
FLAIR_WORDS = re.compile(
    r"tirm|(?:dark|black).?fluid|fluid.?att|flair|(?<![a-z0-9])t2.?f(?:l|luid)?(?![a-z])", re.IGNORECASE
)

# What a data folder may hold that is no image for this library, by the end of a name, and what to do about it.
FOREIGN = {
    (".mha", ".mhd"): "BraTS 2012 to 2016 come as .mha: convert them to NIfTI, for example with SimpleITK",
    (".dcm", ".ima", "dicomdir"): "DICOM: convert the series to NIfTI, for example with dcm2niix",
    (".h5", ".hdf5"): "slices in HDF5: take the data set as its publisher gives it, in NIfTI",
    (".nrrd", ".nhdr"): "NRRD: convert it to NIfTI, for example with 3D Slicer",
    (".npy", ".npz"): "NumPy arrays, which do not say how they lie: take the original images",
    (".mgz", ".mgh"): "MGH of FreeSurfer: convert it to NIfTI with mri_convert",
    (".png", ".jpg", ".jpeg"): "pictures, which have lost the intensities: take the original images",
    (".zip", ".7z", ".rar"): "archives: unpack them first",
}
IMAGES = (*ENDINGS, ".tif", ".tiff")


@dataclass(frozen=True)
class Found:
    """What the path of a file tells: its layout, the id of its case, and what it is of it."""

    layout: Layout
    id: str
    kind: str
    number: int = 0


TASK = re.compile(rf"(imagesTr|labelsTr|imagesTs)/([^/]+?)(?:_(\d{{4}}))?{NIFTI}", re.IGNORECASE)


def recognise(path: str) -> Found | None:
    """Return what a path, "folder/file" from the data folder on, tells under the first layout that knows it.

    Kaggle unpacks a file as a folder of its name with one file in it, whose own name may be another's.
    """
    outer, _, _ = path.rpartition("/")
    return (_recognise(outer) if outer.lower().endswith(ENDINGS) else None) or _recognise(path)


def _recognise(path: str) -> Found | None:
    for layout in LAYOUTS:
        if layout.name not in (MSD, NNUNET, NAMELESS) and (match := layout.names.fullmatch(path)):
            groups = match.groupdict()
            id = "_".join(filter(None, (match["id"], groups.get("time"))))
            return Found(layout, id, layout.kind_of(match["word"]), int(groups.get("number") or 0))
    return None


def recognise_task(layout: Layout, folder: str, name: str) -> Found | None:
    """Return what a file in a task folder (`imagesTr`, ...) tells under the layout of that task."""
    match = TASK.fullmatch(f"{folder}/{name}")
    if match is None:
        return None
    place, id, channel = match[1].lower(), match[2], match[3]
    whole = f"{id}_{channel}" if channel else id
    if layout.name == MSD:
        return Found(layout, whole, layout.kind_of(place))
    if place == "labelstr":
        return Found(layout, whole, MASK)
    if channel is None:
        return None
    kind = layout.kind_of(channel)
    return Found(layout, id, kind if place == "imagestr" else TEST if channel == "0000" else OTHER)


def task_layout(task: Path) -> tuple[Layout | None, str]:
    """Return the layout of a folder that holds `imagesTr`, as its files and `dataset.json` say, and a note.

    One file a channel, `NAME_0000.nii.gz`, is nnU-Net; all channels in one file is the Decathlon. `None` where
    nothing says which channel is FLAIR.
    """
    inside = {path.name.lower(): path for path in task.iterdir()}
    images = inside.get("imagestr")
    names = [path.name for path in images.iterdir() if path.name.lower().endswith(ENDINGS)] if images else []
    split = any(re.search(rf"_\d{{4}}{NIFTI}$", name, re.IGNORECASE) for name in names)
    channels, note = _channels(inside.get("dataset.json"))
    if split:
        if not (channels or note):
            note = f"{task} has no dataset.json that says which channel is FLAIR. Write that into it."
        return replace(BY_NAME[NNUNET], words={f"0*{number:>04}": kind for number, kind in channels.items()}), note
    if channels:
        return replace(BY_NAME[MSD], channels={kind: int(number) for number, kind in channels.items()}), note
    return (BY_NAME[MSD] if all(map(BRATS_TASK.match, names)) else None), note


def _channels(about: Path | None) -> tuple[dict[str, str], str]:
    """Return the modality of each channel, by its number as text, that a `dataset.json` names, and what is wrong."""
    if about is None:
        return {}, ""
    try:
        told = read_json(about)
    except UnetlibError as error:
        return {}, str(error)
    names = told.get("channel_names", told.get("modality"))
    found: dict[str, str] = {}
    for number, name in names.items() if isinstance(names, dict) else ():
        word = re.sub(r"^mri?[-_ ]+|[-_ ]+mri?$", "", str(name).strip(), flags=re.IGNORECASE).replace(" ", "-")
        kind = next((kind for known, kind in WORDS.items() if re.fullmatch(known, word, re.IGNORECASE)), None)
        if kind and str(number).isdecimal() and kind not in found.values():
            found[str(int(number))] = kind
    return found, ""
