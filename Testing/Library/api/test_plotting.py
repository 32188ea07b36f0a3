"""Overlays: which slice, the right way up, in which shape and which colours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from FewShotSegLib.api.mask import Mask
from FewShotSegLib.api.plotting import plot_overlay
from FewShotSegLib.data.structures import structure_colors
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError

NAMES = {1: "liver", 2: "spleen"}


@pytest.fixture(autouse=True)
def no_screen() -> Iterator[Any]:
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    yield plt
    plt.close("all")


def a_patient(spacing: tuple[float, float, float] = (1.0, 2.0, 5.0)) -> tuple[Volume, Labelmap]:
    """A liver on the patient's right, in front; i to the left and j to the back, as axial slices lie."""
    labels = np.zeros((4, 20, 30), np.uint8)
    labels[2, 2:8, 3:10] = 1
    labels[2, 12:16, 20:26] = 2
    labels[1, 2, 3] = 1
    volume = Volume.from_array(np.where(labels > 0, 100.0, 0.0), spacing)
    return volume, Labelmap(volume.like(labels), NAMES)


def picture_of(axes: Any) -> np.ndarray:
    return np.asarray(axes.get_images()[0].get_array())


def test_the_fullest_slice_is_drawn_with_each_structure_in_its_colour() -> None:
    volume, labelmap = a_patient()
    axes = plot_overlay(volume, labelmap)
    picture, colors = picture_of(axes), structure_colors(NAMES)
    assert axes.get_title() == "k = 2"
    assert picture.shape == (20, 30, 3)
    assert np.allclose(picture[2, 3], colors[1])  # the outline
    assert np.allclose(picture[4, 5], 0.65 * 1.0 + 0.35 * np.array(colors[1]))
    assert np.allclose(picture[12, 20], colors[2])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["liver", "spleen"]


def test_a_mirrored_volume_looks_the_same() -> None:
    volume, labelmap = a_patient()
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 29
    turned = Volume(volume.array[:, :, ::-1], volume.affine @ flip)
    mirrored = Labelmap(turned.like(labelmap.volume.array[:, :, ::-1]), NAMES)
    one, other = picture_of(plot_overlay(volume, labelmap)), picture_of(plot_overlay(turned, mirrored))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(("axis", "aspect"), [("k", 2.0), ("j", 5.0), ("i", 2.5)])
def test_pixels_have_the_shape_they_have_in_the_patient(axis: str, aspect: float) -> None:
    assert plot_overlay(*a_patient(), axis=axis).get_aspect() == pytest.approx(aspect)


def test_pixels_keep_their_shape_where_rows_and_columns_are_exchanged() -> None:
    volume, labelmap = a_patient()
    order = np.eye(4)[:, [1, 0, 2, 3]]
    turned = Volume(volume.array.transpose(0, 2, 1), volume.affine @ order)
    axes = plot_overlay(turned, Labelmap(turned.like(labelmap.volume.array.transpose(0, 2, 1)), NAMES))
    assert axes.get_aspect() == pytest.approx(2.0)
    assert np.array_equal(picture_of(axes), picture_of(plot_overlay(volume, labelmap)))


def test_masks_arrays_and_no_labels_are_drawn_too(no_screen: Any) -> None:
    volume, labelmap = a_patient()
    mask = Mask(labelmap.volume.array == 1, volume.affine, 0, 2, 0.9, "liver")
    axes = plot_overlay(volume, mask, legend=False)
    assert axes.get_legend() is None
    assert plot_overlay(volume.array, labelmap.volume.array, spacing_mm=(1, 1, 1)).get_title() == "k = 2"
    own = no_screen.subplots()[1]
    assert plot_overlay(volume, slice=1, ax=own, window=(0, 200)) is own
    assert picture_of(own).max() == 0.5


def test_what_cannot_be_drawn_is_said() -> None:
    volume, labelmap = a_patient()
    with pytest.raises(InputError, match="k=4 does not exist, allowed are 0 to 3"):
        plot_overlay(volume, labelmap, slice=4)
    other = Volume(labelmap.volume.array, volume.affine + np.eye(4, k=3))
    with pytest.raises(InputError, match="do not cover the same voxels"):
        plot_overlay(volume, Labelmap(other, NAMES))
