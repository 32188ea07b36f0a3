"""Recipes are checked, strict, and the same after JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from FewShotSegLib.data.recipe import check, describe, from_dict, option, to_dict, with_overrides, with_preset
from FewShotSegLib.errors import InputError


@dataclass(frozen=True)
class Inner:
    angle: float = option(10.0, "Largest rotation in degrees", min=0, max=180)
    flips: tuple[str, ...] = option(("i",), "Axes to mirror", choices=("i", "j"))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Recipe:
    rank: int = option(4, "Size of the update", min=1, max=64)
    rate: float = option(1e-3, "Learning rate", min=0)
    decoder: bool = option(True, "Adapt the decoder")
    preset: str = option("cpu", "Size of the computer", choices=("cpu", "8GB"))
    alpha: float | None = option(None, "Scale; none: the rank", min=0, advanced=True)
    blocks: tuple[int, ...] | None = option(None, "Blocks to adapt", min=0)
    scale: tuple[float, float] = option((0.9, 1.1), "Range of sizes", min=0.1, max=10)
    synthesis: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check(self)


def test_the_defaults_are_valid_and_carry_what_a_form_needs():
    assert Recipe().rank == 4
    metadata = Recipe.__dataclass_fields__["rank"].metadata
    assert dict(metadata) == {"help": "Size of the update", "min": 1, "max": 64, "choices": None, "advanced": False}
    assert Recipe.__dataclass_fields__["preset"].metadata["choices"] == ("cpu", "8GB")
    assert Recipe.__dataclass_fields__["alpha"].metadata["advanced"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, r'"rank" must be between 1 and 64, got 0'),
        ({"rank": 65}, r'"rank" must be between 1 and 64, got 65'),
        ({"rank": 2.5}, r'"rank" must be a whole number, got 2\.5'),
        ({"rank": True}, r'"rank" must be a whole number, got true'),
        ({"rank": "4"}, '"rank" must be a whole number, got "4"'),
        ({"rank": None}, r'"rank" must be a whole number, got null'),
        ({"rate": -1.0}, r'"rate" must be at least 0, got -1'),
        ({"rate": float("nan")}, r'"rate" must be a finite number, got NaN'),
        ({"decoder": 1}, r'"decoder" must be true or false, got 1'),
        ({"preset": "16GB"}, r"\"preset\" must be one of cpu, 8GB, got '16GB'"),
        ({"alpha": "x"}, '"alpha" must be a finite number or none, got "x"'),
        ({"blocks": (1, -2)}, r'"blocks" must be at least 0, got -2'),
        ({"blocks": 3}, r'"blocks" must be a list'),
        ({"scale": (1.0,)}, r'"scale" must be a list'),
        ({"scale": (1.0, 11)}, r'"scale" must be between 0\.1 and 10, got 11'),
        ({"synthesis": 3}, r'"synthesis" must be'),
    ],
)
def test_a_wrong_value_is_refused_with_name_value_and_what_is_allowed(values, message):
    with pytest.raises(InputError, match=message):
        Recipe(**values)


def test_values_take_their_declared_type():
    recipe = Recipe(rank=8.0, rate=1, blocks=[1, 2], scale=[1, 2], synthesis={"angle": 3})
    assert recipe == Recipe(rank=8, rate=1.0, blocks=(1, 2), scale=(1.0, 2.0), synthesis=Inner(angle=3.0))
    assert type(recipe.rank) is int
    assert type(recipe.rate) is float
    assert all(type(value) is float for value in recipe.scale)


recipes = st.builds(
    Recipe,
    rank=st.integers(1, 64),
    rate=st.floats(0, 1e6),
    decoder=st.booleans(),
    preset=st.sampled_from(["cpu", "8GB"]),
    alpha=st.none() | st.floats(0, 1e3),
    blocks=st.none() | st.lists(st.integers(0, 40)).map(tuple),
    scale=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    synthesis=st.builds(Inner, angle=st.floats(0, 180), flips=st.lists(st.sampled_from(["i", "j"])).map(tuple)),
)


@given(recipes)
def test_a_recipe_equals_itself_after_json(recipe):
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


@given(recipes)
def test_every_option_can_be_given_as_text(recipe):
    def text(value):
        return ",".join(str(element) for element in value) if isinstance(value, tuple) else str(value)

    flat = {key: value for key, value in vars(recipe).items() if key != "synthesis"}
    flat |= {f"synthesis.{key}": value for key, value in vars(recipe.synthesis).items()}
    assert with_overrides(Recipe(), [f"{key}={text(value)}" for key, value in flat.items()]) == recipe


def test_missing_keys_keep_their_defaults():
    assert from_dict(Recipe, {"rank": 7}) == replace(Recipe(), rank=7)


def test_an_unknown_key_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r'Unknown recipe option "rnak"; did you mean "rank"\? Allowed: alpha, blocks'):
        from_dict(Recipe, {"rnak": 7})
    with pytest.raises(InputError, match=r'"angel"; did you mean "angle"'):
        with_overrides(Recipe(), ["synthesis.angel=4"])
    with pytest.raises(InputError, match=r'Unknown recipe option "zzzzzz"\. Allowed'):
        with_overrides(Recipe(), ["zzzzzz=1"])
    with pytest.raises(InputError, match=r"a table of names and values, got \[1\]"):
        from_dict(Recipe, [1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rank", 'like "key=value", got "rank"'),
        ("rank=four", r'"rank" must be a whole number, got "four"'),
        ("rank=4.5", r'"rank" must be a whole number, got "4\.5"'),
        ("decoder=maybe", r'"decoder" must be true or false, got "maybe"'),
        ("scale=1", r'"scale" takes 2 values separated by commas, got "1"'),
        ("rank.x=1", '"rank" has no parts'),
        ("rank=99", "between 1 and 64"),
        ("rate=inf", "finite number"),
    ],
)
def test_a_wrong_text_is_refused(override, message):
    with pytest.raises(InputError, match=message):
        with_overrides(Recipe(), [override])


def test_texts_are_read_by_type():
    recipe = with_overrides(Recipe(), ["rank=1e1", "decoder = no", "alpha=none", "blocks=(1, 2,)", "preset=8GB"])
    assert recipe == Recipe(rank=10, decoder=False, alpha=None, blocks=(1, 2), preset="8GB")
    assert with_overrides(recipe, ["blocks=none"]).blocks is None
    assert with_overrides(recipe, ["blocks="]).blocks == ()


def test_a_described_recipe_is_json_and_tells_a_form_all_it_needs():
    described = {entry["name"]: entry for entry in json.loads(json.dumps(describe(Recipe)))}
    assert list(described) == [field.name for field in fields(Recipe)]
    rank = {"kind": "int", "default": 4, "min": 1, "max": 64, "choices": None, "optional": False, "advanced": False}
    assert described["rank"] == {"name": "rank", "help": "Size of the update", **rank}
    assert (described["preset"]["kind"], described["preset"]["choices"]) == ("choice", ["cpu", "8GB"])
    assert (described["alpha"]["kind"], described["alpha"]["optional"]) == ("float", True)
    assert (described["blocks"]["parts"], described["blocks"]["any_length"]) == (["int"], True)
    assert (described["scale"]["parts"], described["scale"]["any_length"]) == (["float", "float"], False)
    assert [entry["name"] for entry in described["synthesis"]["options"]] == ["angle", "flips"]


def test_an_option_of_several_types_cannot_be_described():
    @dataclass(frozen=True)
    class Mixed:
        size: int | str = option(1, "Size")

    with pytest.raises(TypeError, match=r'"size" has several types'):
        describe(Mixed)


@dataclass(frozen=True)
class Rates:
    rate: float = option(0.3, "How fast", min=0.0, max=1.0)
    steps: int = option(5, "How long", min=1)


def test_a_preset_fills_in_what_still_has_its_default() -> None:
    assert with_preset(Rates(rate=0.5), {"rate": 0.1, "steps": 7}) == Rates(rate=0.5, steps=7)
    with pytest.raises(AttributeError, match="depth"):
        with_preset(Rates(), {"depth": 3})
