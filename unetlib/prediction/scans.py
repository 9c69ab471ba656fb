"""What `predict` takes: an image, the files of one patient, or a folder of patients; and what they are called."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from unetlib.data.archive import TAR, open_data
from unetlib.data.layouts import AUTOMATIC, BRATS_STYLE, BY_NAME, MASK, MODALITIES, NAMELESS, NNUNET, Found, recognise
from unetlib.data.nifti import files_of, require_name, stem
from unetlib.data.patients import MODALITY_WORDS, find_images
from unetlib.data.sequences import stack
from unetlib.data.tiff import is_tiff
from unetlib.data.volumes import Source, Volume, read_assumed, read_volume
from unetlib.support.errors import UnetlibError, brief
from unetlib.support.files import digest, sha256
from unetlib.support.messages import say
from unetlib.support.paths import fold

Images = Path | dict[str, Path]  # an image or a folder; or the image of each sequence of one patient


@dataclass(frozen=True)
class Scan:
    """The images of one patient: the `source` of each sequence, in the order of the recipe, and the `name` of masks.

    `case`: the id that the names of folder and file show.
    """

    name: str
    sources: dict[str, Source]
    case: str

    def __str__(self) -> str:
        return str(next(iter(self.sources.values())))

    @property
    def files(self) -> tuple[tuple[str, tuple[Path, ...]], ...]:
        """The files of each sequence: two for a pair of header and voxels."""
        each = ((name, source.paths) for name, source in self.sources.items())
        return tuple((name, tuple(file for path in paths for file in files_of(path))) for name, paths in each)


@dataclass(frozen=True)
class Reader:
    """How images are found and read for a network: the sequences that it sees, in its order.

    With `gaps` a patient may lack sequences. `channel` picks a volume of a 4-D file, `assume` is as in `Source`.
    """

    modalities: tuple[str, ...]
    gaps: bool = False
    channel: int | None = None
    assume: str | None = None

    def __post_init__(self) -> None:
        if self.channel is not None and len(self.modalities) > 1:
            raise UnetlibError(
                f"a channel was given, but the run sees {self._seen}. Split the 4-D file, and give a file for each."
            )

    @property
    def _seen(self) -> str:
        return " ".join(self.modalities)

    def find(self, images: Images) -> tuple[list[Scan], list[str]]:
        """Return the scans that were named, and a sentence for each patient of a folder who cannot be used.

        Raises `UnetlibError` when there is no patient, or the files are not those of one patient that the network sees.
        """
        if isinstance(images, dict):
            return [self._of_files(images)], []
        is_folder = os.path.isdir(images)  # noqa: PTH112 - `Path.is_dir` raises for a name that is too long
        if is_folder or images.name.lower().endswith(TAR):
            return self._in_folder(open_data(images))
        if len(self.modalities) > 1:
            raise UnetlibError(
                f"{images} is one image, and the run sees {self._seen}. Name the images of the patient, --image "
                f"{self.modalities[0]}=FILE {self.modalities[1]}=FILE ..., or the folder that they lie in."
            )
        return [self._alone(images)], []

    def _alone(self, path: Path) -> Scan:
        """Return one image as a scan; its mask keeps the name of the file."""
        name, found = stem(path.name), _recognised(path)
        return Scan(name, {self.modalities[0]: self._source(path, self.modalities[0])}, found.id if found else name)

    def _source(self, path: Path, name: str) -> Source:
        """Return an image that was given as the sequence `name`."""
        require_name(path)
        kind = found.kind if (found := _recognised(path)) else name
        if kind in {*MODALITIES, MASK, AUTOMATIC} - {name}:
            what = kind if kind in MODALITIES else "mask"
            raise UnetlibError(f"{path} was given as {name}, but its name says {what}. Correct one of them.")
        return Source((path,), self.channel, self.assume)

    def _in_folder(self, folder: Path) -> tuple[list[Scan], list[str]]:
        cohort = find_images(folder, self._seen, self.assume, self.gaps)
        for note in cohort.notes:
            say(note)
        scans = []
        for case in cohort.cases:
            sources = {name: case.images[name] for name in self.modalities if name in case.images}
            if self.channel is not None:
                sources = {name: replace(source, channel=self.channel) for name, source in sources.items()}
            scans.append(Scan(case.id, sources, case.id))
        return scans, [f"{id}: {reason}" for id, reason in cohort.left_out.items()]

    def _of_files(self, files: dict[str, Path]) -> Scan:
        if not files:
            raise UnetlibError(f"a patient without an image was given; {self._seen} was expected.")
        if unknown := [name for name in files if name not in MODALITIES]:
            raise UnetlibError(f"{brief(unknown[0])} is not a sequence. Known are {', '.join(MODALITIES)}.")
        first = next(iter(files.values()))
        if unseen := [name for name in files if name not in self.modalities]:
            raise UnetlibError(
                f"{files[unseen[0]]}: the run does not see {unseen[0]}, only {self._seen}. Leave it out."
            )
        lacking = [name for name in self.modalities if name not in files]
        if lacking and not self.gaps:
            raise UnetlibError(
                f"{first}: {' and '.join(lacking)} of this patient {'was' if len(lacking) == 1 else 'were'} not given, "
                f"and the run sees {self._seen}. Name all images of a patient after one --image: "
                f"{next(iter(files))}=FILE {lacking[0]}=FILE ... Only a run with --missing zero or --drop-modalities "
                "can do without."
            )
        if len(self.modalities) == 1:
            return self._alone(first)
        sources = {name: self._source(files[name], name) for name in self.modalities if name in files}
        name = _id_of(files) or _bare(next(iter(sources.values())).paths[0])
        return Scan(name, sources, name)

    def fingerprint(self, scan: Scan) -> tuple[str, int, str]:
        """Return a hash of a scan's images in 12 digits, the channel of a 4-D file (or 0), and what was assumed."""
        sources, hashes = [*scan.sources.values()], [sha256(*files) for _, files in scan.files]
        assumed = {read_assumed(source) for source in sources if not is_tiff(source.paths[0])}
        if len(self.modalities) == 1:
            return hashes[0][:12], sources[0].channel or 0, max(assumed, default="")
        each = [[name, one.channel, hash] for (name, one), hash in zip(scan.sources.items(), hashes, strict=True)]
        return digest(each)[:12], 0, max(assumed, default="")  # all that need one have the same

    def read(self, scan: Scan) -> Volume:
        """Return the images of a scan as one volume, on the grid of the first; say what is missing or was resampled.

        Raises `UnetlibError` when an image cannot be used, shows nothing, or does not lie where the first one does.
        """
        images = {name: read_volume(source) for name, source in scan.sources.items()}
        for name, image in images.items():
            image.require_contrast(str(scan.sources[name]))
        if len(self.modalities) == 1:
            return images[self.modalities[0]]
        try:
            volume = stack(images, self.modalities, self.gaps)
        except UnetlibError as error:
            raise UnetlibError(f"{scan.name}: {error}") from error
        if missing := [name for name, one in zip(self.modalities, volume.voxels, strict=True) if not one.any()]:
            say(f"{scan.name}: without {' and '.join(missing)}; the network sees 0 there.")
        if volume.resampled:
            say(f"{scan.name}: {' and '.join(volume.resampled)} resampled to the grid of {next(iter(images))}.")
        return volume


def _id_of(files: dict[str, Path]) -> str:
    """Return the id of the case that the names of its files show; empty where no layout knows them.

    Raises `UnetlibError` when they are of two cases.
    """
    found = {name: one for name, path in files.items() if (one := _recognised(path))}
    known = [(name, one.id) for name, one in found.items() if one.layout.name != NAMELESS]
    nameless = [(name, one.id) for name, one in found.items() if one.layout.name == NAMELESS]
    beside = {files[name].absolute().parent for name, _ in known}  # a file there may have any name
    far = [(name, id) for name, id in nameless if files[name].absolute().parent not in beside]
    for ids in filter(None, ([*known, *far], nameless)):
        first, id = ids[0]
        if other := next((name for name, another in ids if fold(another) != fold(id)), ""):
            raise UnetlibError(
                f"{files[first]} and {files[other]} are of two patients by their names ({id} and {dict(ids)[other]}). "
                f"Give the files of one patient; if they are, name them alike, as {id}_{first} and {id}_{other}."
            )
    return next((id for _, id in (*known, *nameless)), "")


def _recognised(path: Path) -> Found | None:
    """Return what the name of an image and its folder say, `None` where no layout knows them."""
    name = path.absolute().as_posix()
    found = recognise(name)
    if found and found.layout.name != BRATS_STYLE:
        return found
    in_folder = "/".join(Path(name).parts[-2:])  # "T2_FLAIR" is a sequence, not the patient T2
    return BY_NAME[NAMELESS].find(in_folder) or found or BY_NAME[NNUNET].find(in_folder)


def _bare(path: Path) -> str:
    """Return a file's name without ending and without the word for its sequence."""
    name = stem(path.name)
    bare = MODALITY_WORDS.sub(lambda found: found[0][: found.start("word") - found.start()], name, count=1)
    return re.sub(r"^[-_. ]+|[-_. ]+$", "", bare) or name
