"""Prompts survive a file, and wrong entries are named."""

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
        ({"axis": "z", "index": 1, "structure": "a"}, 'axis is k, j or i, got "z"'),
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
