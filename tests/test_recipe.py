"""The recipe: the published values, what is refused, what survives a file."""

import json
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unetlib.recipe import MODALITIES, PREPARE, STAGES, Recipe
from unetlib.recipe_rules import IN_3D
from unetlib.support.errors import UnetlibError
from unetlib.support.fields import changed

NAN, INF = float("nan"), float("inf")

# What the paper states; it says nothing of the other fields.
PAPER = {
    "image_size": 96,
    "slices": "tumour",
    "normalise": "minmax-slice",
    "train_fraction": 0.70,
    "loss": "bce",
    "learning_rate": 1e-3,
    "batch_size": 4,
    "epochs": 10,
    "clip_norm": 1.0,
    "augment": True,
}

NO_TEXT = (None, 1, 0.5, True, ["bce"])
NO_NUMBER = (None, "1", True, False, [1], 1j)
NO_WHOLE = (*NO_NUMBER, 1.0, NAN, INF)
NO_YES_OR_NO = (None, 0, 1, "yes", 1.0)
NINE = " ".join(f"r{number}=1" for number in range(9))
NO_SHARE = (*NO_NUMBER, 0, 1, 0.0, 1.0, -0.1, 1.1, NAN, INF, -INF)
BAD = {
    "modalities": (*NO_TEXT, "", "T1", "flair  t1", " flair", "flair,t1", "t1 t1"),
    "regions": (
        *NO_TEXT,
        "",
        "tumour",
        "solid=",
        "=1",
        "whole whole=1",
        "a=1 a=2",
        " ".join(f"r{n}=1" for n in range(9)),
    ),
    "labels": (*NO_TEXT, "", "brats"),
    "missing": (*NO_TEXT, "", "0"),
    "drop_modalities": (*NO_NUMBER, 1, 1.0, -0.1, NAN, INF, -INF),
    "image_size": (*NO_WHOLE, 0, -96, 1025),
    "slices": (*NO_TEXT, "", "tumor", "TUMOUR"),
    "normalise": (*NO_TEXT, "", "zscore"),
    "crop": NO_YES_OR_NO,
    "train_fraction": NO_SHARE,
    "split_seed": (*NO_WHOLE, -1, 2**32),
    "neighbours": (*NO_WHOLE, -1, 9),
    "network": NO_TEXT,
    "width": (*NO_WHOLE, 0, -1, 513),
    "depth": (*NO_WHOLE, 0, -1, 9),
    "dims": (*NO_WHOLE, 0, 1, 4),
    "deep_supervision": NO_YES_OR_NO,
    "phantoms": NO_YES_OR_NO,
    "balance": NO_YES_OR_NO,
    "loss": NO_TEXT,
    "learning_rate": (*NO_NUMBER, 0, 0.0, -1e-3, NAN, INF, -INF),
    "schedule": (*NO_TEXT, "", "linear"),
    "average": (*NO_NUMBER, 1, 1.0, -0.1, 1.1, NAN, INF, -INF),
    "batch_size": (*NO_WHOLE, 0, -4, 1025),
    "epochs": (*NO_WHOLE, 0, -1),
    "clip_norm": (*NO_NUMBER, 0, 0.0, -1.0, NAN, INF, -INF),
    "augment": NO_YES_OR_NO,
    "upright": NO_YES_OR_NO,
    "warp": NO_YES_OR_NO,
    "intensity": NO_YES_OR_NO,
    "members": (*NO_WHOLE, 0, -1, 21),
    "precision": (*NO_TEXT, "", "fp16", "FP32"),
    "seed": (*NO_WHOLE, -1, 2**32),
    "threshold": NO_SHARE,
    "mirror": NO_YES_OR_NO,
    "tune": NO_YES_OR_NO,
}
SEEN_FIELDS = {"modalities", "regions", "labels", "missing"}
PREPARE_FIELDS = {"dims", "image_size", "slices", "normalise", "crop", "train_fraction", "split_seed"} | SEEN_FIELDS

sides, sizes = st.integers(1, 1024), st.integers(1, 512)
real = st.floats(0, 100, exclude_min=True)
share = st.floats(0, 1, exclude_min=True, exclude_max=True)
good = {
    "modalities": st.lists(st.sampled_from(MODALITIES), min_size=1, unique=True).map(" ".join),
    "regions": st.lists(st.sampled_from(["whole", "core", "enhancing", "solid=1+4"]), min_size=1, unique=True).map(
        " ".join
    ),
    "labels": st.sampled_from(["auto", "brats2021", "brats2023", "decathlon"]),
    "missing": st.sampled_from(["leave-out", "zero"]),
    "drop_modalities": st.floats(0, 1, exclude_max=True) | st.just(0),
    "image_size": sides,
    "slices": st.sampled_from(["tumour", "brain", "all"]),
    "normalise": st.sampled_from(["minmax-slice", "minmax-volume", "median-volume"]),
    "crop": st.booleans(),
    "train_fraction": share,
    "split_seed": st.integers(0, 2**32 - 1),
    "neighbours": st.integers(0, 8),
    "network": st.text(),
    "width": sizes,
    "depth": st.integers(1, 8),
    "dims": st.sampled_from([2, 3]),
    "deep_supervision": st.booleans(),
    "phantoms": st.booleans(),
    "balance": st.booleans(),
    "loss": st.text(),
    "learning_rate": real | st.integers(1, 100),
    "schedule": st.sampled_from(["constant", "cosine"]),
    "average": st.floats(0, 1, exclude_max=True) | st.just(0),
    "batch_size": sides,
    "epochs": st.integers(1, 100_000),
    "clip_norm": real | sizes,
    "augment": st.booleans(),
    "upright": st.booleans(),
    "warp": st.booleans(),
    "intensity": st.booleans(),
    "members": st.integers(1, 20),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "seed": st.integers(0, 2**32 - 1),
    "threshold": share,
    "mirror": st.booleans(),
    "tune": st.booleans(),
}


@st.composite
def recipes(draw):
    values = draw(st.fixed_dictionaries({}, optional=good))
    assume(values.get("image_size", 96) > 2 ** values.get("depth", 4))
    if values.get("slices", "tumour") != "all":
        values |= {"neighbours": 0, "balance": False}
    if " " not in values.get("modalities", "flair"):
        values |= {"drop_modalities": 0}
    if values.get("dims") == 3:
        values |= IN_3D | {"image_size": min(32 * values.get("image_size", 3), 1024)}
    return Recipe(**values)


@pytest.mark.parametrize("name", PAPER)
def test_the_default_is_the_published_value(name):
    assert getattr(Recipe(), name) == PAPER[name]


def test_published_is_the_recipe_of_all_defaults():
    assert Recipe.published == Recipe()


@pytest.mark.parametrize(("size", "near"), [(16, "32 or 64"), (48, "32 or 64"), (100, "96 or 128")])
def test_the_sides_of_a_cube_are_a_multiple_of_32(size, near):
    with pytest.raises(UnetlibError, match=f"image_size is {size}; .* multiple of 32, such as {near}"):
        Recipe.volume.but(image_size=size, depth=2)
    assert Recipe.published.but(image_size=size, depth=2).image_size == size


@pytest.mark.parametrize("name", IN_3D)
def test_whole_volumes_refuse_what_only_slices_have(name):
    values = {"slices": "tumour", "normalise": "minmax-slice", "crop": False, "neighbours": 1}
    values |= {"balance": True, "phantoms": True}
    with pytest.raises(UnetlibError, match=f"^recipe: {name} is {values[name]}; .* was expected for whole volumes"):
        Recipe.volume.but(**{name: values[name]})


def test_every_field_has_bad_values_in_this_test():
    assert set(BAD) == set(good) == {spec.name for spec in fields(Recipe)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_a_value_out_of_range_or_of_a_wrong_type_is_refused_by_name(name, value):
    with pytest.raises(UnetlibError, match=rf"^recipe: {name} is .* expected"):
        Recipe(**{name: value})


@pytest.mark.parametrize("name", ["slices", "normalise", "precision"])
def test_the_refusal_of_an_unknown_word_lists_the_known_ones(name):
    choices = next(spec.metadata["choices"] for spec in fields(Recipe) if spec.name == name)
    with pytest.raises(UnetlibError, match=", ".join(choices)):
        Recipe(**{name: "other"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 0),
        ("seed", 2**32 - 1),
        ("split_seed", 2**32 - 1),
        ("learning_rate", 1),
        ("clip_norm", 5e-324),
        ("batch_size", 1),
        ("epochs", 1),
        ("width", 1),
        ("threshold", 1e-9),
        ("train_fraction", 0.999),
    ],
)
def test_the_last_value_inside_the_range_is_accepted(name, value):
    assert getattr(Recipe(**{name: value}), name) == value


@pytest.mark.parametrize(("size", "depth"), [(16, 4), (15, 4), (2, 1), (1, 1), (96, 7)])
def test_slices_that_the_halvings_use_up_are_refused(size, depth):
    with pytest.raises(UnetlibError, match=rf"a depth of {depth} leaves nothing of slices of {size} pixels"):
        Recipe(image_size=size, depth=depth)


@pytest.mark.parametrize(("size", "depth"), [(17, 4), (3, 1), (96, 6)])
def test_slices_of_one_pixel_more_than_the_halvings_use_up_are_accepted(size, depth):
    assert Recipe(image_size=size, depth=depth).depth == depth


@pytest.mark.parametrize("slices", ["tumour", "brain"])
@pytest.mark.parametrize("change", [{"neighbours": 1}, {"balance": True}])
def test_what_needs_all_slices_is_refused_without_them(change, slices):
    with pytest.raises(UnetlibError, match=f"recipe: {next(iter(change))} is .*slices with {slices} are kept; all"):
        Recipe(slices=slices, **change)
    assert Recipe(slices="all", **change).slices == "all"


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Recipe().width = 64


def test_the_stage_prepare_holds_what_decides_the_slices():
    assert set(Recipe().stage(PREPARE)) == PREPARE_FIELDS


@given(recipes())
def test_the_stages_are_disjoint_and_make_the_whole(recipe):
    stages = [recipe.stage(stage) for stage in STAGES]
    assert sum(map(len, stages)) == len(recipe.as_dict())
    assert stages[0] | stages[1] | stages[2] == recipe.as_dict()


@given(recipes())
def test_a_recipe_survives_json(recipe):
    assert Recipe(**json.loads(json.dumps(recipe.as_dict(), allow_nan=False))) == recipe


@pytest.mark.parametrize(("name", "value"), [("width", 64), ("augment", False), ("loss", "dice+bce"), ("seed", 7)])
def test_but_changes_the_named_field_and_no_other(name, value):
    before = Recipe(epochs=3)
    assert before.but(**{name: value}).as_dict() == before.as_dict() | {name: value}
    assert before == Recipe(epochs=3)


def test_but_refuses_fields_that_do_not_exist_by_name():
    with pytest.raises(UnetlibError, match="no field named heigth, widht"):
        Recipe().but(widht=64, heigth=1, seed=1)


def test_but_refuses_the_class_variable_published():
    with pytest.raises(UnetlibError, match="no field named published"):
        Recipe().but(published=None)


def test_but_refuses_a_value_out_of_range():
    with pytest.raises(UnetlibError, match="recipe: width is 0"):
        Recipe().but(width=0)


def test_changed_names_each_differing_key_with_both_values():
    before, after = {"width": 32, "seed": 0, "loss": "bce"}, {"width": 16, "seed": 0, "loss": "dice"}
    assert changed(before, after) == "loss: bce -> dice, width: 32 -> 16"


def test_changed_names_keys_that_one_side_lacks():
    assert changed({"old": 1}, {"new": 2}) == "new: None -> 2, old: 1 -> None"
    assert changed({"hash": "a1" * 32}, {"hash": "b" * 64}) == f"hash: {'a1' * 6}… -> {'b' * 12}…"


@given(recipes(), recipes())
def test_changed_is_empty_exactly_for_equal_recipes(one, other):
    assert (changed(one.as_dict(), other.as_dict()) == "") == (one == other)
    assert changed(one.as_dict(), one.as_dict()) == ""
