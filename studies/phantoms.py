"""The weights that come with the library: trained on synthetic patients alone, packed, and scored on real ones.

`python -m studies.phantoms [DATA ...]` makes 115 varied phantoms, trains `Recipe.strong` on them for 10 epochs, tunes
threshold and smallest component on phantoms, and writes the run in half precision to `unetlib/phantom/run`. It prints
the hash of the weights. It scores all patients of each folder DATA, none of whom was learned from. With `--four` the
network takes FLAIR, T1, contrast-enhanced T1 and T2 and marks three regions; its run is `unetlib/phantom/run-four`.
"""

import json
from pathlib import Path

from safetensors.torch import save_file

from benchmarks.common import machine, markdown_table, record
from studies import results
from studies.cells import STRONG, on_phantoms, pretrained, record_run, scores_of, scores_of_regions, study_parser
from studies.results import DICE
from unetlib import Recipe, evaluate
from unetlib.metrics import bootstrap_interval
from unetlib.phantom.cohort import MODALITIES
from unetlib.prediction.decision import read_decision, write_decision
from unetlib.runs.run import SHIPPED, Run
from unetlib.support.command import run_command
from unetlib.support.files import atomic, read_json, sha256, write_json

PAGE = Path(__file__).with_name("PHANTOMS.md")
KEPT = ("epoch", "val_dice", "channels")  # of a checkpoint, besides recipe and weights
FOUR = {"modalities": " ".join(MODALITIES), "regions": "whole core enhancing", "drop_modalities": 0.25}
NOTE = "These weights have seen synthetic patients alone: weights trained on real ones are far better."


def pack(run: Run, folder: Path) -> Run:
    """Write a finished run to `folder`, small and without the paths of this machine; return it."""
    packed, (_, recipe, content) = Run(folder), run.load()
    fields = recipe.but(precision="auto").as_dict()
    about = {"recipe": fields, "note": NOTE, **{name: content[name] for name in KEPT}}
    weights = {
        name: (one.half() if name.endswith(("weight", "bias")) else one).contiguous()
        for name, one in content["model"].items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "best_model.safetensors") as temporary:
        save_file(weights, temporary, {"checkpoint": json.dumps(about)})
    write_json(packed.recipe_file, {**run.about(), "recipe": fields, "data": ""})
    write_json(packed.provenance_file, {**run.provenance, "recipe": fields, "data": ""})
    run.split.save(packed.split_file)
    decision, chosen = read_decision(run, recipe), read_json(run.decision_file)
    write_decision(packed, decision, chosen["validation_dice"], chosen["validation_patients"], recipe.mirror)
    return packed


def score(name: str, run: Run, recipe: Recipe, data: Path, work: Path) -> results.Result:
    """Return the scores of all patients of a folder, called `name` in the table; computed once, and then read."""
    if (found := results.read(name)) is not None:
        return found
    copy = pack(run, work / "packed" / run.folder.name)
    evaluate(copy, data)
    folder = copy.evaluation / f"data-{data.name}"
    scores = scores_of_regions(folder) if " " in recipe.regions else scores_of(folder, data)
    return record_run(name, scores, {"part": "all"}, on_phantoms(recipe))


def main() -> None:
    """Train what is missing, pack it, and score."""
    parser = study_parser("phantoms", __doc__, many=True)
    parser.add_argument("--four", action="store_true", help="the network of four sequences and three regions")
    arguments = parser.parse_args()
    name, recipe = ("phantoms-four", STRONG.but(**FOUR)) if arguments.four else ("phantoms", STRONG)
    run = pretrained(arguments.work, recipe)
    packed = pack(run, SHIPPED[name])
    size = packed.best.stat().st_size / 1e6
    rows = []
    for data in arguments.data:
        scores = score(f"{name}-on-{data.name}", run, recipe, data, arguments.work)
        for region in recipe.regions.split():
            dice = scores[DICE if region == "whole" else f"{region}.{DICE}"].astype(float)
            low, high = bootstrap_interval(dice.to_numpy()) or (float("nan"),) * 2
            found = [f"{dice.mean():.3f}", f"{low:.3f} to {high:.3f}", f"{dice.median():.3f}"]
            rows.append([data.name, region, len(dice), *found])
    table = markdown_table(("patients of", "region", "number", "Dice", "95 % interval", "median"), rows)
    hashed = f"{packed.best.name}: {size:.1f} MB, SHA-256 `{sha256(packed.best)}`"
    record(name, hashed, table, machine(("torch",)), page=PAGE)


if __name__ == "__main__":
    run_command(main)
