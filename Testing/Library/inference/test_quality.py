"""Volumes against arithmetic, and flags on what should be looked at."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.inference.quality import CUT_OFF, EMPTY, UNSURE, least_sure_slice, quality
from FewShotSegLib.inference.segment import Segmentation
from Testing.Library.grids import affine_of

OBLIQUE = affine_of((17, -33, 50), (0.8, 1.1, 3.3), flips=(-1, 1, 1))


def found(labels: np.ndarray, names: dict[int, str], confidence: dict[int, dict[int, float]] | None = None):
    return Segmentation(Labelmap(Volume(labels, OBLIQUE), names), {}, confidence or {})


def a_block(shape: tuple[int, int, int] = (6, 8, 10)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[2:4, 3:6, 4:8] = 3
    return labels


def test_the_volume_is_that_of_the_voxels_in_millilitres() -> None:
    (row,) = quality(found(a_block(), {3: "liver"}), 0).values()
    assert (row["label"], row["voxels"]) == (3, 2 * 3 * 4)
    assert row["volume_ml"] == pytest.approx(24 * 0.8 * 1.1 * 3.3 / 1000, abs=1e-4)
    assert (row["confidence"], row["flags"]) == (None, [])


@pytest.mark.parametrize(("axis", "held"), [(0, (2, 3)), (1, (3, 4, 5)), (2, (4, 5, 6, 7))])
def test_confidence_is_the_mean_over_the_slices_that_hold_the_structure(axis: int, held: tuple[int, ...]) -> None:
    sure = {index: 0.6 + 0.04 * index for index in range(a_block().shape[axis])}
    (row,) = quality(found(a_block(), {3: "liver"}, {3: sure}), axis).values()
    assert row["confidence"] == pytest.approx(np.mean([sure[index] for index in held]), abs=1e-4)
    assert row["flags"] == []


def test_a_low_confidence_is_flagged() -> None:
    (row,) = quality(found(a_block(), {3: "liver"}, {3: {2: 0.3, 3: 0.6, 5: 1.0}}), 0).values()
    assert row["confidence"] == pytest.approx(0.45)
    assert row["flags"] == [UNSURE]
    (row,) = quality(found(a_block(), {3: "liver"}, {3: {2: 0.4, 3: 0.6}}), 0).values()
    assert row["flags"] == []  # 0.5 is enough


def test_a_structure_that_was_not_found_is_flagged_as_empty_and_nothing_else() -> None:
    rows = quality(found(a_block(), {3: "liver", 7: "spleen"}, {7: {2: 0.1}}), 0)
    assert rows["spleen"] == {"label": 7, "volume_ml": 0, "voxels": 0, "confidence": None, "flags": [EMPTY]}
    assert rows["liver"]["flags"] == []


@pytest.mark.parametrize("side", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_a_structure_that_leaves_the_image_within_its_slices_is_flagged_and_one_on_the_end_slices_is_not(
    side: int, end: int
) -> None:
    labels = np.zeros((6, 8, 10), np.uint8)
    middle = [3, 4, 5]
    middle[side] = end
    labels[tuple(middle)] = 3
    for axis in range(3):
        flags = quality(found(labels, {3: "liver"}), axis)["liver"]["flags"]
        assert flags == ([] if axis == side else [CUT_OFF])


def test_the_only_slice_of_an_image_is_no_border() -> None:
    labels = a_block()[2:3]
    assert quality(found(labels, {3: "liver"}), 0)["liver"]["flags"] == []
    labels[0, 0, 5] = 3
    assert quality(found(labels, {3: "liver"}, {3: {0: 0.2}}), 0)["liver"]["flags"] == [UNSURE, CUT_OFF]


def test_the_least_sure_slice_is_one_that_holds_the_structure() -> None:
    labels = a_block()
    labels[5, 0, 0] = 7
    doubts = {3: {0: 0.1, 2: 0.8, 3: 0.6}, 7: {3: 0.2, 5: 0.7}}  # nothing of 3 is on slice 0, nothing of 7 on slice 3
    assert least_sure_slice(found(labels, {3: "liver", 7: "spleen"}, doubts), 0) == 3
    assert least_sure_slice(found(labels, {3: "liver"}), 0) is None
