"""An adapter says what it is and where it belongs, and its digest sees every change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from FewShotSegLib.data.adapter import check_base
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.errors import InputError
from Testing.Library.examples import an_adapter


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"structures": {6: "liver", 1: "spleen"}},
        {"intensity": IntensitySpec("window", -125, 275, "unit")},
        {"recipe": {"rank": 8}},
        {"base_sha256": "cd" * 32},
        {"axis": 1},
        {"tensors": {"a": np.zeros(3)}},
    ],
)
def test_the_digest_sees_every_change(change):
    assert replace(an_adapter(), **change).digest != an_adapter().digest


def test_the_digest_sees_names_types_shapes_and_values_of_tensors():
    tensors = [
        {"a": np.zeros((2, 3), np.float32)},
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.full((2, 3), -0.0, np.float32)},
        {},
    ]
    assert len({an_adapter(tensors=each).digest for each in tensors}) == len(tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": {"a": np.array([{}])}}, 'Tensor "a" has the type object'),
        ({"tensors": {"a": np.zeros(2, complex)}}, "complex128"),
        ({"structures": {0: "background"}}, "from 1 to 65535"),
        ({"metrics": {"dice": float("nan")}}, "metrics must be texts, finite numbers"),
        ({"provenance": {"when": {1, 2}}}, "provenance must be texts"),
        ({"base_model": ""}, "needs the name of its base model, or its own architecture"),
        ({"axis": 5}, "slice axis is 0"),
    ],
)
def test_an_adapter_without_sense_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        an_adapter(**changes)


def test_an_adapter_for_another_base_is_refused_with_both_names():
    check_base(an_adapter(), "any name", "ab" * 32)
    with pytest.raises(InputError, match=r"made for the base model vit_b \(sha256 abab.*got medsam \(sha256 cdcd"):
        check_base(an_adapter(), "medsam", "cd" * 32)
