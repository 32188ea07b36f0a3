"""Clicks, boxes and masks are checked against slice and volume, and survive a file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume, ras_from_ijk
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.prompts import load_prompts, save_prompts


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


def assert_equal(one, other):
    assert (one.axis, one.index, one.structure) == (other.axis, other.index, other.structure)
    for name in ("points_ijk", "point_labels", "box_ijk", "mask"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None)
        assert first is None or np.array_equal(first, second)


def random_masks():
    rng = np.random.default_rng(0)
    return [rng.random((20, 30)) < share for share in (0, 0.1, 0.5, 0.9, 1)]


def test_prompts_survive_a_file(tmp_path, volume):
    prompts = [
        point(structure="Läsion", ijk=((3.25, 4, 5), (1, 2, 5)), labels=(1, 0)),
        Prompt(2, 7, box_ijk=[[7, 3, 1], [7, 9, 4]]),
        Prompt(1, 3, structure="liver"),
        *[Prompt(0, 5, mask=mask) for mask in random_masks()],
    ]
    path = tmp_path / "Über all.json"
    save_prompts(prompts, path)
    again = load_prompts(path, volume)
    assert len(again) == len(prompts)
    for one, other in zip(prompts, again, strict=True):
        assert_equal(one, other)


def write(path, *prompts):
    path.write_text(json.dumps({"prompts": prompts}), encoding="utf-8")
    return path


def test_ras_coordinates_find_their_slice(tmp_path, volume):
    ras = ras_from_ijk(volume.affine, [[3, 4, 5], [10, 12, 5], [1, 1, 2], [9, 8, 2]]).tolist()
    path = write(
        tmp_path / "a.json", {"points_ras": ras[:2], "point_labels": [1, 0]}, {"axis": "k", "box_ras": ras[2:]}
    )
    clicks, box = load_prompts(path, volume)
    assert (clicks.axis, clicks.index) == (0, 5)  # the acquisition plane, and the slice the point lies on
    assert clicks.points_ijk == pytest.approx(np.array([[3, 4, 5], [10, 12, 5]]), abs=1e-9)
    assert clicks.point_labels.tolist() == [1, 0]
    assert box.index == 2
    assert box.box_ijk == pytest.approx(np.array([[1, 1, 2], [9, 8, 2]]), abs=1e-9)


def test_missing_point_labels_mean_inside(tmp_path, volume):
    (prompt,) = load_prompts(write(tmp_path / "a.json", {"axis": "j", "index": 4, "points_ijk": [[3, 4, 5]]}), volume)
    assert prompt.point_labels.tolist() == [1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"axis": "z", "index": 1, "structure": "a"}, "axis is k, j or i, got 'z'"),
        ({"axis": "k", "structure": "a"}, "needs the index of its slice"),
        ({"axis": "k", "points_ijk": [[30, 1, 1]]}, "Point 1 .* lies outside the volume"),
        ({"axis": "k", "point": [[1, 1, 1]]}, 'Unknown key "point" in a prompt; allowed are axis, box_ijk'),
        ({"points_ijk": [[1, 1, 1]], "points_ras": [[1, 1, 1]]}, "got both"),
        ({"axis": "k", "index": 1, "mask": {"shape": [20, 30], "runs": [5]}}, "runs that add up"),
        ({"axis": "k", "index": 1, "mask": [1]}, "runs that add up"),
        ([1], "a table of names and values"),
    ],
)
def test_a_wrong_entry_is_named_with_file_and_number(tmp_path, volume, entry, message):
    good = {"axis": "k", "index": 1, "structure": "liver"}
    with pytest.raises(InputError, match=r"a\.json, prompt 2 of 2: .*" + message):
        load_prompts(write(tmp_path / "a.json", good, entry), volume)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"prompts": []}', '{"prompts": 3}', "\x00"])
def test_a_file_that_holds_no_prompts_is_refused(tmp_path, volume, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json"):
        load_prompts(tmp_path / "a.json", volume)


def test_a_missing_prompt_file_is_named(tmp_path, volume):
    with pytest.raises(InputError, match=r"nowhere\.json: No such file"):
        load_prompts(tmp_path / "nowhere.json", volume)


def test_ras_coordinates_without_a_volume_are_refused():
    with pytest.raises(InputError, match="points_ras needs the volume"):
        Prompt.from_dict({"axis": "k", "points_ras": [[1, 2, 3]]})
