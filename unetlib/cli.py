"""The command line: every command with its flags."""

import argparse
from collections.abc import Callable
from pathlib import Path

from unetlib import commands
from unetlib.recipe import OF_PATIENTS, PREDICT, PREPARE, TRAIN, Recipe
from unetlib.recipe_flags import add_field_flags, add_recipe_flags
from unetlib.support import flags
from unetlib.support.command import BEGINS_ANEW, GOES_ON, run_command
from unetlib.support.errors import UnetlibError
from unetlib.support.fields import flag
from unetlib.support.messages import process_count
from unetlib.support.version import __version__

DESCRIPTION = "Segment brain tumours on MRI with a U-Net. For research and education, never for clinical use."
SHIPPED = "phantoms, the weights that come with the library"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; every field of the recipe becomes a flag."""
    parser = argparse.ArgumentParser("unetlib", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"unetlib {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").removesuffix(".")
        text = text[:1].lower() + text[1:]
        sub = subparsers.add_parser(function.__name__, help=text, description=f"{text}. {DESCRIPTION.split('. ')[1]}")
        sub.set_defaults(function=function)
        return sub

    sub = command(commands.check)
    sub.add_argument("data", type=flags.path, metavar="DATA", help="folder of patients, in any of the known layouts")
    text = "sequences that a case must have, of flair, t1, t1ce and t2 (default: flair)"
    sub.add_argument("--modalities", nargs="+", action=flags.Words, default="flair", metavar="M", help=text)
    flags.assume(sub)
    flags.workers(sub)
    flags.strict(sub)

    sub = command(commands.phantom)
    sub.add_argument("out", type=flags.path, metavar="OUT", help="folder to write")
    sub.add_argument("--patients", type=int, default=24, metavar="N", help="how many (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="other seeds give other patients")
    text = "as varied as hospital scans: heads, thick slices, random contrasts"
    sub.add_argument("--varied", action="store_true", help=text)
    text = "sequences to write, of flair, t1, t1ce and t2 (default: all; with --varied flair and label 2 alone)"
    sub.add_argument("--modalities", nargs="+", action=flags.Words, metavar="M", help=text)
    flags.workers(sub)

    sub = command(commands.prepare)
    sub.add_argument("data", type=flags.path, metavar="DATA", help="folder of patients, or its .tar")
    sub.add_argument("prepared", type=flags.path, metavar="PREPARED", help="folder to write")
    add_recipe_flags(sub, PREPARE)
    sub.add_argument("--shard", metavar="I/N", help="do only shard I of N; without it, merge the shards")
    sub.add_argument("--rebuild", action="store_true", help="replace what was prepared with another recipe or data")
    flags.assume(sub)
    flags.workers(sub)
    flags.strict(sub)

    sub = command(commands.train)
    text = "folder made by `unetlib prepare`, or of patients, which are then prepared in RUN-prepared"
    sub.add_argument("prepared", type=flags.path, metavar="PREPARED", help=text)
    sub.add_argument("run", type=flags.path, metavar="RUN", help="folder of the run; resumed when it exists")
    add_recipe_flags(sub, TRAIN, PREDICT)
    text = f"run whose best weights to start from, or {SHIPPED}"
    sub.add_argument("--start-from", type=flags.path, metavar="OTHER", help=text)
    sub.add_argument(
        "--checkpoint-every", type=flags.positive, default=100, metavar="STEPS", help="default: %(default)s"
    )
    text = "do at most this many now, then save a checkpoint"
    sub.add_argument("--max-steps", type=flags.positive, metavar="STEPS", help=text)
    flags.device(sub)
    flags.threads(sub, "that of the run, else one for each idle processor")

    sub = command(commands.export)
    text = "folder of patients, or one made by `unetlib prepare`, whose split, sequences and regions are then used"
    sub.add_argument("data", type=flags.path, metavar="DATA", help=text)
    text = "folder to write, with a name such as Dataset501_Tumours, in the folder nnUNet_raw"
    sub.add_argument("out", type=flags.path, metavar="OUT", help=text)
    sub.add_argument("--nnunet", action="store_true", required=True, help="in the layout of nnU-Net 2")
    add_field_flags(sub.add_argument_group("recipe"), OF_PATIENTS)
    flags.assume(sub)
    flags.workers(sub)

    sub = command(commands.networks)
    sub.add_argument("--image-size", type=flags.positive, default=96, metavar="S", help="default: %(default)s")
    sub.add_argument("--dims", type=int, choices=(2, 3), default=2, help="slices or volumes (default: %(default)s)")

    sub = command(commands.evaluate)
    sub.add_argument("run", type=flags.path, metavar="RUN", help=f"folder made by `unetlib train`, or {SHIPPED}")
    flags.others(sub)
    text = "another folder of patients (default: the run's own)"
    sub.add_argument("--data", type=flags.path, metavar="DATA", help=text)
    sub.add_argument("--split", choices=("test", "val", "train", "all"), help="default: test, or all unseen in DATA")
    flags.assume(sub)
    flags.device(sub)
    flags.threads(sub, "one for each idle processor")

    sub = command(commands.score)
    text = "folder of NIfTI masks, named as the cases of DATA (CASE.nii.gz, CASE_mask.nii.gz, CASE/...), or one mask"
    sub.add_argument("masks", type=flags.path, metavar="MASKS", help=text)
    sub.add_argument("data", type=flags.path, metavar="DATA", help="folder of patients with their reference masks")
    sub.add_argument("--out", type=flags.path, metavar="DIR", help="folder to write (default: MASKS-scores)")
    text = "regions to score, as in `unetlib prepare` (default: whole); MASKS then have the labels of DATA"
    sub.add_argument("--regions", nargs="+", action=flags.Words, default="whole", metavar="NAME", help=text)
    text = "what these labels are, where the names of the files do not show it: auto, brats2021, brats2023 or decathlon"
    sub.add_argument("--labels", default="auto", metavar="SCHEME", help=text)
    flags.assume(sub)

    sub = command(commands.predict)
    sub.add_argument("run", type=flags.path, metavar="RUN", help=f"folder made by `unetlib train`, or {SHIPPED}")
    flags.others(sub)
    text = "FLAIR volume, .nii or .nii.gz, or a folder (or .tar) of patients with all sequences that RUN sees"
    positional = sub.add_argument("images", type=flags.path, nargs="+", default=[], metavar="IMAGE", help=text)
    positional.required = False  # with nargs="*", argparse would not find them after a flag
    sub.usage = f"{sub.prog} RUN [IMAGE ...] [--image NAME=FILE ...] --out DIR [flags below]"
    text = "the images of one patient, such as flair=a.nii.gz t1=b.nii.gz; once for each patient"
    sub.add_argument("--image", dest="files", nargs="+", action=flags.Files, default=[], metavar="NAME=FILE", help=text)
    sub.add_argument("--out", type=flags.path, required=True, metavar="DIR", help="folder to write to")
    sub.add_argument("--probabilities", action="store_true", help="also write the probability of every voxel")
    sub.add_argument("--channel", type=int, choices=range(8), metavar="N", help="which volume of a 4-D image is FLAIR")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    flags.assume(sub)
    flags.device(sub)
    flags.threads(sub, "one for each idle processor")

    sub = command(commands.figures)
    sub.add_argument("run", type=flags.path, metavar="RUN", help="its folder")
    sub.add_argument("--out", type=flags.path, metavar="DIR", help="default: RUN/figures")
    flags.device(sub)

    sub = command(commands.card)
    text = "folder made by `unetlib train`; evaluated first if necessary"
    sub.add_argument("run", type=flags.path, metavar="RUN", help=text)
    sub.add_argument("--out", type=flags.path, metavar="DIR", help="folder of README.md and images (default: RUN/card)")
    flags.device(sub)

    command(commands.lab)

    sub = command(commands.course)
    sub.add_argument("--data", type=flags.path, metavar="DATA", help="folder of patients (default: a synthetic cohort)")
    flags.assume(sub)
    sub.add_argument("--out", type=flags.path, default=Path("course"), metavar="DIR", help="default: %(default)s")
    sub.add_argument("--refresh", action="store_true", help="update the notebooks' own outputs instead")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run one command; bad input ends with a message and status 1, a stop (SIGINT, SIGTERM) with status 130."""
    args = _parse(arguments)
    anew = args.function in (commands.check, commands.networks, commands.lab) or getattr(args, "refresh", False)
    run_command(lambda: _run(args), BEGINS_ANEW if anew else GOES_ON)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    args.flags = unknown
    if unknown and args.function is not commands.lab:  # perhaps of another command, which is then named
        homes = {PREPARE: PREPARE, TRAIN: TRAIN, PREDICT: TRAIN}
        stages = {flag(name): homes[stage] for stage in homes for name in Recipe.published.stage(stage)}
        hints = "".join(f". {word} is a flag of `unetlib {stages[word]}`" for word in unknown if word in stages)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hints}")
    return args


def _run(args: argparse.Namespace) -> None:
    if process_count() > 1 and args.function is not commands.train:
        raise UnetlibError(f"`unetlib {args.function.__name__}` runs in one process. Start it without torchrun.")
    args.function(args)
