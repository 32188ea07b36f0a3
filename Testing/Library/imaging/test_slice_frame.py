"""Slices: the way to the network and back, against closed forms and against torch's antialiased resize."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FewShotSegLib.data.volume import Volume, ijk_from_ras, ras_from_ijk
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_frame import (
    SliceFrame,
    frame_of,
    labels_to_network,
    mask_from_network,
    to_network,
    xy_from_ijk,
)


def a_volume(shape=(20, 40, 60), spacing_mm=(0.8, 0.8, 5.0), directions=None, dtype=np.float32) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if directions is None else directions) * np.asarray(spacing_mm)
    affine[:3, 3] = (-31.0, 12.5, 140.0)
    values = np.random.default_rng(3).normal(size=shape) * 100
    return Volume(values.astype(dtype), affine)


def a_rotation(angles_deg=(17.0, -31.0, 8.0)) -> np.ndarray:
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_deg)):
        first, second = [a for a in range(3) if a != axis]
        step = np.eye(3)
        step[first, first] = step[second, second] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    return turn


DIRECTIONS = {
    "straight": np.eye(3),
    "flipped": np.diag([-1.0, -1.0, 1.0]),
    "left-handed": np.diag([-1.0, 1.0, 1.0]),
    "permuted": np.eye(3)[[2, 0, 1]],
    "oblique": a_rotation(),
    "oblique left-handed": a_rotation() @ np.diag([1.0, 1.0, -1.0]),
}


def a_frame(height: int, width: int, image_size: int) -> SliceFrame:
    volume = Volume(np.zeros((1, height, width), np.float32), np.eye(4))
    return frame_of(volume, 0, 0, image_size)


# ---------------------------------------------------------------------------------------------------------- frames


def test_pixels_are_square_in_mm_on_thick_coronal_slices():
    volume = a_volume(shape=(36, 256, 256), spacing_mm=(1.25, 1.25, 7.7))
    frame = frame_of(volume, 1, 100, 256)
    assert frame.shape == (36, 256)
    # 36 x 7.7 = 277.2 mm high, 256 x 1.25 = 320 mm wide
    assert frame.content == (round(256 * 277.2 / 320), 256)
    mm_per_pixel = 7.7 / frame.scale[0], 1.25 / frame.scale[1]
    assert mm_per_pixel[0] == pytest.approx(mm_per_pixel[1], rel=0.5 / 222)


def test_the_longest_side_fills_the_square_and_the_rest_is_zero_padding():
    frame = a_frame(512, 300, 256)
    assert frame.content == (256, 150)
    square = to_network(np.ones((512, 300), np.float32), frame)
    assert square.shape == (256, 256)
    assert square.dtype == np.float32
    assert np.all(np.abs(square[:, :150] - 1) < 1e-6)
    assert not square[:, 150:].any()


def test_a_volume_one_voxel_thick_gives_slices_one_pixel_high():
    volume = a_volume(shape=(1, 30, 50), spacing_mm=(1, 1, 0.01))
    frame = frame_of(volume, 1, 0, 64)
    assert frame.content == (1, 64)
    assert to_network(np.ones((1, 50), np.float32), frame)[0].min() > 0.999


def test_a_frame_does_not_depend_on_content():
    volume = a_volume()
    other = volume.like(np.zeros(volume.shape, np.int16))
    assert frame_of(volume, 2, 7, 128) == frame_of(other, 2, 7, 128)


@pytest.mark.parametrize(("axis", "index", "message"), [(3, 0, "axis"), (0, 20, "k=20"), (1, -1, "j=-1")])
def test_a_slice_that_does_not_exist_is_refused_by_name(axis, index, message):
    with pytest.raises(InputError, match=message):
        frame_of(a_volume(), axis, index, 64)


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(InputError, match="512 x 300"):
        to_network(np.zeros((300, 512), np.float32), a_frame(512, 300, 256))


# ---------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("size", "image_size"), [(512, 256), (300, 111), (100, 257), (257, 256), (5, 64), (64, 64)])
def test_resizing_equals_the_antialiased_bilinear_resize_of_torch(size, image_size, rng):
    image = rng.random((size, size), dtype=np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], (image_size, image_size), mode="bilinear", antialias=True
    )[0, 0].numpy()
    np.testing.assert_allclose(to_network(image, a_frame(size, size, image_size)), expected, atol=2e-5)


@pytest.mark.parametrize(("image_size", "tolerance"), [(40, 1e-4), (60, 1e-4), (96, 0.1), (256, 1e-4)])
def test_a_ramp_stays_a_ramp_with_half_pixel_centres(image_size, tolerance):
    height, width = 80, 120
    frame = a_frame(height, width, image_size)
    ramp = np.broadcast_to(np.arange(width, dtype=np.float32), (height, width))
    h, w = frame.content
    expected = (np.arange(w) + 0.5) / frame.scale[1] - 0.5
    inner = slice(4, w - 4)
    np.testing.assert_allclose(to_network(ramp, frame)[h // 2, :w][inner], expected[inner], atol=tolerance)


def test_a_bright_voxel_is_found_where_xy_from_ijk_says():
    volume = a_volume(shape=(20, 40, 60))
    for axis, point_ijk in ((0, (41, 13, 9)), (1, (41, 13, 9)), (2, (41, 13, 9))):
        index = point_ijk[2 - axis]
        array = np.zeros(volume.shape, np.float32)
        array[point_ijk[2], point_ijk[1], point_ijk[0]] = 1.0
        frame = frame_of(volume, axis, index, 200)
        square = to_network(array.take(index, axis), frame)
        y, x = (np.array(np.indices(square.shape)) * square).sum(axis=(1, 2)) / square.sum()
        np.testing.assert_allclose(xy_from_ijk(np.array([point_ijk]), frame)[0], (x, y), atol=0.05)


# ---------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("height", "width", "image_size"), [(512, 300, 512), (60, 100, 256), (37, 91, 100), (9, 7, 64)]
)
def test_any_mask_survives_enlarging_and_the_way_back_unchanged(height, width, image_size, rng):
    frame = a_frame(height, width, image_size)
    labels = rng.integers(0, 5, (height, width))
    enlarged, (sy, sx) = labels_to_network(labels, frame), frame.scale
    rows, columns = (np.rint((np.arange(n) + 0.5) * s - 0.5).astype(int) for n, s in ((height, sy), (width, sx)))
    np.testing.assert_array_equal(enlarged[np.ix_(rows, columns)], labels)


@pytest.mark.parametrize(("height", "width", "image_size"), [(512, 300, 256), (128, 300, 600), (256, 256, 256)])
def test_a_box_survives_the_way_to_logits_and_back(height, width, image_size):
    frame = a_frame(height, width, image_size)
    box = np.zeros((height, width), np.uint8)
    box[height // 4 : height // 2, width // 6 * 2 : width // 6 * 4] = 3
    square = labels_to_network(box, frame)
    assert set(np.unique(square)) == {0, 3}
    logits = np.where(square == 3, 8.0, -8.0).astype(np.float32)
    back = mask_from_network(logits, frame)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back > 0, box == 3)


@pytest.mark.parametrize("low_resolution", [64, 128, 256, 512])
def test_logits_of_any_resolution_lie_where_the_image_lies(low_resolution):
    frame = a_frame(300, 200, 256)
    # A smooth blob written as a formula in network coordinates, sampled at the centres of the low resolution pixels.
    centre_ijk = np.array([[120.0, 90.0, 0.0]])
    x, y = xy_from_ijk(centre_ijk, frame)[0]
    at = (np.arange(low_resolution) + 0.5) * 256 / low_resolution - 0.5
    logits = np.exp(-((at[:, None] - y) ** 2 + (at[None] - x) ** 2) / (2 * 20.0**2)).astype(np.float32)
    mask = mask_from_network(logits, frame)
    assert mask.shape == (300, 200)
    row, column = (np.array(np.indices(mask.shape)) * mask).sum(axis=(1, 2)) / mask.sum()
    assert abs(row - 90) < 0.1
    assert abs(column - 120) < 0.1


def test_labels_shrink_without_a_shift_against_the_image():
    frame = a_frame(256, 256, 128)
    rows, columns = np.indices((256, 256))
    disc = np.hypot(rows - 100.3, columns - 140.6) < 40
    image = to_network(disc.astype(np.float32), frame)
    labels = labels_to_network(disc.astype(np.int16), frame)
    grid = np.array(np.indices(labels.shape))
    of_image = (grid * image).sum(axis=(1, 2)) / image.sum()
    of_labels = (grid * labels).sum(axis=(1, 2)) / labels.sum()
    np.testing.assert_allclose(of_labels, of_image, atol=0.1)  # the nearest voxel would be 0.25 off


def test_a_structure_of_one_voxel_is_not_lost_by_shrinking():
    labels = np.zeros((512, 512), np.int32)
    labels[100, 301] = 7
    labels[200:300, 200:300] = 2
    small = labels_to_network(labels, a_frame(512, 512, 128))
    assert (small == 7).sum() == 1
    assert np.argwhere(small == 7).tolist() == [[25, 75]]
    assert (small == 2).sum() == 625


# ---------------------------------------------------------------------------------------------------------- coordinates


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_points_travel_from_ras_to_pixels_and_back(axis, name, rng):
    volume = a_volume(spacing_mm=(0.7, 1.3, 4.0), directions=DIRECTIONS[name])
    index = 11
    points_ijk = rng.uniform(0, [60, 40, 20], (50, 3)) - 0.5
    points_ijk[:, 2 - axis] = index
    points_ras = ras_from_ijk(volume.affine, points_ijk)
    frame = frame_of(volume, axis, index, 256)
    points_xy = xy_from_ijk(ijk_from_ras(volume.affine, points_ras), frame)
    assert points_xy.min() >= -0.5
    assert (points_xy <= np.array(frame.content)[::-1] - 0.5).all()
    again_ijk = points_ijk.copy()  # x runs along the later of the two array axes, that is the earlier of i, j, k
    (first, second), (sy, sx) = sorted({0, 1, 2} - {2 - axis}), frame.scale
    again_ijk[:, first], again_ijk[:, second] = ((points_xy + 0.5) / [sx, sy] - 0.5).T
    again_ras = ras_from_ijk(volume.affine, again_ijk)
    np.testing.assert_allclose(again_ras, points_ras, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_structure_drawn_in_the_network_comes_back_at_its_place_in_the_patient(axis, name):
    volume = a_volume(spacing_mm=(0.7, 1.3, 4.0), directions=DIRECTIONS[name])
    index = 8
    centre_ijk = np.array([[33.0, 17.0, 9.0]])
    centre_ijk[0, 2 - axis] = index
    frame = frame_of(volume, axis, index, 256)
    x, y = xy_from_ijk(centre_ijk, frame)[0]
    rows, columns = np.indices((256, 256))
    logits = (30.0 - np.hypot(rows - y, columns - x)).astype(np.float32)
    mask = np.zeros(volume.shape, bool)
    np.moveaxis(mask, axis, 0)[index] = mask_from_network(logits, frame) > 0
    found_ras = ras_from_ijk(volume.affine, np.argwhere(mask)[:, ::-1]).mean(axis=0)
    wanted_ras = ras_from_ijk(volume.affine, centre_ijk)[0]
    thickest_mm = max(volume.spacing_mm)
    assert np.linalg.norm(found_ras - wanted_ras) < 0.5 * thickest_mm


@pytest.fixture
def rng():
    return np.random.default_rng(0)
