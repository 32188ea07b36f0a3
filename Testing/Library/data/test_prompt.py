"""Clicks, boxes and masks are checked against slice and volume."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError


@pytest.fixture
def volume():
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -30, 70], degrees=True).as_matrix() * [1, -2, 4]
    affine[:3, 3] = -50, 20, 33
    return Volume(np.zeros((10, 20, 30)), affine)  # i 0..29, j 0..19, k 0..9


def point(axis=0, index=5, ijk=((3, 4, 5),), labels=(1,), **rest):
    return Prompt(axis, index, points_ijk=np.array(ijk), point_labels=np.array(labels), **rest)


def test_a_prompt_has_tidy_arrays():
    prompt = Prompt(0, 5, points_ijk=[[3, 4, 5]], point_labels=[True], box_ijk=[[9, 1, 5], [2, 8, 5]], mask=[[0, 1]])
    assert prompt.points_ijk.dtype == np.float64
    assert prompt.point_labels.tolist() == [1]
    assert prompt.box_ijk.tolist() == [[2, 1, 5], [9, 8, 5]]
    assert prompt.mask.dtype == bool
    assert Prompt(0, 5, structure="liver").points_ijk.shape == (0, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axis": 3, "index": 0}, r"axis is 0 \(k\), 1 \(j\) or 2 \(i\), got 3"),
        ({"axis": "k", "index": 0}, "axis is 0"),
        ({"axis": 0, "index": -1}, "slice index is a whole number from 0, got -1"),
        ({"axis": 0, "index": 2.5}, r"got 2\.5"),
        ({"axis": 0, "index": 5}, "needs a point, a box, a mask or the name"),
        ({"axis": 0, "index": 5, "points_ijk": [[1, 2]], "point_labels": [1]}, "three finite numbers"),
        ({"axis": 0, "index": 5, "points_ijk": [[1, 2, np.nan]], "point_labels": [1]}, "three finite numbers"),
        ({"axis": 0, "index": 5, "points_ijk": "here", "point_labels": [1]}, "list of"),
        ({"axis": 0, "index": 5, "points_ijk": [[1, 2, 5]]}, "Every point needs one label, got 1 points"),
        ({"axis": 0, "index": 5, "points_ijk": [[1, 2, 5]], "point_labels": [2]}, r"1 \(inside\) or 0 \(outside\)"),
        ({"axis": 0, "index": 5, "points_ijk": [[1, 2, 7]], "point_labels": [1]}, "Point 1 lies at k=7; .* k=5"),
        ({"axis": 2, "index": 5, "points_ijk": [[1, 2, 5]], "point_labels": [1]}, "Point 1 lies at i=1; .* i=5"),
        ({"axis": 0, "index": 5, "box_ijk": [[1, 2, 5]]}, "two corners of three numbers"),
        ({"axis": 0, "index": 5, "box_ijk": [[1, 2, 5], [1, 9, 5]]}, "differ in both directions"),
        ({"axis": 0, "index": 5, "box_ijk": [[1, 2, 5], [4, 9, 8]]}, "corner of the box lies at k=8"),
        ({"axis": 0, "index": 5, "mask": np.zeros((2, 2, 2))}, "mask is a 2-D array"),
        ({"axis": 0, "index": 5, "mask": [[0, 2]]}, "mask is a 2-D array"),
        ({"axis": 0, "index": 5, "structure": " "}, "structure is a name"),
    ],
)
def test_a_prompt_without_sense_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Prompt(**values)


@pytest.mark.parametrize(
    ("axis", "index", "ijk"),
    [(0, 5, (30, 4, 5)), (0, 5, (3, -1, 5)), (0, 5, (29.6, 4, 5)), (1, 4, (3, 4, 10)), (2, 3, (3, 20, 5))],
)
def test_a_point_outside_the_volume_is_refused(volume, axis, index, ijk):
    inside = tuple(min(max(x, 0), size - 1) for x, size in zip(ijk, (30, 20, 10), strict=True))
    prompt = point(axis, index, ijk=(inside, ijk), labels=(1, 0))
    at = ", ".join(f"{letter}={x:g}" for letter, x in zip("ijk", ijk, strict=True))
    with pytest.raises(
        InputError, match=rf"Point 2 \(label 0\) at {at} lies outside the volume, which has i=0 to 29, j=0 to 19, k=0"
    ):
        prompt.check_inside(volume)


def test_voxels_reach_half_a_voxel_around_their_centre(volume):
    point(ijk=((-0.5, 19.5, 5.5),)).check_inside(volume)
    point(ijk=((29.5, -0.5, 4.5),)).check_inside(volume)


def test_slice_box_and_mask_are_checked_against_the_volume(volume):
    with pytest.raises(InputError, match="slice k=10; the volume has k=0 to 9"):
        Prompt(0, 10, structure="liver").check_inside(volume)
    with pytest.raises(InputError, match="corner of the box at i=40"):
        Prompt(0, 5, box_ijk=[[1, 1, 5], [40, 3, 5]]).check_inside(volume)
    with pytest.raises(InputError, match=r"mask has the shape \(20, 30\); a slice of the volume has \(10, 30\)"):
        Prompt(1, 5, mask=np.ones((20, 30))).check_inside(volume)
    Prompt(1, 5, mask=np.ones((10, 30))).check_inside(volume)


def test_ras_coordinates_without_a_volume_are_refused():
    with pytest.raises(InputError, match="points_ras needs the volume"):
        Prompt.from_dict({"axis": "k", "points_ras": [[1, 2, 3]]})
