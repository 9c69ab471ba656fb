"""Which patients a run may be tested on: its own test patients, unchanged, or others that it has not learned from."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from unetlib.data.cases import SHARE, hash_images, read_images, without_copies
from unetlib.data.naming import TABLE, divided, key, patient_of
from unetlib.data.patients import Case, Cohort, find_cases
from unetlib.data.sequences import stack
from unetlib.data.split import PARTS, Split
from unetlib.evaluation.summary import read_earlier
from unetlib.runs.provenance import find_own, learned, own_cases, part_by_sign, reasons, signs
from unetlib.runs.run import Run
from unetlib.support.errors import UnetlibError, counted, first_of
from unetlib.support.files import digest, sha256, write_json
from unetlib.support.jobs import run_jobs


def choose(
    runs: list[Run], data: Path | None, part: str | None, folder: Path | None, assume: str | None = None
) -> tuple[Cohort, list[Case], list[tuple[Run, str]]]:
    """Return the cohort, those of its cases that all runs may be tested on, and notes, each with the run it is about.

    `data`, `part` and `assume` as in `evaluate`; the hashes of other data's images are stored in `folder`, if given.
    Raises `UnetlibError` when a case is missing or has changed, none is left, or a run has learned from another's
    patients.
    """
    unknown = [
        (run, "The run does not say which scans it was trained on: the scores may be too high.")
        for run in (runs if data else runs[1:])
        if not run.provenance.get("cases")
    ]
    if data is None:
        cohort, chosen, notes = choose_own(runs[0], part)
        if part in (None, "test"):
            _refuse_known(runs, chosen)
        return cohort, chosen, [*((runs[0], note) for note in notes), *unknown]
    found = [choose_others(data, run, part, folder, assume) for run in runs]
    (cohort, cases, _), *_ = found
    shared = set.intersection(*({case.id for case in own} for _, own, _ in found))
    chosen = [case for case in cases if case.id in shared]
    if not chosen:
        raise UnetlibError(f"{data} holds no patient on whom all of these runs may be tested. Name another folder.")
    about = [(run, note) for run, (_, _, own) in zip(runs, found, strict=True) for note in own]
    return cohort, chosen, [*about, *unknown]


def told(notes: list[tuple[Run, str]], several: bool) -> str:
    """Return notes on runs as one text, each once; of several runs, after the names of those that it is about."""
    owners: dict[str, list[str]] = {}
    for run, note in notes:
        if note:
            owners.setdefault(note, []).append(str(run))
    return " ".join(f"{', '.join(runs)}: {note}" if several else note for note, runs in owners.items())


def _refuse_known(runs: list[Run], chosen: list[Case]) -> None:
    """Raise `UnetlibError` when a further run has learned from a case that is to be scored."""
    cases = runs[0].provenance.get("cases", {})
    for other in runs[1:]:
        seen = part_by_sign(learned(other).values())
        if known := [case.id for case in chosen if case.id in cases and signs(cases[case.id], case.id) & seen.keys()]:
            raise UnetlibError(
                f"{other} was trained or validated on {counted(len(known), 'case')} that {runs[0]} is tested on "
                f"({first_of(known, 5)}): the scores would be too high. Average runs of one split."
            )


def choose_own(run: Run, part: str | None) -> tuple[Cohort, list[Case], list[str]]:
    """Return the cohort of a run's own data, the cases of one part (or `"all"`), and notes on them.

    Raises `UnetlibError` when a case is missing, or its image or mask has changed.
    """
    cohort, known = find_own(run), run.provenance.get("cases", {})
    chosen = own_cases(run, cohort, *(PARTS if part == "all" else (part or "test",)))
    notes = [_warning(run.split.part_of(case.patient) for case in chosen), divided_note(cohort, known)]
    if not known:
        notes.append("The run has no provenance.json: whether its patients' files have changed was not checked.")
    return cohort, chosen, notes


def _warning(parts: Iterable[str | None]) -> str:
    known = sum(part in ("train", "val") for part in parts)
    return f"The run was trained or validated on {known} of these cases: the scores are too high." if known else ""


def divided_note(found: Cohort, known: dict[str, dict[str, Any]]) -> str:
    """Return a note on patients with scans in two parts of a run; empty if there are none.

    Older versions knew fewer naming schemes. `found`: the run's data as named today; `known`: its recorded cases.
    """
    parts = {id: case["part"] for id, case in known.items()}
    if not (names := divided(parts, {case.id: case.patient for case in found.cases})):
        return ""
    return (
        f"The run was split under other names: scans of {counted(len(names), 'patient')} ({first_of(names, 5)}) are "
        "in two of its parts, so the scores are too high. Prepare and train again."
    )


def choose_others(
    root: Path, run: Run, part: str | None, folder: Path | None, assume: str | None = None
) -> tuple[Cohort, list[Case], list[str]]:
    """Return the cohort of another folder, its cases to score, and notes on them.

    Without `part` these are the cases of all patients from whom the run has not learned, each scan once. The hashes of
    the images are stored in `folder`, if given; `assume` as in `find_cases`. Raises `UnetlibError` when none is left.
    """
    cohort = find_cases(root, assume=assume, **run.reading)
    hashes = _hashes(cohort, run, folder)
    parts, named = _parts(cohort, run, hashes)
    if part is not None:
        chosen = [case for case in cohort.cases if part in ("all", parts[case.id])]
        if not chosen:
            raise UnetlibError(
                f"{root}: none of its {counted(len(cohort.cases), 'case')} is in the part {part!r} of the split."
                f"{reasons(cohort)} Name another folder with --data or another part with --split."
            )
        return cohort, chosen, [_warning(parts[case.id] for case in chosen)]
    chosen = [case for case in cohort.cases if parts[case.id] not in ("train", "val")]
    seen = [case.patient for case in cohort.cases if parts[case.id] in ("train", "val")]
    by_name = ""
    if strangers := sorted(named.intersection(seen)):
        by_name = f" {first_of(strangers, 3)}: known by name alone. If these are other people, give them other names."
    if not cohort.cases:
        raise UnetlibError(f"{root} holds no patient who can be scored.{reasons(cohort)}")
    number = counted(len(seen), "case")
    if not chosen:
        raise UnetlibError(
            f"{root} holds only patients whom {run} was trained or validated on ({number}): their scores would be "
            f"too high.{by_name}{reasons(cohort)} Name another folder with --data, or ask for these with --split all."
        )
    note = f"Left out: {number} of patients whom the run was trained or validated on.{by_name}"
    _, copies = without_copies((case, hashes[case.id].get("images", [])) for case in chosen)
    cohort = replace(cohort, left_out={**cohort.left_out, **copies})
    return cohort, [case for case in chosen if case.id not in copies], [note] if seen else []


def _parts(cohort: Cohort, run: Run, hashes: dict[str, dict[str, Any]]) -> tuple[dict[str, str | None], set[str]]:
    """Return the part of a run that each case of other data belongs to, or `None`; and patients known by name alone.

    Patients are recognised by their name, at the time of the split or today, and by a scan with the voxels of one of
    the run's cases or of earlier runs'. All scans of a recognised patient belong to that part.
    """
    provenance, split = run.provenance, run.split if run.split_file.exists() else None
    own = [{**case, "case": id} for id, case in provenance.get("cases", {}).items()]
    by_sign, by_name = part_by_sign([*provenance.get("earlier", {}).values(), *own]), _by_name(own, split)
    parts, known = dict[str, str](), set[str]()  # of a patient
    for case in cohort.cases:
        record = {"patient": case.patient, **hashes[case.id]}
        by_scan = {by_sign.get(sign) for sign in signs(record, case.id)} - {None}
        if by_scan:
            known.add(case.patient)
        found = {by_name.get(key(case.patient)), *by_scan}
        if first := next((part for part in PARTS if part in found | {parts.get(case.patient)}), None):
            parts[case.patient] = first
    return {case.id: parts.get(case.patient) for case in cohort.cases}, parts.keys() - known


def _by_name(own: list[dict[str, Any]], split: Split | None) -> dict[str, str]:
    """Return the part of each patient's name, in the split and today; train goes before val, and val before test."""
    parts: dict[str, str] = {}
    for part in reversed(PARTS):
        names = split.patients(part) if split else set()
        names |= {patient_of(case["case"]) for case in own if case["part"] == part and case.get("named_by") != TABLE}
        parts |= {key(name): part for name in (names if own else names | set(map(patient_of, names)))}
    return parts


def _hashes(cohort: Cohort, run: Run, folder: Path | None) -> dict[str, dict[str, Any]]:
    """Return, for each case of other data, the hashes to compare with the run's own cases."""
    provenance = run.provenance
    records = [*provenance.get("earlier", {}).values(), *provenance.get("cases", {}).values()]
    path = folder / "images.json" if folder else None
    images = _images(cohort, path) if any("image" in case for case in records) else {}
    # Version 0.3 hashed files only: only files of the same size are worth reading.
    sizes = {tuple(file[1] for file in case["files"]) for case in records if "image" not in case}
    found = {}
    for case in cohort.cases:
        found[case.id] = {"image": images[case.id][0], "images": images[case.id]} if images.get(case.id) else {}
        if tuple(file[1] for file in case.stamp(cohort.root)) in sizes:
            found[case.id]["sha256"] = sha256(*case.files())
    return found


def _images(cohort: Cohort, path: Path | None) -> dict[str, list[str]]:
    """Return the hash of each of a case's images, none if one cannot be read; `path` stores them for next time."""
    before = (read_earlier(path) if path else None) or {}
    stamps = {
        case.id: digest([case.id, case.modalities, cohort.assume, case.stamp(cohort.root)]) for case in cohort.cases
    }
    known = {stamp: before[stamp] for stamp in stamps.values() if before.get(stamp) and isinstance(before[stamp], str)}
    todo = [case for case in cohort.cases if stamps[case.id] not in known]
    try:
        for case, image in run_jobs(_hash_image, todo, "compare", "case", None, SHARE):
            known[stamps[case.id]] = image
    finally:
        if todo and path:
            write_json(path, {stamp: found for stamp, found in sorted(known.items()) if found})
    return {id: known[stamp].split() for id, stamp in stamps.items()}


def _hash_image(case: Case) -> str:
    try:
        return " ".join(hash_images(stack(read_images(case), case.modalities, case.fill)))
    except UnetlibError:
        return ""
