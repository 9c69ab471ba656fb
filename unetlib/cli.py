"""The words of a command; the work is done in the other modules."""

import argparse
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from unetlib.recipe import PREPARE, PRESETS, TRAIN, TYPES, Recipe, flag
from unetlib.support.command import run_command
from unetlib.support.errors import UnetlibError, counted
from unetlib.support.jobs import first_process, say
from unetlib.support.version import __version__

DESCRIPTION = "Segment brain tumours on MRI with a U-Net. For research and education, never for clinical use."

# Modules are imported where they are used: `--help` and `check` then start without loading torch.


def check(args: argparse.Namespace) -> None:
    """Print what a data folder holds."""
    from unetlib.data.check import check

    report = check(args.data, args.workers, args.assume)
    say(str(report))
    if report.left_out and (args.strict or not report.findings):
        raise UnetlibError(
            f"{counted(len(report.left_out), 'case')} of {args.data} cannot be used, for the reasons above"
            + (", and --strict was given." if report.findings else "; nothing is left to work with.")
        )


def phantom(args: argparse.Namespace) -> None:
    """Write a synthetic cohort."""
    from unetlib.phantom.cohort import make_cohort

    make_cohort(args.out, args.patients, args.seed, args.workers, args.varied)
    say(f"{args.out} holds synthetic patients. Look at what is there with: unetlib check {args.out}")


def prepare(args: argparse.Namespace) -> None:
    """Write slices and split."""
    from unetlib.data.prepare import prepare, prepare_shard

    chosen = PRESETS[args.recipe or "published"].stage(PREPARE)
    recipe = Recipe.published.but(**{**chosen, **_given(args, PREPARE)})  # how it will be trained does not matter yet
    if args.shard:
        cases = prepare_shard(args.data, args.prepared, args.shard, recipe, args.workers, args.assume)
        say(
            f"{args.prepared}: shard {args.shard} is done, {counted(cases, 'case')}. When all are, merge them with the "
            "same command without --shard."
        )
        return
    say(str(prepare(args.data, args.prepared, recipe, args.workers, args.strict, args.rebuild, args.assume)))


def train(args: argparse.Namespace) -> None:
    """Train, or go on training."""
    from unetlib.data.prepare import Prepared
    from unetlib.prediction.tuning import tune
    from unetlib.runs.checkpoint import BEST, caveats, load_checkpoint
    from unetlib.runs.training import recipe_of, train

    slices = Prepared.open(args.prepared).about["recipe"]  # all at once: a flag may need what the slices are
    recipe = (PRESETS[args.recipe] if args.recipe else recipe_of(args.run)).but(**slices, **_given(args, TRAIN))
    if recipe.tune and args.threshold is not None:
        raise UnetlibError(
            "the threshold was given, and with tune it is chosen on validation patients. Leave out --threshold, or say "
            "--no-tune."
        )
    done = train(
        args.prepared,
        args.run,
        recipe,
        args.device,
        args.checkpoint_every,
        args.max_steps,
        start_from=args.start_from,
        threads=args.threads,
    )
    if done.epoch < recipe.epochs:  # --max-steps
        return
    told = ""
    if first_process():
        tune(args.run, args.device, args.threads)
        told = caveats(args.run, load_checkpoint(args.run / BEST))
    trained = (
        f"{args.run}: trained for {counted(done.epoch, 'epoch')} in {done.seconds:.0f} seconds; best validation Dice "
        f"(pooled, prepared slices) {done.best_dice:.4f}."
    )
    say(" ".join(filter(None, (trained, told, f"Judge it with: unetlib evaluate {args.run}"))))


def evaluate(args: argparse.Namespace) -> None:
    """Score a run and print the table."""
    from unetlib.evaluation.evaluate import evaluate, results_table

    say(results_table(evaluate(args.run, args.data, args.split, args.device, args.assume, args.threads)))


def predict(args: argparse.Namespace) -> None:
    """Write a mask for each image."""
    from unetlib.prediction.inference import predict

    given = (args.probabilities, args.channel, args.overwrite, args.device, args.assume, args.threads)
    predict(args.run, args.images, args.out, *given)


def figures(args: argparse.Namespace) -> None:
    """Draw the figures of a run, or of the course."""
    from unetlib.course.start import course_figures
    from unetlib.show.plots import make_figures

    for path in make_figures(args.run, args.out, args.device) if args.run else course_figures(args.out, args.device):
        say(str(path))


def card(args: argparse.Namespace) -> None:
    """Write the model card of a run."""
    from unetlib.show.card import write_card

    say(str(write_card(args.run, args.out, args.device)))


def lab(args: argparse.Namespace) -> None:
    """Open JupyterLab on the notebooks."""
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
    """Return the parser of all commands; the recipe's fields become flags by themselves."""
    parser = argparse.ArgumentParser("unetlib", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"unetlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=text, description=f"{text}. {DESCRIPTION.split('. ')[1]}")
        sub.set_defaults(function=function)
        return sub

    sub = command(check, "say what a data folder (or .tar) holds, and what cannot be used")
    sub.add_argument("data", type=_path, metavar="DATA", help="folder of patients, in any of the known layouts")
    _assume(sub)
    _workers(sub)
    _strict(sub)

    sub = command(phantom, "make a synthetic cohort in BraTS 2021 layout")
    sub.add_argument("out", type=_path, metavar="OUT", help="folder to write")
    sub.add_argument("--patients", type=int, default=24, metavar="N", help="how many (default: %(default)s)")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="other seeds give other patients")
    sub.add_argument(
        "--varied", action="store_true", help="FLAIR as scanners vary it: heads, thick slices, other contrasts"
    )
    _workers(sub)

    sub = command(prepare, "turn volumes into slices on disk, split by patient")
    sub.add_argument("data", type=_path, metavar="DATA", help="folder of patients, or its .tar")
    sub.add_argument("prepared", type=_path, metavar="PREPARED", help="folder to write")
    _recipe_flags(sub, PREPARE)
    sub.add_argument("--shard", metavar="I/N", help="do only the I-th of N shares; without it, merge what is there")
    sub.add_argument("--rebuild", action="store_true", help="replace what was prepared with another recipe or data")
    _assume(sub)
    _workers(sub)
    _strict(sub)

    sub = command(train, "train a U-Net, or go on where it was stopped")
    sub.add_argument("prepared", type=_path, metavar="PREPARED", help="folder made by `unetlib prepare`")
    sub.add_argument("run", type=_path, metavar="RUN", help="folder of the run; resumed when it exists")
    _recipe_flags(sub, TRAIN)
    sub.add_argument("--start-from", type=_path, metavar="OTHER", help="run whose best weights to begin with")
    sub.add_argument("--checkpoint-every", type=_positive, default=100, metavar="STEPS", help="default: %(default)s")
    sub.add_argument(
        "--max-steps", type=_positive, metavar="STEPS", help="do no more than so many now, then a checkpoint"
    )
    _device(sub)
    _threads(sub, "measured, and kept in the run")

    sub = command(evaluate, "score a run on test patients and print one table")
    sub.add_argument("run", type=_path, metavar="RUN", help="folder made by `unetlib train`")
    sub.add_argument("--data", type=_path, metavar="OTHER", help="another folder of patients (default: the run's own)")
    sub.add_argument("--split", choices=("test", "val", "train", "all"), help="default: test, or all unseen in OTHER")
    _assume(sub)
    _device(sub)
    _threads(sub, "one for each idle processor")

    sub = command(predict, "write a tumour mask for NIfTI images")
    sub.add_argument("run", type=_path, metavar="RUN", help="folder made by `unetlib train`")
    sub.add_argument("images", type=_path, nargs="+", metavar="IMAGE", help="FLAIR volume, .nii or .nii.gz")
    sub.add_argument("--out", type=_path, required=True, metavar="DIR", help="folder to write to")
    sub.add_argument("--probabilities", action="store_true", help="write the probability of every voxel, too")
    sub.add_argument("--channel", type=int, choices=range(8), metavar="N", help="which volume of a 4-D image is FLAIR")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    _assume(sub)
    _device(sub)
    _threads(sub, "one for each idle processor")

    sub = command(figures, "draw curves, metrics, the network and overlays of an evaluated run")
    sub.add_argument("run", type=_path, nargs="?", metavar="RUN", help="its folder (default: the notebooks' own run)")
    sub.add_argument("--out", type=_path, metavar="DIR", help="default: RUN/figures, or figures/ of the repository")
    _device(sub)

    sub = command(card, "write a model card: what a run was trained on, its figures, its failures and its limits")
    sub.add_argument("run", type=_path, metavar="RUN", help="folder made by `unetlib train`; evaluated where it is not")
    sub.add_argument("--out", type=_path, metavar="DIR", help="folder of README.md and pictures (default: RUN/card)")
    _device(sub)

    command(lab, "open JupyterLab on the notebooks; its own flags, such as --no-browser, are passed on")

    sub = command(course, "run all notebooks, and leave each as a page that opens without a network")
    sub.add_argument("--data", type=_path, metavar="DATA", help="folder of patients (default: a synthetic cohort)")
    _assume(sub)
    sub.add_argument("--out", type=_path, default=Path("course"), metavar="DIR", help="default: %(default)s")
    sub.add_argument("--refresh", action="store_true", help="renew the notebooks' own outputs instead")
    return parser


def _recipe_flags(parser: argparse.ArgumentParser, stage: str) -> None:
    group = parser.add_argument_group("recipe (the defaults are the published one, at width 32)")
    group.add_argument("--recipe", choices=PRESETS, help="start from the defaults (published), or from a stronger set")
    for spec in fields(Recipe):
        if spec.metadata["stage"] != stage:
            continue
        text = f"{spec.metadata['help']} (default: {spec.default})".replace("%", "%%")
        if TYPES[spec.name] == (bool,):
            group.add_argument(flag(spec.name), dest=spec.name, action=argparse.BooleanOptionalAction, help=text)
            continue
        choices, kind = spec.metadata["choices"], TYPES[spec.name][-1]
        metavar = None if choices else kind.__name__.upper()
        group.add_argument(flag(spec.name), dest=spec.name, type=kind, choices=choices, metavar=metavar, help=text)


def _given(args: argparse.Namespace, stage: str) -> dict[str, Any]:
    """Return the recipe's fields that were named on the command line."""
    return {name: getattr(args, name) for name in Recipe.published.stage(stage) if getattr(args, name) is not None}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the words of a command; a field of the recipe that was given to another command is told where to go."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    args.flags = unknown
    if unknown and args.function is not lab:
        stages = {flag(name): stage for stage in (PREPARE, TRAIN) for name in Recipe.published.stage(stage)}
        told = "".join(f". {word} is a flag of `unetlib {stages[word]}`" for word in unknown if word in stages)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{told}")
    return args


def _path(text: str) -> Path:
    """Return a path whose `~`, which no shell expands in --out=~/masks, is the user's folder."""
    if not text:  # which `Path` takes for the working directory
        raise argparse.ArgumentTypeError("an empty text was given where a path was expected")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: there is no user of that name") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="processes (default: one for each idle processor, fewer for little work)",
    )


def _strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="stop at a patient who cannot be used")


def _assume(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    for assume, where in (("ras", "right, front and head"), ("lps", "left, back and head")):
        text = f"in files that do not say their orientation, the axes run to the patient's {where}"
        group.add_argument(f"--assume-{assume}", dest="assume", action="store_const", const=assume, help=text)


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)")


def _threads(parser: argparse.ArgumentParser, default: str) -> None:
    text = f"threads that a CPU computes with (default: OMP_NUM_THREADS, else {default})"
    parser.add_argument("--threads", type=_positive, metavar="N", help=text)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; bad input ends with a sentence and status 1, a stop (SIGINT, SIGTERM) with status 130."""
    run_command(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> None:
    args = _parse(arguments)
    if os.environ.get("WORLD_SIZE", "1") != "1" and args.function is not train:
        raise UnetlibError(f"`unetlib {args.function.__name__}` is one process. Start it without torchrun.")
    args.function(args)
