"""What each command of the command line does with its arguments; the docstring is its help."""

import argparse

import unetlib
from unetlib.presets import PRESETS, USUAL
from unetlib.recipe import PREDICT, PREPARE, SAMPLE_NAMES, TRAIN, Recipe
from unetlib.recipe_flags import given
from unetlib.support.errors import UnetlibError, counted, quoted
from unetlib.support.fields import flag
from unetlib.support.messages import first_process, process_count, say

# `unetlib.name` and the imports in functions load a module where it is used, so that `--help` starts without torch.


def check(args: argparse.Namespace) -> None:
    """Report what a data folder (or .tar) holds, and what cannot be used."""
    report = unetlib.check(args.data, args.workers, args.assume, args.modalities)
    say(str(report))
    if report.left_out and (args.strict or not report.findings):
        raise UnetlibError(
            f"{counted(len(report.left_out), 'case')} of {args.data} cannot be used, for the reasons above"
            + (", and --strict was given." if report.findings else "; no usable case is left.")
        )


def phantom(args: argparse.Namespace) -> None:
    """Make a synthetic cohort in BraTS 2021 layout."""
    unetlib.make_cohort(args.out, args.patients, args.seed, args.workers, args.varied, args.modalities)
    say(f"{args.out} holds synthetic patients. To see what is there: unetlib check {quoted(args.out)}")


def prepare(args: argparse.Namespace) -> None:
    """Turn volumes into slices, or cubes for 3-D networks, on disk, split by patient."""
    from unetlib.data.prepare import prepare_shard

    chosen = PRESETS[args.recipe or USUAL[args.dims or 2]].stage(PREPARE)
    recipe = Recipe.published.but(**{**chosen, **given(args, PREPARE)})  # the training fields do not matter yet
    if args.shard:
        cases = prepare_shard(args.data, args.prepared, args.shard, recipe, args.workers, args.assume, args.strict)
        say(
            f"{args.prepared}: shard {args.shard} is done, {counted(cases, 'case')}. When all are, merge them with the "
            "same command without --shard."
        )
        return
    say(str(unetlib.prepare(args.data, args.prepared, recipe, args.workers, args.strict, args.rebuild, args.assume)))


def train(args: argparse.Namespace) -> None:
    """Train a U-Net or another network, or resume a stopped training."""
    from unetlib.data.prepare import holds_patients
    from unetlib.pipeline import run_recipe
    from unetlib.runs.plan import require_plan

    run, folder = unetlib.Run.of(args.run), args.prepared
    before = PRESETS[args.recipe] if args.recipe else run.recipe if run.exists else None
    if holds_patients(args.prepared):
        if process_count() > 1:
            raise UnetlibError(
                f"{args.prepared} is not prepared, and torchrun starts several processes. Prepare first."
            )
        there = run.folder if run.folder.name.strip(".") else run.folder.resolve()
        folder = there.parent / f"{there.name}-prepared"
        chosen = before or Recipe.published
        planned = chosen.but(**given(args, TRAIN, PREDICT))
        _refuse_threshold(planned, args)  # now, not after hours
        require_plan(run, planned, args.device, args.start_from, args.threads)
        unetlib.prepare(args.prepared, folder, planned)
    prepared = unetlib.Prepared.open(folder)
    dims = prepared.about["recipe"]["dims"]
    if run.exists and run.recipe.dims != dims:
        raise UnetlibError(
            f"{run} sees {SAMPLE_NAMES[run.recipe.dims]}s, and {folder} holds {SAMPLE_NAMES[dims]}s (dims {dims}). "
            "Choose a new run folder, or use what the run was started with."
        )
    # all at once: a flag may depend on the slices
    recipe = prepared.fit(before or PRESETS[USUAL[dims]], **given(args, TRAIN, PREDICT))
    _refuse_threshold(recipe, args)
    training = {name: getattr(args, name) for name in ("checkpoint_every", "max_steps", "start_from")}
    state = run_recipe(recipe, folder, run, device=args.device, threads=args.threads, **training).state
    if state.epoch < recipe.epochs:  # --max-steps
        return
    means = {"member": recipe.members, "region": len(recipe.regions.split())}
    mean = " and ".join(f"{number} {name}s" for name, number in means.items() if number > 1)
    trained = (
        f"{run}: trained for {counted(state.epoch, 'epoch')} in {state.seconds:.0f} seconds; best validation Dice "
        f"({f'mean of {mean}, ' if mean else ''}pooled, prepared {SAMPLE_NAMES[recipe.dims]}s) {state.best_dice:.4f}."
    )
    caveats = run.caveats() if first_process() else ""
    say(" ".join(filter(None, (trained, caveats, f"Score it with: unetlib evaluate {quoted(run)}"))))


def _refuse_threshold(recipe: Recipe, args: argparse.Namespace) -> None:
    if recipe.tune and args.threshold is not None:
        raise UnetlibError(
            "a threshold was given, but tune chooses it on the validation patients. Leave out --threshold, or add "
            "--no-tune."
        )


def export(args: argparse.Namespace) -> None:
    """Write patients for nnU-Net, with the split of `unetlib prepare`."""
    from unetlib.data.export import export_nnunet
    from unetlib.data.prepared import PREPARED_FILE

    chosen, data, assume = given(args, PREPARE), args.data, args.assume
    recipe = Recipe.published.but(**chosen)
    if (data / PREPARED_FILE).exists():
        if chosen:
            raise UnetlibError(
                f"{data} is prepared, and says itself what {', '.join(map(flag, chosen))} is. Leave the flags out, "
                "or name the folder of the patients."
            )
        prepared = unetlib.Prepared.open(data)
        recipe = prepared.reading
        data, assume = prepared.data, prepared.assume or assume
    about = export_nnunet(args.data, args.out, Recipe.published.but(**chosen), args.workers, args.assume)
    scoring = ["unetlib score MASKS", quoted(data), *([f"--assume-{assume}"] if assume else [])]
    for name in ("regions", "labels"):
        if (value := getattr(recipe, name)) != getattr(Recipe.published, name):
            scoring += [flag(name), *map(quoted, value.split())]
    say(
        f"{args.out}: {about['numTraining']} cases for training and validation in imagesTr, those for testing in "
        "imagesTs. After nnUNetv2_plan_and_preprocess, copy splits_final.json to the folder of this data set in "
        f"nnUNet_preprocessed, and train fold 0. Score what nnU-Net predicts with: {' '.join(scoring)}"
    )


def networks(args: argparse.Namespace) -> None:
    """List the networks by name, and measure what a training step of each costs on this machine."""
    from unetlib.engine.costs import costs_table

    if args.dims == 3:
        minutes = counted(max(1, round(3 * (args.image_size / 96) ** 3)), "minute")  # as measured on an AMD EPYC
        say(f"Steps on whole volumes are slow: this takes about {minutes} on an idle core, longer beside other work.")
    say(costs_table(args.image_size, args.dims))


def evaluate(args: argparse.Namespace) -> None:
    """Score a run on test patients and print one table."""
    from unetlib.evaluation.table import results_table

    runs = [args.run, *args.others]
    say(results_table(unetlib.evaluate(runs, args.data, args.split, args.device, args.assume, args.threads)))


def score(args: argparse.Namespace) -> None:
    """Score the masks of any tool, and draw the best, median and worst patient."""
    from unetlib.evaluation.table import results_table

    say(results_table(unetlib.score(args.masks, args.data, args.out, args.assume, args.regions, args.labels)))


def predict(args: argparse.Namespace) -> None:
    """Write a tumour mask for NIfTI images."""
    options = (args.probabilities, args.channel, args.overwrite, args.device, args.assume, args.threads)
    unetlib.predict([args.run, *args.others], [*args.images, *args.files], args.out, *options)


def figures(args: argparse.Namespace) -> None:
    """Draw curves, metrics, the network and overlays of a run, evaluated first if necessary."""
    for path in unetlib.plots.make_figures(args.run, args.out, args.device):
        say(str(path))


def card(args: argparse.Namespace) -> None:
    """Write a model card: what a run was trained on, its scores, its failures and its limits."""
    from unetlib.show.card import write_card

    say(str(write_card(args.run, args.out, args.device)))


def lab(args: argparse.Namespace) -> None:
    """Open JupyterLab with the notebooks; flags of JupyterLab, such as --no-browser, are passed on."""
    from unetlib.course.chapters import open_lab

    open_lab(args.flags)


def course(args: argparse.Namespace) -> None:
    """Run all notebooks, and save each as a page that opens offline."""
    from unetlib.course.chapters import refresh_notebooks, run_course

    if args.refresh:
        refresh_notebooks()
    else:
        run_course(args.out, args.data, args.assume)
