"""What is read from disk has the fields that it must have, or is refused with a sentence."""

import math

import pytest

from unetlib.support.errors import UnetlibError
from unetlib.support.records import COUNT, LIST, NAMES, NUMBER, RECORD, TEXT, TEXTS, one_of, optional, require

GOOD = {COUNT: 0, LIST: [1], NAMES: ["a"], NUMBER: 0.5, RECORD: {"a": 1}, TEXT: "", TEXTS: {"a": "b"}}
BAD = {
    COUNT: [-1, 1.0, True, "1", None],
    LIST: [(1,), {}, "a", None],
    NAMES: [[1], "a", None],
    NUMBER: [math.nan, math.inf, True, "1", None],
    RECORD: [[], {1: 2}, None],
    TEXT: [1, None, b"a"],
    TEXTS: [{"a": 1}, {1: "a"}, [], None],
}


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.expected)
def test_a_value_of_the_kind_is_taken_and_any_other_is_refused_by_name(kind):
    require({"field": GOOD[kind]}, "file.json", "Restore it.", field=kind)
    for value in BAD[kind]:
        with pytest.raises(UnetlibError) as error:
            require({"field": value}, "file.json", "Restore it.", field=kind)
        assert str(error.value) == f"file.json: its field is {value!r}; {kind.expected} was expected. Restore it."


def test_a_field_that_is_missing_is_named_unless_it_is_optional():
    require({}, "file.json", "", field=optional(TEXT))
    with pytest.raises(UnetlibError, match=r"^file.json lacks a, b: it was edited or damaged. Restore it.$"):
        require({"c": 1}, "file.json", "Restore it.", b=TEXT, a=TEXT)
    with pytest.raises(UnetlibError, match="its field is 3; a text was expected"):
        require({"field": 3}, "file.json", "", field=optional(TEXT))


def test_one_of_lists_what_it_takes():
    require({"field": None}, "file.json", "", field=one_of(None, "ras"))
    with pytest.raises(UnetlibError, match="one of None, ras was expected"):
        require({"field": "lps"}, "file.json", "", field=one_of(None, "ras"))


def test_something_else_than_a_record_is_refused():
    with pytest.raises(UnetlibError, match=r"file.json holds \[1\]; an object was expected"):
        require([1], "file.json", "", field=TEXT)
