"""Whom a run may be judged on: its own test patients as they were, or others whom it has not learned from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from unetlib.data.naming import TABLE, divided, key, patient_of
from unetlib.data.patients import SHARE, Case, Cohort, find_cases
from unetlib.data.sameness import copy_of, hash_voxels
from unetlib.data.split import PARTS, Split
from unetlib.data.volumes import read_volume
from unetlib.runs.checkpoint import read_run
from unetlib.runs.provenance import as_recorded, find_own, part_by_sign, read_provenance, require_unchanged, signs
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.files import digest, read_json, sha256, write_json
from unetlib.support.jobs import run_jobs


def choose_own(run: Path, part: str | None) -> tuple[Cohort, list[Case], list[str]]:
    """Return the cohort of a run's own data, the cases of one part (or `"all"`), and sentences on them.

    Raises `UnetlibError` when a case is gone, or its image or mask has changed.
    """
    root = Path(read_run(run)["data"])
    if not root.exists():
        raise UnetlibError(
            f"{root}, where the patients were, does not exist any more. If they moved, change `data` in the "
            "run's recipe.json; to score others, name their folder with --data."
        )
    found, split, known = find_own(run), Split.load(run / "split.json"), read_provenance(run).get("cases", {})
    cohort = as_recorded(found, run)
    wanted = PARTS if part == "all" else (part or "test",)
    parts = {
        case.id: known.get(case.id, {}).get("part") if known else split.part_of(case.patient) for case in cohort.cases
    }
    chosen = [case for case in cohort.cases if parts[case.id] in wanted]
    _require_all(split.patients(*wanted), {id for id in known if known[id]["part"] in wanted}, chosen, cohort)
    require_unchanged(known, chosen, cohort)
    notes = [_flatters(chosen, parts), told_divided(found, known)]
    if not known:
        notes.append("The run has no provenance.json: whether its patients' files have changed was not checked.")
    return cohort, chosen, notes


def _flatters(chosen: list[Case], parts: dict[str, str | None]) -> str:
    known = sum(parts[case.id] in ("train", "val") for case in chosen)
    return f"The run was trained or validated on {known} of these cases: the figures flatter." if known else ""


def told_divided(found: Cohort, known: dict[str, dict[str, Any]]) -> str:
    """Say which persons have scans in two parts of a run, empty for none: an older version knew fewer names.

    `found` are the cases of its data as they are named today, `known` those that it has recorded.
    """
    parts = {id: case["part"] for id, case in known.items()}
    if not (names := divided(parts, {case.id: case.patient for case in found.cases})):
        return ""
    return (
        f"The run was split under other names: scans of {counted(len(names), 'patient')} ({first_of(names, 5)}) are "
        "in two of its parts, so the figures flatter. Prepare and train again."
    )


def choose_others(
    root: Path, run: Path, part: str | None, folder: Path, assume: str | None = None
) -> tuple[Cohort, list[Case], list[str]]:
    """Return the cohort of another folder, the cases of it to score, and sentences on them.

    Without `part` these are the cases of all patients whom the run has not learned from, each scan once. `folder` is
    where the hashes of the images are kept, `assume` as in `find_cases`. Raises `UnetlibError` when nobody is left.
    """
    cohort = find_cases(root, assume=assume)
    hashes = _hashes(cohort, run, folder)
    parts = _parts(cohort, run, hashes)
    if part is not None:
        chosen = [case for case in cohort.cases if part in ("all", parts[case.id])]
        if not chosen:
            raise UnetlibError(
                f"{root}: none of its {counted(len(cohort.cases), 'case')} is in the part {part!r} of the split."
                f"{_reasons(cohort)} Name another folder with --data or another part with --split."
            )
        return cohort, chosen, [_flatters(chosen, parts)]
    chosen = [case for case in cohort.cases if parts[case.id] not in ("train", "val")]
    seen = len(cohort.cases) - len(chosen)
    if not chosen:
        raise UnetlibError(
            f"{root} holds only patients whom the run was trained or validated on ({counted(seen, 'case')}), and to "
            f"score them would flatter.{_reasons(cohort)} Name another folder with --data, or ask for these with "
            "--split all."
            if seen
            else f"{root} holds nobody who can be scored.{_reasons(cohort)}"
        )
    told = f"Left out: {counted(seen, 'case')} of patients whom the run was trained or validated on."
    first = {hashes[case.id].get("image", case.id): case for case in reversed(chosen)}
    copies = {
        case.id: copy_of(other.id)
        for case in chosen
        if (other := first[hashes[case.id].get("image", case.id)]) is not case
    }
    cohort = replace(cohort, left_out={**cohort.left_out, **copies})
    return cohort, [case for case in chosen if case.id not in copies], [told] if seen else []


def _parts(cohort: Cohort, run: Path, hashes: dict[str, dict[str, str]]) -> dict[str, str | None]:
    """Return the part of a run that each case of other data belongs to, `None` for who is in no part.

    A patient is known by the name under which the run was split or would be today, and by a scan that has the voxels
    of one of the run's, or of those before it; then all scans of the patient are.
    """
    provenance, split = read_provenance(run), Split.load(run / "split.json")
    own = [{**case, "case": id} for id, case in provenance.get("cases", {}).items()]
    by_sign, by_name = part_by_sign([*provenance.get("earlier", {}).values(), *own]), _by_name(own, split)
    parts: dict[str, str] = {}  # of a patient
    for case in cohort.cases:
        record = {"patient": case.patient, **hashes[case.id]}
        found = {by_name.get(key(case.patient)), *(by_sign.get(sign) for sign in signs(record, case.id))}
        if first := next((part for part in PARTS if part in found | {parts.get(case.patient)}), None):
            parts[case.patient] = first
    return {case.id: parts.get(case.patient) for case in cohort.cases}


def _by_name(own: list[dict[str, Any]], split: Split) -> dict[str, str]:
    """Return the part of each patient's name, that of the split and that of today; of several the first part."""
    parts: dict[str, str] = {}
    for part in reversed(PARTS):
        names = set(getattr(split, part))
        names |= {patient_of(case["case"]) for case in own if case["part"] == part and case.get("named_by") != TABLE}
        parts |= {key(name): part for name in (names if own else names | set(map(patient_of, names)))}
    return parts


def _hashes(cohort: Cohort, run: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Return of each case of other data the hashes that the run's own cases are known by."""
    provenance = read_provenance(run)
    records = [*provenance.get("earlier", {}).values(), *provenance.get("cases", {}).values()]
    images = _images(cohort, folder / "images.json") if any("image" in case for case in records) else {}
    # Version 0.3 knew files alone: only one of the same size is worth reading.
    sizes = {tuple(file[1] for file in case["files"]) for case in records if "image" not in case}
    found = {}
    for case in cohort.cases:
        found[case.id] = {"image": images[case.id]} if images.get(case.id) else {}
        if tuple(file[1] for file in case.stamp(cohort.root)) in sizes:
            found[case.id]["sha256"] = sha256(*case.files())
    return found


def _images(cohort: Cohort, path: Path) -> dict[str, str]:
    """Return the hash of each case's image, empty where it cannot be read; `path` keeps them for the next time."""
    try:
        before = read_json(path)
    except UnetlibError:
        before = {}
    stamps = {case.id: digest([case.id, cohort.assume, case.stamp(cohort.root)]) for case in cohort.cases}
    known = {stamp: before[stamp] for stamp in stamps.values() if isinstance(before.get(stamp), str)}
    todo = [case for case in cohort.cases if stamps[case.id] not in known]
    try:
        for case, image in run_jobs(_hash_image, todo, "compare", "case", None, SHARE):
            known[stamps[case.id]] = image
    finally:
        if todo:
            write_json(path, dict(sorted(known.items())))
    return {id: known[stamp] for id, stamp in stamps.items()}


def _hash_image(case: Case) -> str:
    try:
        return hash_voxels(read_volume(case.images["flair"]).voxels)
    except UnetlibError:
        return ""


def _require_all(planned: set[str], known: set[str], chosen: list[Case], cohort: Cohort) -> None:
    """Raise `UnetlibError` when patients or cases of the run's own split are gone: the figures would be of fewer."""
    if missing := sorted(planned - {case.patient for case in chosen}):
        raise UnetlibError(
            f"{cohort.root} lacks {counted(len(missing), 'patient')} of the split that the run was made with "
            f"({first_of(missing, 5)}). Put them back, or score what is there with --data {cohort.root}."
            f"{_reasons(cohort)}"
        )
    if missing := sorted(known - {case.id for case in chosen}):
        raise UnetlibError(
            f"{cohort.root} lacks {counted(len(missing), 'case')} that the run was made with ({first_of(missing, 5)}). "
            f"Put them back, or score what is there with --data {cohort.root}.{_reasons(cohort)}"
        )


def _reasons(cohort: Cohort) -> str:
    """Say who cannot be used, and why."""
    return "".join(f" {name}: {reason}" for name, reason in cohort.left_out.items())
