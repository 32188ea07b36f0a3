"""Values brought to their declared types: what fits, what is turned, what is refused and how."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from FewShotSegLib.data.schema import check_names, coerce, construct, described, shown, to_json
from FewShotSegLib.errors import InputError


@dataclass(frozen=True)
class Part:
    size: int = 1


@dataclass(frozen=True)
class Whole:
    name: str
    count: int = 0
    share: float | None = None
    kind: Literal["a", "b"] = "a"
    sides: tuple[int, ...] | Literal["all"] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    part: Part = field(default_factory=Part)
    parts: tuple[Part, ...] = ()
    names: dict[int, str] | None = None
    rest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coerce(self, "entry")


def test_what_went_through_json_equals_what_was_sent() -> None:
    sent = Whole("x", 3, 0.5, "b", (1, 2), (2.0, 3.0), Part(4), (Part(5),), {1: "liver"}, {"deep": [1, {"a": None}]})
    assert construct(Whole, json.loads(json.dumps(to_json(sent))), "entry") == sent


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": Path("a") / "b"}, ("name", str(Path("a") / "b"))),
        ({"name": "x", "count": 4.0}, ("count", 4)),
        ({"name": "x", "share": 1}, ("share", 1.0)),
        ({"name": "x", "sides": [3, 4]}, ("sides", (3, 4))),
        ({"name": "x", "sides": "all"}, ("sides", "all")),
        ({"name": "x", "part": {"size": 2}}, ("part", Part(2))),
        ({"name": "x", "names": {"7": "spleen"}}, ("names", {7: "spleen"})),
    ],
)
def test_values_become_their_declared_type(values: dict[str, Any], expected: tuple[str, Any]) -> None:
    value = getattr(construct(Whole, values, "entry"), expected[0])
    assert value == expected[1]
    assert type(value) is type(expected[1])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, 'The entry "name" is missing; add it.'),
        ({"name": "x", "cuont": 1}, 'Unknown entry "cuont"; did you mean "count"? Allowed: count, kind'),
        ({"name": 3}, 'Entry "name" must be a text, got 3.'),
        ({"name": "x", "count": True}, 'Entry "count" must be a whole number, got true.'),
        ({"name": "x", "count": 1.5}, 'Entry "count" must be a whole number, got 1.5.'),
        ({"name": "x", "share": float("inf")}, 'Entry "share" must be a finite number or none, got Infinity.'),
        ({"name": "x", "kind": "c"}, 'Entry "kind" must be one of "a", "b", got "c".'),
        ({"name": "x", "kind": ["a"]}, 'Entry "kind" must be one of "a", "b", got ["a"].'),
        ({"name": "x", "sides": [1, "z"]}, 'Entry "sides[1]" must be a whole number, got "z".'),
        ({"name": "x", "sides": "some"}, 'Entry "sides" must be a list (a whole number) or one of "all" or none'),
        ({"name": "x", "pair": [1]}, 'Entry "pair" must be a list (a finite number, a finite number), got [1].'),
        ({"name": "x", "part": {"size": "big"}}, 'part: Entry "size" must be a whole number, got "big".'),
        ({"name": "x", "parts": [{"sizes": 1}]}, 'parts[0]: Unknown entry "sizes"; did you mean "size"?'),
        ({"name": "x", "names": {"one": "liver"}}, 'Entry "names" must be a table like {"1": "liver"}'),
        ({"name": "x", "names": {"1": "a", "01": "b"}}, 'Entry "names" names label 1 twice'),
        ({"name": "x", "rest": {"a": {"b": float("nan")}}}, 'Entry "rest.a.b" must be a text, a finite number'),
        ([1], "An entry must be a table of names and values, got [1]."),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        construct(Whole, values, "entry")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_checked_without_building_anything() -> None:
    check_names(Part, ["size"], "entry")
    with pytest.raises(InputError, match=r'Unknown entry "sizes"; did you mean "size"\?'):
        check_names(Part, ["sizes"], "entry")


def test_a_value_that_fits_is_left_as_it_is() -> None:
    sides = (1, 2)
    assert Whole("x", sides=sides).sides is sides


def test_types_are_described_as_a_person_would() -> None:
    assert described(dict[str, Any]) == described(Part) == "a table of names and values"
    assert described(bool | None) == "true or false or none"


def test_long_values_are_shortened() -> None:
    assert shown("x" * 200) == '"' + "x" * 76 + "..."
