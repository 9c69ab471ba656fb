"""Use a trained network: on slices, on a volume, on a NIfTI file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from unetlib.data.nifti import files_of, require_name, stem
from unetlib.data.patients import unforeseen
from unetlib.data.slices import Window, image_to_slices, slices_to_volume, with_neighbours
from unetlib.data.volumes import Source, Volume, assumption, read_assumed, read_description, read_shape, read_volume
from unetlib.engine.device import start_engine
from unetlib.engine.threads import prediction_threads
from unetlib.prediction.decision import FILE, Decision, read_decision
from unetlib.recipe import Recipe
from unetlib.runs.checkpoint import BEST, load_model
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.files import atomic, digest, fold, read_json, remove_temporary, sha256, takes_paths
from unetlib.support.jobs import progress, say

BATCH = 32  # slices at a time: the fastest on a CPU, and 0.5 GB at width 32
ORIGIN = "unetlib, not for clinical use; weights {} image {} {}{}"  # 80 bytes at the most


@dataclass(frozen=True)
class Predictor:
    """A trained network on its device, with the recipe that says how its input is made."""

    fabric: Fabric
    net: nn.Module
    recipe: Recipe
    checkpoint: dict[str, Any]
    decision: Decision
    threads: int | None = None  # None: one for each idle processor

    @classmethod
    @takes_paths
    def open(
        cls,
        run: Path,
        device: str = "auto",
        name: str = BEST,
        decision: Decision | None = None,
        threads: int | None = None,
    ) -> "Predictor":
        """Load `best_model.pth` (or another checkpoint) of a run folder, with the run's decision or the one given.

        `threads` is how many a CPU computes with; without it, one for each idle processor.
        Raises `UnetlibError` when it cannot, and when the decision has still to be chosen.
        """
        model, recipe, content = load_model(run, name)
        decision = decision or read_decision(run, recipe)
        if decision is None:
            raise UnetlibError(
                f"{run}: threshold and smallest component have not been chosen for these weights yet. Let the training "
                f"finish: unetlib train PREPARED {run} (in Python: unetlib.prediction.tuning.tune)"
            )
        fabric = start_engine(device, recipe.precision)
        return cls(fabric, fabric.setup_module(model), recipe, content, decision, threads)

    @torch.inference_mode()
    def slices(self, slices: Tensor) -> Tensor:
        """Return the probability of tumour, float32 (N, 1, S, S) in 0..1, for prepared slices (N, C, S, S).

        With `recipe.mirror` it is the mean over a slice and its mirror image.
        """
        with prediction_threads(self.fabric, self.threads):
            return self._slices(slices)

    def _slices(self, slices: Tensor) -> Tensor:
        self.net.eval()
        found = []
        for start in range(0, len(slices), BATCH):
            batch = self.fabric.to_device(slices[start : start + BATCH])
            seen = torch.sigmoid(self.net(batch)).float()
            if self.recipe.mirror:
                seen = (seen + torch.sigmoid(self.net(batch.flip(-1))).float().flip(-1)) / 2
            found.append(seen.cpu())
        if not torch.isfinite(probabilities := torch.cat(found)).all():
            raise UnetlibError(
                "the network gives NaN: its weights are damaged. Restore the checkpoint, or train again."
            )
        return probabilities

    def volume(self, voxels: np.ndarray) -> np.ndarray:
        """Return the probability of tumour, float32 (X, Y, Z), of every voxel of a volume (X, Y, Z) in LPS order."""
        return slices_to_volume(self.all_slices(voxels), voxels.shape, Window.of(voxels, self.recipe))

    def all_slices(self, voxels: np.ndarray) -> Tensor:
        """Return the probability of tumour, float32 (Z, 1, S, S), on the model's grid of a volume (X, Y, Z)."""
        return self.slices(with_neighbours(image_to_slices(voxels, self.recipe), self.recipe.neighbours))


@takes_paths
def predict(
    run: Path,
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

    The mask is uint8, 0 or 1, with the shape, affine and header of the input, for every slice.
    With `probabilities`, a float32 `<name>_probability.nii.gz` lies beside it. `channel` picks the
    FLAIR volume of a 4-D file. `assume` ("ras" or "lps") is the orientation of images that do not
    say theirs; their masks do not say it either, so that every program shows the two alike. `threads`
    is how many a CPU computes with; without it, one for each idle processor. A mask names the weights
    and the image that it was made from in its header's description; given again, the same call makes
    only what is missing. For research and education, never for clinical use.

    An image that cannot be used, that has the name of another one, or whose mask exists already and was made from
    other weights or another image (unless `overwrite`), does not keep the others from their masks. At the end it is
    named in a `UnetlibError`; so is, at once, a run that cannot be used or a folder that cannot be written.
    """
    weights, kinds = identity(run)[:16], ("mask", "probability") if probabilities else ("mask",)
    predictor, jobs, failed = Predictor.open(run, device, threads=threads), list[_Job](), list[str]()
    images = list({files_of(path): path for path in images}.values())  # .hdr and .img are one image
    for path in images:
        try:
            source = Source((path,), channel, assumption(assume))
            jobs.append(_Job.plan(source, images, out, kinds, weights, overwrite))
        except UnetlibError as error:
            failed.append(str(error))
    done = len(images) - sum(not job.done for job in jobs)
    with progress(len(images), "predict", "image", done) as bar:
        for job in jobs:
            if job.done:
                say(f"{first_of([str(file) for file in job.files])}: there already, from these weights and this image.")
                continue
            try:
                volume = read_volume(job.source)
                volume.require_contrast(str(job.source))
            except Exception as error:  # one strange file must not keep the others from their masks
                failed.append(str(error) if isinstance(error, UnetlibError) else f"{job.source}: {unforeseen(error)}")
                bar.update()
                continue
            found = predictor.volume(volume.voxels)
            mask = predictor.decision.mask(found, volume.spacing)
            results = {"mask": mask.astype(np.uint8), "probability": found}
            for kind, file in zip(kinds, job.files, strict=True):
                _save_like(volume, volume.to_stored(results[kind]), job.origin, file)
                say(str(file))
            bar.update()
    if failed:
        reasons = failed[0] if len(failed) == 1 else "".join(f"\n- {reason}" for reason in failed)
        raise UnetlibError(f"{len(failed)} of {counted(len(images), 'image')} got no mask: {reasons}")
    return [file for job in jobs for file in job.files]


@dataclass(frozen=True)
class _Job:
    """One image to predict: where it is read from, what its header will say, and the files to write."""

    source: Source
    origin: str
    files: list[Path]
    done: bool

    @classmethod
    def plan(
        cls,
        source: Source,
        images: list[Path],
        out: Path,
        kinds: tuple[str, ...],
        weights: str,
        overwrite: bool,
    ) -> "_Job":
        """Return the job of one of `images`; raises `UnetlibError` where it cannot be done."""
        path = source.paths[0]
        require_name(path)
        read_shape(source)
        name = fold(stem(path.name))  # on Windows and macOS A_mask and a_mask are one file
        if others := [str(other) for other in images if other != path and fold(stem(other.name)) == name]:
            raise UnetlibError(
                f"{path} and {first_of(others)} have one name, so their masks would overwrite one another. Predict "
                "them into different folders."
            )
        image = sha256(*files_of(path))[:12]
        origin = ORIGIN.format(weights, image, source.channel or 0, read_assumed(source))
        files = [out / f"{stem(path.name)}_{kind}.nii.gz" for kind in kinds]
        return cls(source, origin, files, not overwrite and _are_done(files, origin))


def identity(run: Path) -> str:
    """Return a SHA-256 of all that a prediction of a run depends on: its best weights and its decision."""
    weights, made = sha256(run / BEST) if (run / BEST).exists() else "", run / FILE
    if not made.exists():
        return weights
    decision = read_json(made)
    return digest([weights, decision.get("threshold"), decision.get("smallest_ml")])


def _are_done(files: list[Path], origin: str) -> bool:
    """Tell whether all files are there; raises `UnetlibError` when one is there that has another origin."""
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
