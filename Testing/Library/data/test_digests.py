"""Digests see what means something and nothing else."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from FewShotSegLib.data.digests import sha256_of_array, sha256_of_json


def test_the_checksum_of_an_array_sees_values_shape_and_type_only():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    same = [np.asfortranarray(array), array.astype(">f4"), np.repeat(array, 2, axis=0)[::2]]
    assert {sha256_of_array(other) for other in same} == {sha256_of_array(array)}
    different = [array.reshape(4, 3, 2), array.astype(np.float64), array + 1, array.view(np.int32), array[:0]]
    assert len({sha256_of_array(other) for other in [array, *different]}) == 6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(0), np.zeros((0, 3))),
        (np.array(7), np.array([7])),
        (np.zeros(3, bool), np.zeros(3, np.uint8)),
        (np.array([0.0]), np.array([-0.0])),
        (np.array(["a"]), np.array(["b"])),
    ],
)
def test_arrays_that_are_only_alike_have_different_digests(one: np.ndarray, other: np.ndarray) -> None:
    assert sha256_of_array(one) != sha256_of_array(other)
    assert sha256_of_array(one) == sha256_of_array(one.copy())


def test_an_array_that_may_not_be_written_to_is_left_as_it_is() -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)[:, ::-1]
    array.flags.writeable = False
    before = array.copy()
    assert sha256_of_array(array) == sha256_of_array(before)
    assert np.array_equal(array, before)
    assert array.dtype == before.dtype


def test_the_digest_of_json_is_that_of_its_text_with_sorted_keys() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"ä": "ö"}}
    text = '{"a": {"\\u00e4": "\\u00f6"}, "b": [1, 2.5, null, true]}'
    assert json.loads(text) == value
    assert sha256_of_json(value) == hashlib.sha256(text.encode()).hexdigest()


def test_the_order_of_keys_and_the_kind_of_list_do_not_matter_and_all_else_does() -> None:
    same = [{"a": [1, {"b": 2, "c": 3}]}, {"a": (1, {"c": 3, "b": 2})}]
    assert len({sha256_of_json(value) for value in same}) == 1
    different = [
        {"a": [1, 2]},
        {"a": [2, 1]},
        {"a": "12"},
        {"a": 12},
        {"A": [1, 2]},
        [["a", [1, 2]]],
        {},
        [],
        None,
        0,
        "",
    ]
    assert len({sha256_of_json(value) for value in different}) == len(different)
