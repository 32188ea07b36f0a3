"""JSON within limits: what is meant comes through, everything else is one sentence."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from FewShotSegLib.data.json_text import MOST_BYTES, parsed_json, parsed_table
from FewShotSegLib.errors import InputError

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_what_python_writes_comes_back(value: Any) -> None:
    assert parsed_json(json.dumps(value), "It") == value
    assert parsed_json(json.dumps(value, ensure_ascii=False).encode(), "It") == value


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40) | st.text('[]{}",:0123456789.eE-+truefalsn\\u ', max_size=40))
def test_anything_else_is_one_sentence(content: bytes | str) -> None:
    said = "The file a.json is fine"
    try:
        parsed_json(content, "The file a.json")
    except InputError as error:
        said = str(error)
    assert said.startswith("The file a.json ")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ('{"a":' * 80 + "1" + "}" * 80, "nested too deeply"),
        ("1" * 5000, "a number of 5000 digits"),
        ("1" * 20, "1" * 20),
        ("1e999", "1e999"),
        ("NaN", "NaN"),
        ("[-Infinity]", "-Infinity"),
        ('["a\\u0000b"]', "zero byte"),
        ('{"\\ud800": 1}', "half a character"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"a": 1', "in line 1, column 8"),
        ("", "in line 1, column 1"),
        (b" " * (MOST_BYTES + 1), "too large"),
    ],
)
def test_what_cannot_be_meant_is_refused(content: bytes | str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parsed_json(content, "The job")


def test_memory_stays_below_a_gigabyte_for_the_largest_text() -> None:
    part = 64  # of the largest text, which takes that many times as much
    content = b"[" + b"[]," * (MOST_BYTES // 3 // part) + b"[]]"
    tracemalloc.start()
    parsed_json(content, "It")
    assert tracemalloc.get_traced_memory()[1] * part < 1e9
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "kind"), [("[1]", "a list"), ('"a"', "a text"), ("null", "null"), ("5", "a number")]
)
def test_a_table_is_asked_for(content: str, kind: str) -> None:
    assert parsed_table('\ufeff{"a": 1}'.encode(), "It") == {"a": 1}
    with pytest.raises(InputError, match=f"The card must hold a table of names and values, got {kind}"):
        parsed_table(content, "The card")
