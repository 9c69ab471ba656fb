"""The model card of a run: what it was trained on, how it was evaluated, where it fails, what it is not for.

The text is in `card.md.j2`. Source of the idea and of the sections: M. Mitchell et al., "Model Cards for Model
Reporting", FAT* 2019.
"""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, UndefinedError

from unetlib.data.layouts import KAGGLE
from unetlib.data.split import PARTS, Split
from unetlib.data.volumes import read_volume
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.summary import SLICES_FILE, interval_remark
from unetlib.evaluation.table import distance_text, read_patients
from unetlib.evaluation.unseen import divided_note
from unetlib.metrics import COUNTS, millilitres
from unetlib.other_networks import how_made, parameter_count
from unetlib.prediction.decision import read_decision
from unetlib.recipe import PREPARE, SAMPLE_NAMES, SEQUENCES, STAGES, TRAIN, Recipe
from unetlib.runs.checkpoint import load_checkpoint, previous
from unetlib.runs.first_weights import shipped_for
from unetlib.runs.provenance import OF_OTHERS, PACKAGES, find_own, part_by_sign, signs
from unetlib.runs.run import SHIPPED, Run, channels_of
from unetlib.show import plots
from unetlib.support.errors import UnetlibError, brief, counted, first_of, made_by, printable
from unetlib.support.fields import flag
from unetlib.support.files import atomic, locked, read_csv, refuse_link, require_empty, sha256
from unetlib.support.paths import takes_paths

PAGE, TEMPLATE, TITLE = "README.md", Path(__file__).with_name("card.md.j2"), "# Model card: "
UNFINISHED = f"{TITLE}not finished\n\nIt was stopped. Give the same command again.\n"
FAILURES = 3  # patients shown


@takes_paths
def write_card(run: Run | Path | str, out: Path | None = None, device: str = "auto") -> Path:
    """Write the model card of a run, `README.md` with its images, in `RUN/card` unless `out` is given.

    Evaluates the run on its own test patients where that is not done yet. Every number comes from the files of the run,
    and the same files give the same card. The page is written last: until all its images are there, `README.md` says
    that it is not finished. Returns its path. Raises `UnetlibError` when the run is not trained, its test patients
    cannot be scored, one of its files is damaged, or the folder holds anything but a card.
    """
    run = Run.of(run)
    folder = out or run.card
    refuse_link(folder)
    page = folder / PAGE
    if not (page.is_file() and page.read_bytes().startswith(TITLE.encode())):
        require_empty(folder, "a model card")
    summary = evaluate(run, device=device)
    try:
        facts = _read(run, summary)
        failures = plots.worst(run, FAILURES, device)
        files = _images(facts, failures) | {PAGE: printable(_page(run, facts, failures)).encode()}
    except (KeyError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise UnetlibError(
            f"a file of {run} is not one that unetlib wrote ({brief(str(error))}). Delete {run.evaluation}, then "
            "give the same command again; if it fails again, restore the run from a copy."
        ) from error
    with locked(folder):
        _write(folder, files)
    return page


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files that differ, the page last: while it is whole, everything that it links to is there."""
    stale = [path for path in folder.glob("failure-[0-9].png") if path.name not in files]
    paths = {name: folder / name for name in files}
    changed = [name for name, path in paths.items() if not path.exists() or path.read_bytes() != files[name]]
    if not (stale or changed):
        return
    _save(paths[PAGE], UNFINISHED.encode())
    for path in stale:
        path.unlink()
    for name in [*(name for name in changed if name != PAGE), PAGE]:
        _save(paths[name], files[name])


def _save(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def _read(run: Run, summary: dict[str, Any]) -> SimpleNamespace:
    """Return what a card states, from the files of an evaluated run, under the names that its template uses."""
    net, recipe, best = run.load()
    cohort, provenance = find_own(run), run.provenance
    counts = ("tumour", *(f"native_{name}" for name in COUNTS))
    found = read_csv(run.evaluation / SLICES_FILE, numbers=counts)
    rows: list[dict[str, Any]] = [row | {name: int(row[name]) for name in counts} for row in found]
    scored, voxel_ml, synthetic = {row["case"] for row in rows}, {}, False
    sequences = recipe.modalities.split()
    for case in (case for case in cohort.cases if case.id in scored):  # one volume in memory at a time
        volume = read_volume(next(case.images[name] for name in sequences if name in case.images))
        voxel_ml[case.id] = float(millilitres(1, volume.spacing))
        synthetic |= plots.is_synthetic(volume)
    for row in rows:
        row["ml"] = voxel_ml[row["case"]]  # of a voxel
    patients, names = read_patients(run.evaluation), plots.named_regions(recipe)
    regions = [_region(number, name, summary, patients, rows) for number, name in enumerate(names or [""])]
    own, published = recipe.as_dict(), Recipe.published.as_dict()
    changes = {name: (own[name], published[name]) for name in own if own[name] != published[name]}
    decision: Any = read_decision(run, recipe)
    layouts = sorted({case.layout for case in cohort.cases})
    nominal = [KAGGLE] * any("voxels" in one.unit for one in regions)  # whatever the layout of its files
    start, known = run.about().get("start_from"), provenance.get("cases", {})
    earlier = provenance.get("earlier", {}).values()
    learned = part_by_sign(earlier).keys()
    sessions = [session for one in run.members for session in one.provenance.get("sessions", [])]
    weights = [best, *(load_checkpoint(one.best) for one in run.members[1:])]
    return SimpleNamespace(
        **{"summary": summary, "recipe": recipe, "best": best, "cohort": cohort, "provenance": provenance},
        **{"layouts": layouts, "synthetic": synthetic, "changes": changes, "regions": regions},
        sequences=[SEQUENCES[name] for name in sequences],
        made=how_made(net),
        parameters=parameter_count(net),
        channels=channels_of(best, run.best, recipe)[0],
        record=run.about(),
        start=_start(start, recipe),
        weights=[*zip(run.members, weights, strict=True)],
        val_dice=float(np.mean([one["val_dice"] for one in weights])),
        decisions=[(region.name, decision.of(region.name)) for region in regions],
        earlier=_earlier(earlier),
        again=sum(bool(signs(case, id) & learned) for id, case in known.items()),
        divided=divided_note(cohort, known),
        note=("synthetic images; " if synthetic else "") + plots.DISCLAIMER,
        about="synthetic" if synthetic else " ".join([*layouts, *nominal]),
        flags=_flags(recipe, changes),
        parts=[*_parts(run.split, known.values())],
        machines=list(dict.fromkeys(map(_machine, sessions))),
        threads=[number for number, _ in groupby(one["threads"] for one in sessions if one["device"] == "cpu")],
        remark=interval_remark(summary["patients"]),
        seconds=sum(load_checkpoint(one.latest)["progress"]["seconds"] for one in run.members if one.latest.exists()),
        epochs=len(read_csv(run.history_file, numbers=("epoch", "val_dice"))),
    )


def _start(first: str | None, recipe: Recipe) -> tuple[str, str]:
    """Return the name of the first weights, given by their hash, if they come with the library, and their flag."""
    name = next((name for name, folder in SHIPPED.items() if first == sha256(Run(folder).best)), "")
    by_recipe = recipe.phantoms and name == shipped_for(recipe).shipped
    return name, "" if first is None or by_recipe else f" --start-from {name or 'OTHER'}"


def _earlier(cases: Iterable[Mapping[str, Any]]) -> dict[str, tuple[list[str], list[str]]]:
    """Return, for phantoms and for patients, of whom earlier runs were trained and who served for their choices only.

    Phantoms of two cohorts may have one name, so they are told apart by their hashes.
    """
    found: dict[str, tuple[set[str], set[str]]] = {}
    for case in cases:
        phantom = case["patient"].lower().startswith("phantom_")
        own = found.setdefault("phantom" if phantom else "patient", (set(), set()))
        own[case["part"] != "train"].add(case["sha256"] if phantom else case["patient"])
    return {
        kind: (sorted(trained), sorted(chosen - trained)) for kind, (trained, chosen) in sorted(found.items())[::-1]
    }


def _region(
    number: int,
    name: str,
    summary: Mapping[str, Any],
    patients: Iterable[Mapping[str, Any]],
    rows: Iterable[Mapping[str, Any]],
) -> SimpleNamespace:
    """Return the scores of one region, given with its place and its name; the only one of a run has no name."""

    def own(table: Iterable[Mapping[str, Any]]) -> list[Any]:
        return [row for row in table if str(row.get("region", "")) in ("", str(number), name)]

    alarms: dict[str, float] = defaultdict(float)  # ml marked in slices without tumour, by case
    for row in own(rows):
        if not row["tumour"]:
            alarms[row["case"]] += row["native_fp"] * row["ml"]
    surfaces = summary["surface"] if isinstance(summary["surface"], list) else [summary["surface"]]
    surface = own(surfaces)[0]
    return SimpleNamespace(
        name=name,
        figures=own(summary["figures"]),
        lesions=next(iter(own(summary.get("lesions", []))), None),
        hd95=distance_text(surface),
        hd95_undefined=surface["hd95_undefined"],
        dices=np.array([float(row["dice"]) for row in own(patients)]),
        alarms=list(alarms.values()),
        unit=surface["unit"],
        rows=own(rows),
    )


def _flags(recipe: Recipe, changes: Mapping[str, tuple[Any, Any]]) -> dict[str, str]:
    flags = dict.fromkeys((PREPARE, TRAIN), " --recipe published" if recipe.dims == 3 else "")  # 3-D has other defaults
    for stage in STAGES:
        for name in (name for name in recipe.stage(stage) if name in changes):
            flags[PREPARE if stage == PREPARE else TRAIN] += f" {_flag(name, changes[name][0])}"
    return flags


def _flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return flag(name) if value else flag(name).replace("--", "--no-", 1)
    words = _text(value).split(" ") if name in ("modalities", "regions") else [_text(value)]
    return f"{flag(name)} {' '.join(map(shlex.quote, words))}"  # one by one: not every shell knows the quotes


def _parts(split: Split, cases: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, int, int | None, int | None]]:
    """Yield name, patients, cases and prepared slices of each part of the split, `None` where not recorded."""
    for part in PARTS:
        own = [case for case in cases if case["part"] == part]
        slices = [case["slices"] for case in own if "slices" in case]
        known = sum(slices) if own and len(slices) == len(own) else None
        yield part, len(split.patients(part)), len(own) or None, known


def _machine(session: Mapping[str, Any]) -> tuple[str, str, str]:
    machine = f"{session['device']}; {session['processor']}; {counted(session['threads'], 'thread')}"
    packages = [f"{name} {session[name]}" for name in (*PACKAGES, *OF_OTHERS) if name in session]
    own = f"unetlib {session['unetlib']}, Python {session['python']}, "
    return machine, session["precision"], own + ", ".join(packages)


def _score(region: SimpleNamespace, grid: str, slices: str, aggregation: str) -> dict[str, Any] | None:
    """Return one figure of a region, `None` where no slice has tumour."""
    wanted = {"grid": grid, "slices": slices, "aggregation": aggregation}
    return next((entry for entry in region.figures if wanted.items() <= entry.items()), None)


def _errors(rows: Iterable[Mapping[str, Any]], patient: str) -> dict[str, Any]:
    rows = [row for row in rows if row["patient"] == patient]
    tp, fp, fn = (sum(row[f"native_{name}"] for row in rows) for name in ("tp", "fp", "fn"))
    true, marked = (
        sum((row["native_tp"] + row[f"native_{other}"]) * row["ml"] for row in rows) for other in ("fn", "fp")
    )
    outside = sum(row["native_fp"] for row in rows if not row["tumour"])
    return {"true_ml": true, "marked_ml": marked, "kind": _kind(tp, fp, fn), "wrong": fp + fn, "outside": outside}


def _images(facts: SimpleNamespace, failures: list[plots.Ranked]) -> dict[str, bytes]:
    names = [region.name for region in facts.regions]
    main = {one.name: _score(one, "native", "all", "per patient") or {} for one in facts.regions}
    dices = {one.name: one.dices.tolist() for one in facts.regions}
    intervals = {name: entry.get("dice_interval") for name, entry in main.items()}
    figures = {
        "patients.png": plots.patients_figure(dices, intervals, facts.note),
        "metrics.png": plots.metrics_figure(facts.summary, facts.note, names if len(names) > 1 else ()),
    }
    for number, one in enumerate(failures, 1):
        errors = plots.largest_slice(one.truth ^ one.prediction)
        rows = [replace(one, rank="most tumour").overlay()] if one.truth.any() else []
        if not rows or errors != plots.largest_slice(one.truth):
            rows.append(replace(one, rank="most errors").overlay(errors))
        figures[f"failure-{number}.png"] = plots.overlay_figure(rows, facts.note)
    return {name: plots.to_png(figure) for name, figure in figures.items()}


def _page(run: Run, facts: SimpleNamespace, failures: list[plots.Ranked]) -> str:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701 - no HTML
    environment.filters |= {"text": _text, "counted": counted, "first_of": first_of, "made_by": made_by}
    environment.filters |= {"previous": previous, "score": _score, "errors_of": _errors}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    kind = {"volumes": facts.recipe.dims == 3, "sample": SAMPLE_NAMES[facts.recipe.dims]}
    return template.render(run=run, facts=facts, failures=failures, **kind)


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _kind(tp: int, fp: int, fn: int) -> str:
    """Name the kind of failure that the counts of a patient show."""
    if not fp + fn:
        return "There is no error."
    if not tp + fn:
        return "There is no tumour: everything marked is a false alarm."
    if not tp + fp:
        return "Nothing was marked: the tumour was missed."
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    missed = f"{'most' if recall else 'all'} of the tumour was missed"
    kinds = [missed] * (recall < 0.5) + ["most of what was marked is false alarm"] * (precision < 0.5)
    found = " and ".join(kinds) or "more than half was found, and more than half of what was marked is tumour"
    return f"Precision {precision:.3f}, recall {recall:.3f}: {found}."
