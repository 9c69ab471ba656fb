"""The split: every patient in one part, the same parts for ever, a file that cannot be bent."""

import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetlib.data.split import PARTS, Split, make_split
from unetlib.support.errors import UnetlibError

ids = st.text(st.characters(codec="utf-8"), max_size=8)
cohorts = st.sets(ids, min_size=3, max_size=40)
seeds = st.integers(0, 2**32 - 1)
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)
SPLIT = Split(("a", "b", "c"), ("d",), ("e", "f"))


def patients(number):
    return [f"BraTS2021_{index:05d}" for index in range(number)]


def sizes(split):
    return tuple(len(getattr(split, part)) for part in PARTS)


def everyone(split):
    return [*split.train, *split.val, *split.test]


def as_file(path, split, **changes):
    """Write the split's file with some of its entries changed; `None` leaves an entry out."""
    split.save(path)
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


@given(cohorts, seeds, fractions)
def test_every_patient_is_in_exactly_one_part(cohort, seed, fraction):
    split = make_split(cohort, seed, fraction)
    assert sorted(everyone(split)) == sorted(cohort)


@given(cohorts, seeds, fractions)
def test_no_part_is_empty(cohort, seed, fraction):
    assert min(sizes(make_split(cohort, seed, fraction))) >= 1


@given(cohorts, seeds, st.randoms(use_true_random=False))
def test_order_and_duplicates_of_the_input_do_not_matter(cohort, seed, random):
    listed = [*cohort, *random.choices(sorted(cohort), k=5)]
    random.shuffle(listed)
    assert make_split(listed, seed) == make_split(sorted(cohort), seed)


@given(cohorts, seeds)
def test_patients_are_dealt_in_the_order_of_the_sha256_of_seed_and_id(cohort, seed):
    split = make_split(cohort, seed)
    keys = {one: int(hashlib.sha256(f"{seed}/{one}".encode()).hexdigest(), 16) for one in cohort}
    assert max(keys[one] for one in split.train) < min(keys[one] for one in split.val)
    assert max(keys[one] for one in split.val) < min(keys[one] for one in split.test)


@pytest.mark.parametrize("number", [10, 20, 70, 1251])
def test_the_parts_are_70_15_and_15_percent(number):
    train, val, test = sizes(make_split(patients(number)))
    assert abs(train - 0.70 * number) <= 0.5
    assert abs(val - 0.15 * number) < 1
    assert abs(test - 0.15 * number) < 1


@pytest.mark.parametrize(("fraction", "train"), [(0.5, 50), (0.8, 80), (0.01, 1), (0.001, 1), (0.999, 98)])
def test_the_train_fraction_decides_the_size_of_train(fraction, train):
    assert sizes(make_split(patients(100), train_fraction=fraction))[0] == train


@pytest.mark.parametrize("number", [3, 4, 5, 6])
@pytest.mark.parametrize("fraction", [0.01, 0.7, 0.99])
def test_of_a_handful_of_patients_every_part_gets_one(number, fraction):
    parts = sizes(make_split(patients(number), train_fraction=fraction))
    assert min(parts) >= 1
    assert sum(parts) == number


@pytest.mark.parametrize("number", [0, 1, 2])
def test_fewer_than_three_patients_are_refused(number):
    with pytest.raises(UnetlibError, match=rf"^{number} usable patient.* needs at least 3"):
        make_split(patients(number) * 3)


def test_the_seed_changes_the_split():
    assert len({make_split(patients(20), seed).hash for seed in range(50)}) == 50


def test_over_many_seeds_every_patient_is_as_often_in_train_as_any_other():
    cohort, draws = patients(10), 1000
    splits = [make_split(cohort, seed) for seed in range(draws)]
    share = np.mean([[one in split.train for one in cohort] for split in splits], axis=0)
    assert np.abs(share - 0.7).max() < 4 * np.sqrt(0.7 * 0.3 / draws)


def test_the_split_does_not_depend_on_the_hash_seed_of_the_process():
    code = "from unetlib.data.split import make_split; print(make_split(str(i) for i in range(50)).hash)"
    hashes = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert hashes == [make_split(str(i) for i in range(50)).hash] * 2


@given(cohorts, seeds)
def test_part_of_names_the_part_that_holds_the_patient(cohort, seed):
    split = make_split(cohort, seed)
    assert all(split.part_of(one) == part for part in PARTS for one in getattr(split, part))


def test_part_of_a_stranger_is_none():
    assert SPLIT.part_of("z") is None


@pytest.mark.parametrize("part", PARTS)
def test_a_split_with_an_empty_part_is_refused_by_name(part):
    parts = {"train": ("a",), "val": ("b",), "test": ("c",)} | {part: ()}
    with pytest.raises(UnetlibError, match=f"no {part} patient"):
        Split(**parts)


@pytest.mark.parametrize(
    "parts",
    [
        (("a", "x"), ("x",), ("c",)),
        (("a", "x"), ("b",), ("x",)),
        (("a",), ("b", "x"), ("x", "c")),
        (("a", "x", "x"), ("b",), ("c",)),
    ],
)
def test_a_patient_who_is_listed_twice_is_refused_by_name(parts):
    with pytest.raises(UnetlibError, match="holds x more than once"):
        Split(*parts)


@pytest.mark.parametrize(
    "other",
    [
        Split(("a", "b"), ("d",), ("e", "f", "c")),  # one moved
        Split(("a", "b", "d"), ("c",), ("e", "f")),  # two swapped
        Split(("a", "b", "c"), ("e", "f"), ("d",)),  # parts swapped
        Split(("a", "b"), ("c", "d"), ("e", "f")),  # a border moved
        Split(("a", "b", "C"), ("d",), ("e", "f")),  # one renamed
        Split(("a", "b"), ("d",), ("e", "f")),  # one left out
        Split(("a", "b", "c", "g"), ("d",), ("e", "f")),  # one added
        Split(("a", "bc"), ("d",), ("e", "f")),  # two run together
        Split(("b", "a", "c"), ("d",), ("e", "f")),  # another order
    ],
)
def test_the_hash_changes_when_anything_changes(other):
    assert other.hash != SPLIT.hash


def test_equal_splits_have_equal_hashes():
    assert Split(("a", "b", "c"), ("d",), ("e", "f")).hash == SPLIT.hash


def test_a_saved_split_is_loaded_as_it_was(tmp_path):
    split = make_split(["Zürich 1", 'a"b', "c,d", "e\nf", *patients(9)], seed=5)
    split.save(tmp_path / "new" / "split.json")
    assert Split.load(tmp_path / "new" / "split.json") == split


@pytest.mark.parametrize(
    "changes",
    [
        {"train": ["a", "b"], "test": ["e", "f", "c"]},
        {"train": ["a", "b", "x"]},
        {"train": ["a", "b"]},
        {"val": ["d", "g"]},
        {"test": ["f", "e"]},
        {"hash": "0" * 64},
        {"hash": None},
        {"hash": 1},
    ],
)
def test_an_edited_file_is_refused_by_name(tmp_path, changes):
    path = as_file(tmp_path / "split.json", SPLIT, **changes)
    with pytest.raises(
        UnetlibError, match=rf"^{re.escape(str(path))}(: its ids do not match its hash|: its hash is| lacks hash)"
    ):
        Split.load(path)


def test_a_file_that_lists_a_patient_twice_is_refused_by_name(tmp_path):
    path = as_file(tmp_path / "split.json", SPLIT, test=["e", "a"])
    with pytest.raises(UnetlibError, match=rf"^{re.escape(str(path))}: .* a more than once"):
        Split.load(path)


def test_a_file_with_an_empty_part_is_refused_by_name(tmp_path):
    path = as_file(tmp_path / "split.json", SPLIT, val=[])
    with pytest.raises(UnetlibError, match=rf"^{re.escape(str(path))}: .* no val patient"):
        Split.load(path)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [None, "abc", 1, True, {"a": "b"}, [1, 2], ["a", None], [["a"]]])
def test_a_part_that_is_no_list_of_ids_is_refused_by_the_name_of_its_file(tmp_path, part, value):
    path = as_file(tmp_path / "split.json", SPLIT, **{part: value})
    with pytest.raises(
        UnetlibError, match=rf"^{re.escape(str(path))}(: its {part} is .*; a list of patient ids| lacks {part})"
    ):
        Split.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"train": ["a"], ', b"\xff\xfe\x00", b"[]", b"null", b'"train"'])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "split.json"
    path.write_bytes(content)
    with pytest.raises(UnetlibError, match=rf"^{re.escape(str(path))}"):
        Split.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_file_cut_short_is_refused_by_name(tmp_path, share):
    path = tmp_path / "split.json"
    SPLIT.save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UnetlibError, match=rf"^{re.escape(str(path))}"):
        Split.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UnetlibError, match=re.escape(str(tmp_path / "split.json"))):
        Split.load(tmp_path / "split.json")
