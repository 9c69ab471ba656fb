"""The model card of a run: what it was trained on, how it was judged, where it fails, what it is not for.

Source of the idea and of the sections: M. Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unetlib.data.patients import Cohort
from unetlib.data.split import PARTS, Split
from unetlib.data.volumes import read_volume
from unetlib.evaluation.evaluate import COUNTS, evaluate, read_patients
from unetlib.evaluation.unseen import told_divided
from unetlib.prediction.decision import Decision, read_decision
from unetlib.recipe import PREPARE, TRAIN, Recipe, flag
from unetlib.runs.checkpoint import BEST, LATEST, caveats, load_checkpoint, load_model, previous, read_run
from unetlib.runs.provenance import PACKAGES, find_own, read_provenance
from unetlib.show import plots
from unetlib.support.errors import UnetlibError, brief, counted, first_of, made_by, printable
from unetlib.support.files import atomic, locked, read_csv, refuse_link, require_empty, sha256, takes_paths
from unetlib.unet import UNet

PAGE, TITLE = "README.md", "# Model card: "
UNFINISHED = f"{TITLE}not finished\n\nIt was stopped. Give the same command again.\n"
FAILURES = 3  # patients shown
MAIN, PUBLISHED = ("native", "all", "per patient"), ("model", "tumour", "pooled")
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
CARDS = 'Model cards: M. Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.'


@takes_paths
def write_card(run: Path, out: Path | None = None, device: str = "auto") -> Path:
    """Write the model card of a run, `README.md` with its pictures, in `RUN/card` unless `out` is given.

    The run is evaluated on its own test patients where it has not been. Every figure comes from the files of
    the run, and the same files give the same card. The page is written last, when all its pictures are
    there: until then `README.md` says so. Returns its path. Raises `UnetlibError` when the run is not trained,
    its test patients cannot be scored, one of its files is damaged, or the folder holds anything but a card.
    """
    folder = out or run / "card"
    refuse_link(folder)
    _require_card(folder)
    summary = evaluate(run, device=device)
    try:
        facts = _Facts.collect(run, summary)
        failures = plots.worst(run, FAILURES, device)
        files = _pictures(facts, failures) | {PAGE: printable(_page(facts, failures)).encode()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnetlibError(
            f"a file of {run} is not one that unetlib wrote ({brief(str(error))}). Delete {run / 'evaluation'}, then "
            "give the same command again; if it fails again, restore the run from a copy."
        ) from error
    with locked(folder):
        _write(folder, files)
    return folder / PAGE


def _require_card(folder: Path) -> None:
    """Raise `UnetlibError` when a folder holds anything, and no card: it could be lost."""
    page = folder / PAGE
    if not (page.is_file() and page.read_bytes().startswith(TITLE.encode())):
        require_empty(folder, "a model card")


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write what differs, the page last: while it is whole, everything that it links is there."""
    wanted = {folder / name: content for name, content in files.items()}
    stale = [path for path in folder.glob("failure-*.png") if path not in wanted]
    changed = [path for path, content in wanted.items() if not path.exists() or path.read_bytes() != content]
    if not (stale or changed):
        return
    _save(folder / PAGE, UNFINISHED.encode())
    for path in stale:
        path.unlink()
    for path in dict.fromkeys([*changed, folder / PAGE]):
        if path.name != PAGE:
            _save(path, wanted[path])
    _save(folder / PAGE, wanted[folder / PAGE])


def _save(path: Path, content: bytes) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(content)


@dataclass(frozen=True)
class _Facts:
    """What a card tells of, read once from the run's files; `millilitres` are those of a voxel, by test case."""

    run: Path
    summary: dict[str, Any]
    net: UNet
    recipe: Recipe
    decision: Decision
    best: dict[str, Any]
    provenance: dict[str, Any]
    split: Split
    cohort: Cohort
    rows: list[dict[str, Any]]
    patients: list[dict[str, str]]
    millilitres: dict[str, float]
    synthetic: bool

    @classmethod
    def collect(cls, run: Path, summary: dict[str, Any]) -> "_Facts":
        """Read an evaluated run, and the voxel sizes of its test cases."""
        net, recipe, best = load_model(run)
        cohort, folder = find_own(run), run / "evaluation"
        rows = _slices(folder / "slices.csv")
        scored = {row["case"] for row in rows}
        sizes, synthetic = {}, False
        for case in (case for case in cohort.cases if case.id in scored):  # one volume in memory at a time
            volume = read_volume(case.images["flair"])
            sizes[case.id] = float(np.prod(volume.spacing)) / 1000
            synthetic |= plots.is_synthetic(volume)
        split, origin = Split.load(run / "split.json"), read_provenance(run)
        patients = read_patients(folder)
        decision = read_decision(run, recipe)
        assert decision  # without one the run could not have been evaluated
        return cls(run, summary, net, recipe, decision, best, origin, split, cohort, rows, patients, sizes, synthetic)

    def figure(self, grid: str, slices: str, aggregation: str) -> dict[str, Any] | None:
        """Return one entry of the summary, `None` where no slice has tumour."""
        wanted = {"grid": grid, "slices": slices, "aggregation": aggregation}
        return next((entry for entry in self.summary["figures"] if wanted.items() <= entry.items()), None)

    @property
    def note(self) -> str:
        """What must stand under every picture."""
        return ("synthetic images; " if self.synthetic else "") + plots.DISCLAIMER


def _slices(path: Path) -> list[dict[str, Any]]:
    """Return the rows of `slices.csv`, with the counts of the native grid as numbers."""
    names = ("tumour", *(f"native_{name}" for name in COUNTS))
    return [row | {name: int(row[name]) for name in names} for row in read_csv(path, numbers=names)]


def _pictures(facts: _Facts, failures: list[plots.Ranked]) -> dict[str, bytes]:
    """Return the pictures of a card by the names of their files."""
    dices, main = [float(row["dice"]) for row in facts.patients], facts.figure(*MAIN) or {}
    figures = {
        "patients.png": plots.patients_figure(dices, main.get("dice_interval"), facts.note),
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
    parts = (_head, _model, _data, _protocol, _training, _figures)
    sections = [part(facts) for part in parts] + [_failures(facts, failures), _use(facts), _reproduce(facts)]
    return "\n\n".join([*sections, _sources(facts)]) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"


def _changes(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the fields that differ from the published recipe, with (own, published) value."""
    own, published = recipe.as_dict(), Recipe.published.as_dict()
    return {name: (own[name], published[name]) for name in own if own[name] != published[name]}


def _head(facts: _Facts) -> str:
    made = ""
    if facts.synthetic:
        made = "\n\nThe images are **synthetic**: real anatomy, invented tumours. No figure on this page is one on MRI."
    damaged = ""
    if facts.best.get("note"):
        damaged = (
            f" `{BEST}` is damaged: the checkpoint before it, `{previous(Path(BEST)).name}`, is what is judged here."
        )
    if told := caveats(facts.run, facts.best):
        damaged += f"\n\n**{told}**"
    return (
        f"{TITLE}a U-Net that outlines brain tumours on MRI\n\n"
        "**FOR RESEARCH AND EDUCATION, NEVER CLINICAL USE.** Not a medical device.\n\n"
        f"A network trained by `unetlib` to mark tumour in axial slices. The SHA-256 of its weights (`{BEST}`) is "
        f"`{sha256(facts.run / BEST)}`.{damaged}{made}"
    )


def _model(facts: _Facts) -> str:
    net, recipe = facts.net, facts.recipe
    inputs = net.down[0][0].in_channels  # type: ignore[index]
    changes = {name: pair for name, pair in _changes(recipe).items() if pair[1] != "auto"}  # the machine has chosen
    text = "The recipe is the published one."
    if changes:
        rows = [(f"`{name}`", _text(own), _text(published)) for name, (own, published) in changes.items()]
        text = "Where the recipe differs from the published one:\n\n"
        text += _table(("field", "this run", "published"), rows)
    return (
        f"## The model\n\nA 2D U-Net of width {recipe.width} and depth {recipe.depth} with "
        f"{sum(weight.numel() for weight in net.parameters()):,} parameters. It takes slices of {recipe.image_size} x "
        f"{recipe.image_size} pixels with {counted(inputs, 'channel')} (FLAIR, unless the table below names another "
        "image), and gives the probability of tumour of every "
        f"pixel.{_first_weights(facts)}\n\n{text}"
    )


def _first_weights(facts: _Facts) -> str:
    """Tell of the run whose weights this one began with, where there was one."""
    if not (first := read_run(facts.run).get("start_from")):
        return ""
    earlier = sorted({case["patient"] for case in facts.provenance.get("earlier", {}).values()})
    whose = "whose data are not recorded"
    if earlier:
        whose = f"which had learned from {counted(len(earlier), 'patient')} ({first_of(earlier, 5)})"
    return f" It began with the weights of another run, of SHA-256 `{first}`, {whose}."


def _decision(facts: _Facts) -> str:
    """Tell how a probability becomes a mask."""
    size = facts.decision.smallest_ml
    smallest = f", and pieces below {size:g} ml, but never the largest, are dropped on the native grid" if size else ""
    chosen = " (chosen on the validation patients)" if facts.recipe.tune else ""
    return f"thresholded at {facts.decision.threshold:g}{smallest}{chosen}"


def _data(facts: _Facts) -> str:
    cases, rows = facts.provenance.get("cases", {}), []
    for part in PARTS:
        own = [case for case in cases.values() if case["part"] == part]
        slices = (
            sum(case["slices"] for case in own) if own and all("slices" in case for case in own) else "not recorded"
        )
        rows.append((part, len(getattr(facts.split, part)), len(own) or "not recorded", slices))
    layouts = ", ".join(sorted({case.layout for case in facts.cohort.cases}))
    left_out = facts.provenance.get("left_out")
    told = "Which cases were left out is not recorded."
    if left_out is not None:
        told = f"Left out, since they cannot be used: {first_of(left_out) or 'none'}."
    notes = "".join(f"\n- {note}" for note in facts.cohort.notes)
    return (
        f"## Data\n\nThe folder `{facts.cohort.root.name}`, in the layout {layouts}.\n\n"
        + _table(("part", "patients", "cases", "prepared slices"), rows)
        + f"\n\n{told} SHA-256 of the data: `{facts.provenance.get('contents', 'not recorded')}`; of the split: "
        f"`{facts.split.hash}`." + (f"\n\nAbout the folder:\n{notes}" if notes else "")
    )


def _protocol(facts: _Facts) -> str:
    summary = facts.summary
    divided = told_divided(facts.cohort, facts.provenance.get("cases", {}))
    split = divided or "The split is by patient: nobody is in two parts."
    return (
        f"## Protocol\n\n{split} The weights kept are those of the epoch with "
        "the highest Dice on the validation patients. The test patients, on whom training chose nothing, are scored in "
        f"all their axial slices: {counted(summary['patients'], 'patient')}, {counted(summary['cases'], 'case')}, "
        f"{counted(summary['slices'], 'slice')}, {summary['tumour_slices']} of them with tumour. Probabilities are "
        f"brought back to the native grid, then {_decision(facts)}."
    )


def _training(facts: _Facts) -> str:
    history = read_csv(facts.run / "history.csv", numbers=("epoch", "val_dice"))
    progress = load_checkpoint(facts.run / LATEST)["progress"] if (facts.run / LATEST).exists() else None
    time = f" in {progress['seconds']:.0f} seconds" if progress else ""
    sessions = facts.provenance.get("sessions", [])
    machines = [
        (
            f"{one['device']}; {one['processor']}; {counted(one['threads'], 'thread')}",
            one["precision"],
            f"unetlib {one['unetlib']}, Python {one['python']}, "
            + ", ".join(f"{name} {one[name]}" for name in PACKAGES if name in one),
        )
        for one in sessions
    ]
    rows = list(dict.fromkeys(machines))  # a training that went on has several sessions
    table = _table(("machine", "precision", "software"), rows) if rows else "The machine is not recorded."
    return (
        f"## Training\n\n{len(history)} of {counted(facts.recipe.epochs, 'epoch')}{time}. The weights are of epoch "
        f"{facts.best['epoch']}, with a validation Dice (pooled, prepared slices, model grid) of "
        f"{facts.best['val_dice']:.3f}.\n\n{table}"
    )


def _figures(facts: _Facts) -> str:
    rows = []
    for key in (MAIN, PUBLISHED, ("native", "all", "per slice")):
        if entry := facts.figure(*key):
            name = f"Dice, {key[2]}, {key[1]} slices, {key[0]} grid"
            rows.append((f"**{name}**" if key == MAIN else name, _dice(entry)))
            if key == PUBLISHED:
                rows[-1] = (f"{name} (as papers give it)", rows[-1][1])
    main = facts.figure(*MAIN) or {}
    rows += [(f"{name}, per patient, all slices, native grid", f"{main[name]:.3f}") for name in ("precision", "recall")]
    surface = facts.summary["surface"]
    distance = "undefined" if surface["hd95_mm"] is None else f"{surface['hd95_mm']:.1f} mm"
    rows.append(
        (
            "HD95, mean over patients",
            f"{distance} (undefined, where a mask is empty, for {counted(surface['hd95_undefined'], 'patient')})",
        )
    )
    if alarms := _false_alarms(facts):
        rows.append(
            ("false alarms in slices without tumour", f"{np.mean(alarms):.2f} ml a case (at most {max(alarms):.2f} ml)")
        )
    slices = facts.figure("native", "all", "per slice") or {}
    return (
        "## Figures\n\n" + _table(("on the test patients", "value"), rows) + "\n\n"
        f"In {slices['zero_by_zero']['dice']} of {counted(facts.summary['slices'], 'slice')} there is no tumour, and "
        "none was marked: each counts as a Dice of 1 in the figure per slice. Millimetres and millilitres rest on the "
        "voxel sizes that the files give.\n\n"
        "![The Dice of every test patient](patients.png)\n\n![Every Dice of this network](metrics.png)"
    )


def _dice(entry: dict[str, Any]) -> str:
    if entry["aggregation"] != "per patient":
        return f"{entry['dice']:.3f}"
    if not (interval := entry["dice_interval"]):
        return f"{entry['dice']:.3f} (one patient: no interval)"
    return f"{entry['dice']:.3f} (95 % interval {interval[0]:.3f} to {interval[1]:.3f}, bootstrap over patients)"


def _false_alarms(facts: _Facts) -> list[float]:
    """Return, for each test case that has slices without tumour, the volume marked in them, in millilitres."""
    found: dict[str, float] = {}
    for row in facts.rows:
        if not row["tumour"]:
            case = row["case"]
            found[case] = found.get(case, 0.0) + row["native_fp"] * facts.millilitres[case]
    return list(found.values())


def _failures(facts: _Facts, failures: list[plots.Ranked]) -> str:
    parts = ["## Failure cases\n\nThe worst test patients by Dice (native grid, all slices), the worst one first."]
    for number, one in enumerate(failures, 1):
        name, rows = one.case.patient, [row for row in facts.rows if row["patient"] == one.case.patient]
        parts.append(
            f"### {name}, place {one.rank}: Dice {one.dice:.3f}\n\n{_story(rows, facts.millilitres)}\n\n"
            f"![{name}: the truth outlined; found, missed and false alarm](failure-{number}.png)"
        )
    return "\n\n".join(parts)


def _story(rows: list[dict[str, Any]], millilitres: dict[str, float]) -> str:
    """Return what went wrong with a patient, from the counts of all slices."""
    tp, fp, fn = (sum(row[f"native_{name}"] for row in rows) for name in ("tp", "fp", "fn"))
    true = sum((row["native_tp"] + row["native_fn"]) * millilitres[row["case"]] for row in rows)
    marked = sum((row["native_tp"] + row["native_fp"]) * millilitres[row["case"]] for row in rows)
    text = f"The tumour has {true:.1f} ml; {marked:.1f} ml were marked. {_kind(tp, fp, fn)}"
    if fp + fn:
        outside = sum(row["native_fp"] for row in rows if not row["tumour"])
        text += f" {100 * outside / (fp + fn):.0f} % of the wrong voxels lie in slices without tumour."
    return text


def _kind(tp: int, fp: int, fn: int) -> str:
    """Name the kind of failure that the counts of a patient show."""
    if not fp + fn:
        return "There is no error."
    if not tp + fn:
        return "There is no tumour: all that was marked is false alarm."
    if not tp + fp:
        return "Nothing was marked: the tumour was missed."
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    missed = "most of the tumour was missed" if recall else "all of the tumour was missed"
    kinds = [missed] * (recall < 0.5) + ["most of what was marked is false alarm"] * (precision < 0.5)
    found = " and ".join(kinds) or "more than half was found, and more than half of what was marked is tumour"
    return f"Precision {precision:.3f}, recall {recall:.3f}: {found}."


def _use(facts: _Facts) -> str:
    dices, summary = np.array([float(row["dice"]) for row in facts.patients]), facts.summary
    spread = f" (standard deviation {dices.std(ddof=1):.3f})" if len(dices) > 1 else ""
    seen = (
        ""
        if facts.recipe.slices != "tumour"
        else ("\n- The network was trained on slices with tumour only: expect false alarms in the others.")
    )
    near = facts.recipe.neighbours
    judged = f"with {counted(near, 'neighbour')} on either side" if near else "alone, without its neighbours"
    return (
        "## Intended use\n\nTo learn and to teach how such a network is trained and judged, and to compare methods on "
        "the same data and split.\n\n"
        "## Not intended\n\nAny diagnosis, treatment, triage or measurement of a person; images of another kind than "
        "those above; any decision without somebody who knows the truth.\n\n"
        "## Limits\n\n"
        f"- {counted(summary['patients'], 'test patient')} of one data set, and one split: other patients, scanners "
        "and hospitals were not tried here.\n"
        f"- The Dice of a patient ranges from {dices.min():.3f} to {dices.max():.3f}{spread}: the mean says little of "
        "the next patient. The interval is of the mean, and leaves out what another split or seed would change.\n"
        "- Age, sex, scanner and kind of tumour are unknown to the library, so no figure is given by group.\n"
        f"- Each slice is judged {judged}; the network sees only the channels named above.\n"
        f"- The truth is the mask in the data, with the errors of those who drew it.{seen}"
    )


def _reproduce(facts: _Facts) -> str:
    changes = {name: own for name, (own, _) in _changes(facts.recipe).items()}
    flags = {
        stage: "".join(f" {_flag(name, changes[name])}" for name in Recipe.published.stage(stage) if name in changes)
        for stage in (PREPARE, TRAIN)
    }
    first, other = "", ""
    if _first_weights(facts):
        first, other = " --start-from OTHER", " and OTHER for the run of the first weights"
    return (
        f"## To reproduce it\n\nWith DATA for the folder of patients{other}:\n\n```\nunetlib prepare DATA PREPARED"
        f"{flags[PREPARE]}\nunetlib train PREPARED RUN{flags[TRAIN]}{first}\n"
        "unetlib evaluate RUN\nunetlib card RUN\n```\n\n"
        "The same split is certain when this run's `split.json` is copied into PREPARED first. `recipe.json` and "
        "`provenance.json` of the run hold the recipe, every file of the data with its SHA-256, and all versions. The "
        f"slices were prepared by unetlib {facts.provenance.get('prepared_by', made_by({}))}, the run was begun by "
        f"unetlib {made_by(read_run(facts.run))}, and scored by unetlib {made_by(facts.summary)}."
    )


def _flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return flag(name) if value else flag(name).replace("--", "--no-", 1)
    return f"{flag(name)} {shlex.quote(_text(value))}"


def _sources(facts: _Facts) -> str:
    about = {case.layout for case in facts.cohort.cases} if not facts.synthetic else {"synthetic"}
    cited = [text for word, text in SOURCES.items() if any(word in one for one in about)]
    return (
        "## Licence, and sources to cite\n\nThe code is under the MIT licence. Images and masks are under the terms of "
        "those who gave them; ask there before weights trained on them are passed on.\n\n"
        + "\n".join(f"- {text}" for text in (*cited, CARDS))
    )
