"""Write a mask for each NIfTI image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from unetlib.data.nifti import files_of, require_name, stem
from unetlib.data.patients import unforeseen
from unetlib.data.volumes import Source, Volume, assumption, read_assumed, read_description, read_shape, read_volume
from unetlib.prediction.predictor import Predictor
from unetlib.prediction.segment import segment
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.files import atomic, fold, remove_temporary, sha256, takes_paths
from unetlib.support.jobs import progress
from unetlib.support.messages import say

ORIGIN = "unetlib, not for clinical use; weights {} image {} {}{}"  # 80 bytes at the most


@takes_paths
def predict(
    run: Run | Path | str | Sequence[Run | Path | str],
    images: list[Path],
    out: Path,
    probabilities: bool = False,
    channel: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
    assume: str | None = None,
    threads: int | None = None,
) -> list[Path]:
    """Write a mask `<name>_mask.nii.gz` to `out` for each NIfTI file, and return their paths.

    `run` may be several runs, whose probabilities are averaged. The mask is uint8, 0 or 1, with the shape, affine and
    header of the input. With `probabilities`, a float32 `<name>_probability.nii.gz` is written, too. Each of several
    regions has a file of its own, such as `<name>_mask_0.nii.gz`. `channel` picks the FLAIR volume of a 4-D file.
    `assume` ("ras" or "lps") is the orientation of images that do not state one; their masks do not state one either,
    so that every program shows both in the same way. `threads`: CPU threads, by default one for each idle processor.
    The description in a mask's header names its weights and image; the same call, repeated, makes only what is missing.
    For research and education, never for clinical use.

    If some images fail, the others still get their masks, and `UnetlibError` then names those that failed. An image
    fails if it cannot be used, has the name of another one, or has a mask from other weights or another image (unless
    `overwrite`). Raises `UnetlibError` at once for a run that cannot be used or a folder that cannot be written.
    """
    if not images:
        raise UnetlibError("no image was given; NIfTI files were expected.")
    predictor = Predictor.open(run, device, threads=threads)
    regions = [f"_{region}" for region in range(predictor.channels[1])] if predictor.channels[1] > 1 else [""]
    kinds = [kind + region for kind in ("mask", "probability")[: 1 + probabilities] for region in regions]
    jobs, failed = list[_Job](), list[str]()
    images = list({files_of(path): path for path in images}.values())  # .hdr and .img are one image
    for path in images:
        try:
            source = Source((path,), channel, assumption(assume))
            jobs.append(_Job.plan(source, images, out, kinds, predictor.key[:16], overwrite))
        except UnetlibError as error:
            failed.append(str(error))
    done = len(images) - sum(not job.done for job in jobs)
    with progress(len(images), "predict", "image", done) as bar:
        for job in jobs:
            if job.done:
                say(f"{first_of([*map(str, job.files)])}: exists already, from these weights and this image.")
                continue
            try:
                volume = read_volume(job.source)
                volume.require_contrast(str(job.source))
            except Exception as error:  # one bad file must not stop the others
                failed.append(str(error) if isinstance(error, UnetlibError) else f"{job.source}: {unforeseen(error)}")
            else:
                found = segment(predictor, volume)
                for array, file in zip((*found.mask.astype(np.uint8), *found.probability), job.files, strict=False):
                    _save_like(volume, volume.to_stored(array), job.origin, file)
                    say(str(file))
            bar.update()
    if failed:
        reasons = failed[0] if len(failed) == 1 else "".join(f"\n- {reason}" for reason in failed)
        raise UnetlibError(f"{len(failed)} of {counted(len(images), 'image')} got no mask: {reasons}")
    return [file for job in jobs for file in job.files]


@dataclass(frozen=True)
class _Job:
    """One image to predict: its source, the description for the mask's header, and the files to write."""

    source: Source
    origin: str
    files: list[Path]
    done: bool

    @classmethod
    def plan(
        cls, source: Source, images: list[Path], out: Path, kinds: list[str], weights: str, overwrite: bool
    ) -> "_Job":
        """Return the job of one of `images`; raises `UnetlibError` if it cannot be done."""
        path = source.paths[0]
        require_name(path)
        read_shape(source)
        name = fold(stem(path.name))  # on Windows and macOS A_mask and a_mask are one file
        if others := [str(other) for other in images if other != path and fold(stem(other.name)) == name]:
            raise UnetlibError(
                f"{path} and {first_of(others)} have the same name, so their masks would overwrite each other. Predict "
                "them into different folders."
            )
        image = sha256(*files_of(path))[:12]
        origin = ORIGIN.format(weights, image, source.channel or 0, read_assumed(source))
        files = [out / f"{stem(path.name)}_{kind}.nii.gz" for kind in kinds]
        return cls(source, origin, files, not overwrite and _are_done(files, origin))


def _are_done(files: list[Path], origin: str) -> bool:
    """Tell whether all files exist; raises `UnetlibError` if one of them has another origin."""
    for file in files:
        remove_temporary(file.parent, file.name)
        if file.exists() and read_description(file) != origin:
            raise UnetlibError(
                f"{file} exists already, from other weights, another decision or another image. Choose another "
                "folder, or replace it with --overwrite."
            )
    return all(file.exists() for file in files)


def _save_like(volume: Volume, array: np.ndarray, origin: str, path: Path) -> None:
    """Write an array with the header of a volume, except for its number type, intensity scale and description."""
    image = nib.Nifti1Image(array, None if volume.assumed else volume.stored_affine, volume.header)
    image.set_data_dtype(array.dtype)
    image.header["cal_min"], image.header["cal_max"] = 0, 1
    image.header["descrip"] = origin
    with atomic(path) as temporary:
        nib.save(image, temporary)
