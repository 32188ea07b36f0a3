"""Masks: an array with a place, that numpy and files take."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from FewShotSegLib.api.mask import Mask
from FewShotSegLib.io.volumes import load_labelmap

AFFINE = np.array([[0, -2.0, 0, 5], [-0.5, 0, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])


def a_mask() -> Mask:
    array = np.zeros((4, 6, 8), bool)
    array[2, 1:3, 4:7] = True
    return Mask(array, AFFINE, axis=0, index=2, iou=0.8, structure="liver")


def test_numpy_takes_a_mask_as_its_array() -> None:
    mask = a_mask()
    assert np.asarray(mask) is mask.array
    assert np.array(mask) is not mask.array
    assert np.asarray(mask, np.uint8).sum() == 6
    assert mask.on_slice.shape == (6, 8)
    assert mask.on_slice.sum() == 6
    assert mask.shape == (4, 6, 8)


def test_a_mask_knows_its_millimetres() -> None:
    assert a_mask().spacing_mm.tolist() == [0.5, 2.0, 3.0]
    assert a_mask().volume_ml == 6 * 0.5 * 2 * 3 / 1000


def test_a_saved_mask_has_its_name_and_place(tmp_path: Path) -> None:
    a_mask().save(tmp_path / "liver.seg.nrrd")
    back = load_labelmap(tmp_path / "liver.seg.nrrd")
    assert back.structures == {1: "liver"}
    assert np.array_equal(back.volume.array == 1, a_mask().array)
    assert np.allclose(back.volume.affine, AFFINE)
    assert a_mask().to_labelmap(300).volume.array.max() == 300
