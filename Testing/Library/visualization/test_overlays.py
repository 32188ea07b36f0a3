"""Labels over slices: what is drawn where, and which way up."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from FewShotSegLib.errors import InputError
from FewShotSegLib.visualization.overlays import outline, outlined, overlay_png, png_bytes, upright
from Testing.Library.visualization.pixels import COLORS, pixels


def square(low: int, high: int, value: int = 1) -> np.ndarray:
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[low:high, low:high] = value
    return labels


def test_an_overlay_without_labels_is_the_enlarged_slice():
    ramp = np.linspace(0, 1, 12, dtype=np.float32)[None, :].repeat(10, axis=0)
    picture = pixels(overlay_png(ramp, np.zeros_like(ramp, dtype=int), None, COLORS, 4))
    assert picture.shape == (40, 48, 3)
    assert picture[20, 2:-2, 1] == pytest.approx(
        np.interp((np.arange(2, 46) + 0.5) / 4 - 0.5, range(12), ramp[0]), abs=0.005
    )
    assert np.ptp(picture, axis=2).max() == 0


def test_the_prediction_is_a_veil_in_the_colour_of_its_structure():
    grey = np.full((20, 20), 0.5, dtype=np.float32)
    picture = pixels(overlay_png(grey, square(5, 15, value=2), None, COLORS, 3))
    assert picture[30, 30] == pytest.approx(0.64 * 0.5 + 0.36 * np.array([0, 0, 1]), abs=0.005)
    assert picture[3, 3] == pytest.approx(0.5, abs=0.005)


def test_the_reference_is_a_line_on_its_border_only():
    grey = np.full((20, 20), 0.5, dtype=np.float32)
    picture = pixels(overlay_png(grey, np.zeros((20, 20), int), square(5, 15), COLORS, 4))
    redness = picture[:, :, 0] - picture[:, :, 2]
    assert redness[40, 19:22].max() > 0.4  # column 20 is the left border at four pixels each
    assert redness[40, 40] == pytest.approx(0, abs=0.005)
    assert picture[40, 5] == pytest.approx(0.5, abs=0.005)


def test_thick_slices_keep_the_shape_of_the_anatomy():
    image = np.zeros((10, 40), dtype=np.float32)
    assert pixels(overlay_png(image, image.astype(int), None, {}, 2, pixel_mm=(5.0, 2.0))).shape == (50, 80, 3)


def test_labels_filling_the_slice_and_colours_without_labels_are_drawn():
    full = np.ones((6, 6), dtype=int)
    assert pixels(overlay_png(np.zeros((6, 6)), full, full, COLORS, 2)).shape == (12, 12, 3)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(InputError, match="one shape"):
        overlay_png(np.zeros((4, 4)), np.zeros((4, 5), int), None, COLORS)


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_an_upright_slice_looks_the_same_from_any_storage_order(signs, order):
    """One dot each at the patient's right, front and head; order: which RAS axis i, j and k run along."""
    ras = np.zeros((9, 9, 9))
    ras[7, 4, 4], ras[4, 7, 4], ras[4, 4, 7] = 1, 2, 3  # right, anterior, superior of the centre
    affine = np.eye(4)
    affine[:3, :3] = 0
    ijk = ras.transpose(order)
    for axis in range(3):
        affine[order[axis], axis] = signs[axis]
        ijk = np.flip(ijk, axis) if signs[axis] < 0 else ijk
    kji = ijk.transpose(2, 1, 0)

    def view(across: int) -> np.ndarray:
        axis = 2 - order.index(across)
        return upright(kji.take(4, axis), affine, axis)

    axial, coronal, sagittal = view(2), view(1), view(0)
    assert (axial[4, 1], axial[1, 4]) == (1, 2)  # right is on the left, front is up
    assert (coronal[4, 1], coronal[1, 4]) == (1, 3)
    assert (sagittal[4, 1], sagittal[1, 4]) == (2, 3)  # front is on the left, head is up


def test_an_outline_is_the_mask_less_what_is_left_after_erosion():
    rng = np.random.default_rng(0)
    for mask in (rng.random((30, 40)) < 0.7, np.ones((5, 6), bool), np.zeros((5, 6), bool)):
        expected = mask & ~ndimage.binary_erosion(mask)  # beyond the picture there is nothing
        np.testing.assert_array_equal(outline(mask), expected)


def test_outlined_labels_leave_the_rest_of_the_slice_grey():
    image, labels = np.linspace(-0.2, 1.2, 400, dtype=np.float32).reshape(20, 20), square(5, 15, value=2)
    picture = outlined(image, labels, COLORS)
    border = outline(labels == 2)
    assert (picture[border] == [0, 0, 255]).all()
    grey = (255 * image.clip(0, 1)).astype(np.uint8)
    np.testing.assert_array_equal(picture[~border], np.repeat(grey[~border][:, None], 3, axis=1))


def test_a_picture_comes_back_from_its_png_and_equal_ones_have_equal_bytes():
    rgb = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    np.testing.assert_array_equal(np.rint(255 * pixels(png_bytes(rgb))).astype(np.uint8), rgb)
    assert png_bytes(rgb) == png_bytes(rgb[:, ::-1][:, ::-1])
