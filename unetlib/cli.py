"""The command line: parses arguments and calls the other modules."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import unetlib
from unetlib.presets import PRESETS, USUAL
from unetlib.recipe import PREDICT, PREPARE, SAMPLE_NAMES, TRAIN, Recipe
from unetlib.recipe_flags import add_recipe_flags, given
from unetlib.support import flags
from unetlib.support.command import run_command
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.fields import flag
from unetlib.support.messages import first_process, say, show_messages
from unetlib.support.version import __version__

DESCRIPTION = "Segment brain tumours on MRI with a U-Net. For research and education, never for clinical use."
SHIPPED = "phantoms, the weights that come with the library"

# `unetlib.name` and the imports in functions load a module where it is used, so that `--help` starts without torch.


def check(args: argparse.Namespace) -> None:
    """Print what a data folder holds."""
    report = unetlib.check(args.data, args.workers, args.assume)
    say(str(report))
    if report.left_out and (args.strict or not report.findings):
        raise UnetlibError(
            f"{counted(len(report.left_out), 'case')} of {args.data} cannot be used, for the reasons above"
            + (", and --strict was given." if report.findings else "; no usable case is left.")
        )


def phantom(args: argparse.Namespace) -> None:
    """Write a synthetic cohort."""
    chosen = " ".join(args.modalities) if args.modalities else None
    unetlib.make_cohort(args.out, args.patients, args.seed, args.workers, args.varied, chosen)
    say(f"{args.out} holds synthetic patients. To see what is there: unetlib check {args.out}")


def prepare(args: argparse.Namespace) -> None:
    """Write slices and split."""
    from unetlib.data.prepare import prepare_shard

    chosen = PRESETS[args.recipe or USUAL[args.dims or 2]].stage(PREPARE)
    recipe = Recipe.published.but(**{**chosen, **given(args, PREPARE)})  # the training fields do not matter yet
    if args.shard:
        cases = prepare_shard(args.data, args.prepared, args.shard, recipe, args.workers, args.assume)
        say(
            f"{args.prepared}: shard {args.shard} is done, {counted(cases, 'case')}. When all are, merge them with the "
            "same command without --shard."
        )
        return
    say(str(unetlib.prepare(args.data, args.prepared, recipe, args.workers, args.strict, args.rebuild, args.assume)))


def train(args: argparse.Namespace) -> None:
    """Train, or resume training; a folder of patients is prepared first."""
    from unetlib.data.prepare import holds_patients
    from unetlib.pipeline import run_recipe

    run, folder = unetlib.Run.of(args.run), args.prepared
    before = PRESETS[args.recipe] if args.recipe else run.recipe if run.exists else None
    if holds_patients(args.prepared):
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UnetlibError(
                f"{args.prepared} is not prepared, and torchrun starts several processes. Prepare first."
            )
        folder = run.folder.with_name(f"{run.folder.name}-prepared")
        unetlib.prepare(args.prepared, folder, before or Recipe.published)
    slices = unetlib.Prepared.open(folder).about["recipe"]
    before = before or PRESETS[USUAL[slices["dims"]]]
    recipe = before.but(**slices, **given(args, TRAIN, PREDICT))  # all at once: a flag may depend on the slices
    if recipe.tune and args.threshold is not None:
        raise UnetlibError(
            "a threshold was given, but tune chooses it on the validation patients. Leave out --threshold, or add "
            "--no-tune."
        )
    training = {name: getattr(args, name) for name in ("checkpoint_every", "max_steps", "start_from")}
    state = run_recipe(recipe, folder, run, device=args.device, threads=args.threads, **training).state
    if state.epoch < recipe.epochs:  # --max-steps
        return
    trained = (
        f"{run}: trained for {counted(state.epoch, 'epoch')} in {state.seconds:.0f} seconds; best validation Dice "
        f"(pooled, prepared {SAMPLE_NAMES[recipe.dims]}s) {state.best_dice:.4f}."
    )
    caveats = run.caveats() if first_process() else ""
    say(" ".join(filter(None, (trained, caveats, f"Score it with: unetlib evaluate {run}"))))


def evaluate(args: argparse.Namespace) -> None:
    """Score a run and print the table."""
    from unetlib.evaluation.table import results_table

    runs = [args.run, *args.others]
    say(results_table(unetlib.evaluate(runs, args.data, args.split, args.device, args.assume, args.threads)))


def score(args: argparse.Namespace) -> None:
    """Score the masks of any tool and print the table."""
    from unetlib.evaluation.table import results_table

    say(results_table(unetlib.score(args.masks, args.data, args.out, args.assume, args.regions, args.labels)))


def predict(args: argparse.Namespace) -> None:
    """Write a mask for each image or patient."""
    options = (args.probabilities, args.channel, args.overwrite, args.device, args.assume, args.threads)
    unetlib.predict([args.run, *args.others], [*args.images, *args.files], args.out, *options)


def figures(args: argparse.Namespace) -> None:
    """Draw the figures of a run."""
    for path in unetlib.plots.make_figures(args.run, args.out, args.device):
        say(str(path))


def card(args: argparse.Namespace) -> None:
    """Write the model card of a run."""
    from unetlib.show.card import write_card

    say(str(write_card(args.run, args.out, args.device)))


def lab(args: argparse.Namespace) -> None:
    """Open JupyterLab with the notebooks."""
    from unetlib.course.chapters import open_lab

    open_lab(args.flags)


def course(args: argparse.Namespace) -> None:
    """Run the notebooks."""
    from unetlib.course.chapters import refresh_notebooks, run_course

    if args.refresh:
        refresh_notebooks()
    else:
        run_course(args.out, args.data, args.assume)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; every field of the recipe becomes a flag."""
    parser = argparse.ArgumentParser("unetlib", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"unetlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=text, description=f"{text}. {DESCRIPTION.split('. ')[1]}")
        sub.set_defaults(function=function)
        return sub

    sub = command(check, "report what a data folder (or .tar) holds, and what cannot be used")
    sub.add_argument("data", type=flags.path, metavar="DATA", help="folder of patients, in any of the known layouts")
    flags.assume(sub)
    flags.workers(sub)
    flags.strict(sub)

    sub = command(phantom, "make a synthetic cohort in BraTS 2021 layout")
    sub.add_argument("out", type=flags.path, metavar="OUT", help="folder to write")
    sub.add_argument("--patients", type=int, default=24, metavar="N", help="how many (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="other seeds give other patients")
    sub.add_argument(
        "--varied", action="store_true", help="as varied as hospital scans: heads, thick slices, random contrasts"
    )
    sub.add_argument(
        "--modalities",
        nargs="+",
        metavar="M",
        help="sequences to write, of flair, t1, t1ce and t2 (default: all; with --varied flair and label 2 alone)",
    )
    flags.workers(sub)

    sub = command(prepare, "turn volumes into slices, or cubes for 3-D networks, on disk, split by patient")
    sub.add_argument("data", type=flags.path, metavar="DATA", help="folder of patients, or its .tar")
    sub.add_argument("prepared", type=flags.path, metavar="PREPARED", help="folder to write")
    add_recipe_flags(sub, PREPARE)
    sub.add_argument("--shard", metavar="I/N", help="do only shard I of N; without it, merge the shards")
    sub.add_argument("--rebuild", action="store_true", help="replace what was prepared with another recipe or data")
    flags.assume(sub)
    flags.workers(sub)
    flags.strict(sub)

    sub = command(train, "train a U-Net, or resume a stopped training")
    text = "folder made by `unetlib prepare`, or of patients, which are then prepared in RUN-prepared"
    sub.add_argument("prepared", type=flags.path, metavar="PREPARED", help=text)
    sub.add_argument("run", type=flags.path, metavar="RUN", help="folder of the run; resumed when it exists")
    add_recipe_flags(sub, TRAIN, PREDICT)
    sub.add_argument(
        "--start-from", type=flags.path, metavar="OTHER", help=f"run whose best weights to start from, or {SHIPPED}"
    )
    sub.add_argument(
        "--checkpoint-every", type=flags.positive, default=100, metavar="STEPS", help="default: %(default)s"
    )
    sub.add_argument(
        "--max-steps", type=flags.positive, metavar="STEPS", help="do at most this many now, then save a checkpoint"
    )
    flags.device(sub)
    flags.threads(sub, "that of the run, else one for each idle processor")

    sub = command(evaluate, "score a run on test patients and print one table")
    sub.add_argument("run", type=flags.path, metavar="RUN", help="folder made by `unetlib train`")
    flags.others(sub)
    sub.add_argument(
        "--data", type=flags.path, metavar="OTHER", help="another folder of patients (default: the run's own)"
    )
    sub.add_argument("--split", choices=("test", "val", "train", "all"), help="default: test, or all unseen in OTHER")
    flags.assume(sub)
    flags.device(sub)
    flags.threads(sub, "one for each idle processor")

    sub = command(score, "score the masks of any tool, and draw the best, median and worst patient")
    text = "folder of NIfTI masks, named as the cases of DATA (CASE.nii.gz, CASE_mask.nii.gz, CASE/...), or one mask"
    sub.add_argument("masks", type=flags.path, metavar="MASKS", help=text)
    sub.add_argument("data", type=flags.path, metavar="DATA", help="folder of patients with their reference masks")
    sub.add_argument("--out", type=flags.path, metavar="DIR", help="folder to write (default: MASKS-scores)")
    text = "regions to score, as in `unetlib prepare` (default: whole); MASKS then have the labels of DATA"
    sub.add_argument("--regions", nargs="+", action=flags.Words, default="whole", metavar="NAME", help=text)
    text = "what these labels are, where the names of the files do not show it: auto, brats2021, brats2023 or decathlon"
    sub.add_argument("--labels", default="auto", metavar="SCHEME", help=text)
    flags.assume(sub)

    sub = command(predict, "write a tumour mask for NIfTI images")
    sub.add_argument("run", type=flags.path, metavar="RUN", help=f"folder made by `unetlib train`, or {SHIPPED}")
    flags.others(sub)
    text = "FLAIR volume, .nii or .nii.gz, or a folder of patients with all sequences that RUN sees"
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

    sub = command(figures, "draw curves, metrics, the network and overlays of a run, evaluated first if necessary")
    sub.add_argument("run", type=flags.path, metavar="RUN", help="its folder")
    sub.add_argument("--out", type=flags.path, metavar="DIR", help="default: RUN/figures")
    flags.device(sub)

    sub = command(card, "write a model card: what a run was trained on, its scores, its failures and its limits")
    sub.add_argument(
        "run", type=flags.path, metavar="RUN", help="folder made by `unetlib train`; evaluated first if necessary"
    )
    sub.add_argument("--out", type=flags.path, metavar="DIR", help="folder of README.md and images (default: RUN/card)")
    flags.device(sub)

    command(lab, "open JupyterLab with the notebooks; flags of JupyterLab, such as --no-browser, are passed on")

    sub = command(course, "run all notebooks, and save each as a page that opens without a network")
    sub.add_argument("--data", type=flags.path, metavar="DATA", help="folder of patients (default: a synthetic cohort)")
    flags.assume(sub)
    sub.add_argument("--out", type=flags.path, default=Path("course"), metavar="DIR", help="default: %(default)s")
    sub.add_argument("--refresh", action="store_true", help="update the notebooks' own outputs instead")
    return parser


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the arguments of a command; a flag of another command is refused with the name of that command."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    args.flags = unknown
    if unknown and args.function is not lab:
        commands = {PREPARE: PREPARE, TRAIN: TRAIN, PREDICT: TRAIN}
        stages = {flag(name): commands[stage] for stage in commands for name in Recipe.published.stage(stage)}
        hints = "".join(f". {word} is a flag of `unetlib {stages[word]}`" for word in unknown if word in stages)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hints}")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run one command; bad input ends with a message and status 1, a stop (SIGINT, SIGTERM) with status 130."""
    run_command(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> None:
    args = _parse(arguments)
    if os.environ.get("WORLD_SIZE", "1") != "1" and args.function is not train:
        raise UnetlibError(f"`unetlib {args.function.__name__}` runs in one process. Start it without torchrun.")
    show_messages()
    args.function(args)
