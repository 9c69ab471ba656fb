"""The model card of a run: what it was trained on, how it was evaluated, where it fails, what it is not for.

The text is in `card.md.j2`. Source of the idea and of the sections: M. Mitchell et al., "Model Cards for Model
Reporting", FAT* 2019.
"""

import shlex
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, UndefinedError

from unetlib.data.split import PARTS
from unetlib.data.volumes import read_volume
from unetlib.evaluation.evaluate import evaluate
from unetlib.evaluation.summary import SLICES_FILE, read_patients
from unetlib.evaluation.unseen import divided_note
from unetlib.metrics import COUNTS, millilitres
from unetlib.prediction.decision import read_decision
from unetlib.recipe import PREPARE, STAGES, TRAIN, Recipe, flag
from unetlib.runs.checkpoint import load_checkpoint, previous
from unetlib.runs.provenance import PACKAGES, find_own
from unetlib.runs.run import Run
from unetlib.show import plots
from unetlib.support.errors import UnetlibError, brief, counted, first_of, made_by, printable
from unetlib.support.files import atomic, locked, read_csv, refuse_link, require_empty, sha256, takes_paths

PAGE, TEMPLATE, TITLE = "README.md", Path(__file__).with_name("card.md.j2"), "# Model card: "
UNFINISHED = f"{TITLE}not finished\n\nIt was stopped. Give the same command again.\n"
FAILURES = 3  # patients shown
SOURCES = {  # what to cite, by a word of the layout of the data; "" always
    "": "U-Net: O. Ronneberger, P. Fischer, T. Brox, MICCAI 2015.",
    "BraTS 20": "BraTS: B. Menze et al., IEEE TMI 34, 2015; S. Bakas et al., Scientific Data 4, 2017; U. Baid et al., "
    "arXiv:2107.02314, 2021.",
    "Decathlon": "Medical Segmentation Decathlon: M. Antonelli et al., Nature Communications 13:4128, 2022.",
    "TCGA": "TCGA-LGG images: The Cancer Imaging Archive, CC BY 3.0. Masks: M. Buda, A. Saha, M. A. Mazurowski, "
    "Computers in Biology and Medicine 109, 2019, CC BY-NC-SA 4.0.",
    "synthetic": "Anatomy of the synthetic cohort: ICBM 2009a templates, copyright 1993-2009 Louis Collins, McConnell "
    "Brain Imaging Centre, Montreal Neurological Institute, McGill University (V. Fonov et al., NeuroImage 47, 2009).",
}


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
        facts = _Facts(run, summary)
        failures = plots.worst(run, FAILURES, device)
        files = _images(facts, failures) | {PAGE: printable(_page(facts, failures)).encode()}
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
    stale = [path for path in folder.glob("failure-*.png") if path.name not in files]
    paths = {folder / name: content for name, content in files.items()}
    changed = [path for path, content in paths.items() if not path.exists() or path.read_bytes() != content]
    if not (stale or changed):
        return
    page = folder / PAGE
    _save(page, UNFINISHED.encode())
    for path in stale:
        path.unlink()
    for path in [*(path for path in changed if path != page), page]:
        _save(path, paths[path])


def _save(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)


class _Facts:
    """What a card states, read from the files of an evaluated run; `millilitres`: the size of a voxel, by test case."""

    def __init__(self, run: Run, summary: dict[str, Any]) -> None:
        self.run, self.summary, self.record = run, summary, run.about()
        self.net, self.recipe, self.best = run.load()
        self.decision = read_decision(run, self.recipe)
        self.cohort, self.split, self.provenance = find_own(run), run.split, run.provenance
        self.dices = np.array([float(row["dice"]) for row in read_patients(run.evaluation)])
        counts = ("tumour", *(f"native_{name}" for name in COUNTS))
        rows = read_csv(run.evaluation / SLICES_FILE, numbers=counts)
        self.rows: list[dict[str, Any]] = [row | {name: int(row[name]) for name in counts} for row in rows]
        self.millilitres, self.synthetic = {}, False
        scored = {row["case"] for row in self.rows}
        for case in (case for case in self.cohort.cases if case.id in scored):  # one volume in memory at a time
            volume = read_volume(case.images["flair"])
            self.millilitres[case.id] = float(millilitres(1, volume.spacing))
            self.synthetic |= plots.is_synthetic(volume)

    @property
    def note(self) -> str:
        """What must stand under every image."""
        return ("synthetic images; " if self.synthetic else "") + plots.DISCLAIMER

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """The fields that differ from the published recipe, with (own, published) value."""
        own, published = self.recipe.as_dict(), Recipe.published.as_dict()
        return {name: (own[name], published[name]) for name in own if own[name] != published[name]}

    @property
    def flags(self) -> dict[str, str]:
        """The flags on the command line of `prepare` and `train` that give this recipe."""
        changes, flags = self.changes, {PREPARE: "", TRAIN: ""}
        for stage in STAGES:
            fields = (name for name in self.recipe.stage(stage) if name in changes)
            flags[PREPARE if stage == PREPARE else TRAIN] += "".join(f" {_flag(n, changes[n][0])}" for n in fields)
        return flags

    @property
    def parts(self) -> list[tuple[str, int, Any, Any]]:
        """Name, patients, cases and prepared slices of each part of the split, `None` where not recorded."""
        rows: list[tuple[str, int, Any, Any]] = []
        for part in PARTS:
            cases = [case for case in self.provenance.get("cases", {}).values() if case["part"] == part]
            slices = [case["slices"] for case in cases if "slices" in case]
            known = sum(slices) if cases and len(slices) == len(cases) else None
            rows.append((part, len(getattr(self.split, part)), len(cases) or None, known))
        return rows

    @property
    def machines(self) -> list[tuple[str, str, str]]:
        """Machine, precision and software of each session of the training, each once."""
        rows = [
            (
                f"{one['device']}; {one['processor']}; {counted(one['threads'], 'thread')}",
                one["precision"],
                f"unetlib {one['unetlib']}, Python {one['python']}, "
                + ", ".join(f"{name} {one[name]}" for name in PACKAGES if name in one),
            )
            for one in self.provenance.get("sessions", [])
        ]
        return list(dict.fromkeys(rows))

    @property
    def layouts(self) -> list[str]:
        """The layouts of the data."""
        return sorted({case.layout for case in self.cohort.cases})

    @property
    def sources(self) -> list[str]:
        """What to cite."""
        about = ["synthetic"] if self.synthetic else self.layouts
        return [text for word, text in SOURCES.items() if any(word in one for one in about)]

    def score(self, grid: str, slices: str, aggregation: str) -> dict[str, Any] | None:
        """Return one entry of the summary, `None` where no slice has tumour."""
        wanted = {"grid": grid, "slices": slices, "aggregation": aggregation}
        return next((entry for entry in self.summary["figures"] if wanted.items() <= entry.items()), None)

    def false_alarms(self) -> list[float]:
        """Return, for each test case that has slices without tumour, the volume marked in them, in millilitres."""
        found: dict[str, float] = defaultdict(float)
        for row in self.rows:
            if not row["tumour"]:
                found[row["case"]] += row["native_fp"] * self.millilitres[row["case"]]
        return list(found.values())

    def errors_of(self, patient: str) -> dict[str, Any]:
        """Return what went wrong with a patient, from the counts of all slices."""
        rows = [row for row in self.rows if row["patient"] == patient]
        tp, fp, fn = (sum(row[f"native_{name}"] for row in rows) for name in ("tp", "fp", "fn"))
        true, marked = (
            sum((row["native_tp"] + row[f"native_{other}"]) * self.millilitres[row["case"]] for row in rows)
            for other in ("fn", "fp")
        )
        outside = sum(row["native_fp"] for row in rows if not row["tumour"])
        return {"true_ml": true, "marked_ml": marked, "kind": _kind(tp, fp, fn), "wrong": fp + fn, "outside": outside}


def _images(facts: _Facts, failures: list[plots.Ranked]) -> dict[str, bytes]:
    """Return the images of a card by file name."""
    main = facts.score("native", "all", "per patient") or {}
    figures = {
        "patients.png": plots.patients_figure(facts.dices.tolist(), main.get("dice_interval"), facts.note),
        "metrics.png": plots.metrics_figure(facts.summary, facts.note),
    }
    for number, one in enumerate(failures, 1):
        errors = plots.largest_slice(one.truth ^ one.prediction)
        rows = [replace(one, rank="most tumour").overlay()] if one.truth.any() else []
        if not rows or errors != plots.largest_slice(one.truth):
            rows.append(replace(one, rank="most errors").overlay(errors))
        figures[f"failure-{number}.png"] = plots.overlay_figure(rows, facts.note)
    return {name: plots.to_png(figure) for name, figure in figures.items()}


def _page(facts: _Facts, failures: list[plots.Ranked]) -> str:
    """Return the card as Markdown."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701 - no HTML
    environment.filters |= {"text": _text, "counted": counted, "first_of": first_of, "made_by": made_by}
    run = facts.run
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        facts=facts,
        failures=failures,
        weights={"name": run.best.name, "earlier": previous(run.best).name, "sha256": sha256(run.best)},
        earlier=sorted({case["patient"] for case in facts.provenance.get("earlier", {}).values()}),
        caveats=run.caveats(facts.best),
        parameters=sum(one.numel() for one in facts.net.parameters()),
        divided=divided_note(facts.cohort, facts.provenance.get("cases", {})),
        training=load_checkpoint(run.latest)["progress"] if run.latest.exists() else None,
        epochs=len(read_csv(run.history_file, numbers=("epoch", "val_dice"))),
    )


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return flag(name) if value else flag(name).replace("--", "--no-", 1)
    return f"{flag(name)} {shlex.quote(_text(value))}"


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
