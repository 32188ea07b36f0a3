"""The anatomy image: gradients per millimetre, scaled so that contrast does not matter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.anatomy_space import AnatomySpace, gradient_magnitude
from FewShotSegLib.jobs.memory_curve import MemoryCurve, memory_of

PERCENTILE = IntensitySpec("percentile", 0.5, 99.5)


def volume_of(array, spacing_mm=(1.0, 1.0, 1.0)):
    return Volume(np.asarray(array, dtype=np.float64), np.diag([*spacing_mm, 1.0]))


def ramp(spacing_mm=(1.0, 1.0, 1.0)):
    k, j, i = np.mgrid[:5, :6, :7].astype(float)
    return volume_of(2 * i + 3 * j + 5 * k, spacing_mm)


def blobs(seed=3, shape=(8, 24, 20)):
    """A smooth picture with air around it."""
    noise = np.random.default_rng(seed).normal(size=shape)
    image = ndimage.gaussian_filter(noise, (1, 2, 2)) * 400 + 300
    inside = np.zeros(shape, bool)
    inside[1:-1, 4:-4, 4:-4] = True
    return np.where(inside, image, 0.0).round()


INSIDE = (slice(1, -1),) * 3


def test_the_gradient_of_a_ramp_is_its_slope():
    assert gradient_magnitude(ramp())[INSIDE] == pytest.approx(np.sqrt(2**2 + 3**2 + 5**2), rel=1e-5)


def test_the_gradient_is_per_millimetre():
    found = gradient_magnitude(ramp((1.0, 1.0, 2.5)))
    assert found[INSIDE] == pytest.approx(np.sqrt(2**2 + 3**2 + 2**2), rel=1e-5)


def test_the_gradient_in_the_plane_leaves_out_the_slices_before_and_behind():
    volume = ramp((1.0, 1.0, 2.5))
    assert gradient_magnitude(volume, in_plane=True)[:, 1:-1, 1:-1] == pytest.approx(np.sqrt(2**2 + 3**2), rel=1e-5)
    array = blobs()
    alone = gradient_magnitude(volume_of(array[3:4], (1, 1, 5)), in_plane=True)
    among_others = gradient_magnitude(volume_of(array, (1, 1, 5)), in_plane=True)[3]
    assert among_others == pytest.approx(alone[0], rel=1e-5, abs=1e-4)


def test_the_gradient_is_that_of_scipys_sobel_without_its_gain():
    array, spacing = blobs(), (0.8, 1.2, 3.0)
    parts = [ndimage.sobel(array, axis, mode="nearest") / 32 / spacing[2 - axis] for axis in range(3)]
    expected = np.sqrt(sum(part**2 for part in parts))
    assert gradient_magnitude(volume_of(array, spacing)) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_the_order_of_axes_in_the_file_does_not_matter():
    array, affine = blobs(), np.diag([1.0, 1.0, 4.0, 1.0])
    turned = Volume(array.transpose(2, 0, 1), affine[:, [1, 2, 0, 3]])  # sagittal: slices along i
    for mode in ("2d", "3d"):
        space = AnatomySpace(mode)
        expected = space.apply(Volume(array, affine)).array
        assert space.apply(turned).array == pytest.approx(expected.transpose(2, 0, 1), abs=1e-5)


def test_the_image_is_not_changed_and_the_place_is_kept():
    volume = volume_of(blobs(), (1, 1, 2))
    before = volume.array.copy()
    found = AnatomySpace().apply(volume)
    assert np.array_equal(volume.array, before)
    assert found.same_geometry(volume)
    assert found.array.dtype == np.float32
    assert found.array.min() == 0
    assert found.array.max() == 1


@pytest.mark.parametrize("mode", ["2d", "3d"])
@pytest.mark.parametrize(("gain", "offset"), [(3.0, 0.0), (0.02, 7.0), (-1.0, 1200.0), (-5.0, 0.0)])
def test_neither_gain_nor_offset_nor_inversion_of_the_contrast_changes_it(mode, gain, offset):
    array = blobs()
    space = AnatomySpace(mode, intensity=PERCENTILE)
    expected = space.apply(volume_of(array)).array
    assert space.apply(volume_of(gain * array + offset)).array == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("value", [0, -1000, 0.1])
@pytest.mark.parametrize("mode", ["2d", "3d"])
@pytest.mark.parametrize("kind", ["percentile", "minmax"])
def test_a_constant_volume_becomes_zero(value, mode, kind):
    space = AnatomySpace(mode, intensity=IntensitySpec(kind, 0, 100))
    assert not space.apply(volume_of(np.full((4, 5, 6), value))).array.any()


def test_the_air_in_the_picture_does_not_change_the_scale():
    array = blobs()
    window = AnatomySpace("3d", intensity=IntensitySpec("window", 0, 1000))
    small = window.apply(volume_of(array)).array
    large = window.apply(volume_of(np.pad(array, 20))).array
    assert large[20:-20, 20:-20, 20:-20] == pytest.approx(small, abs=1e-4)


@pytest.mark.parametrize(
    ("spacing_mm", "shape", "expected"),
    [
        ((1, 1, 3), (5, 6, 7), "3d"),
        ((1, 1, 3.1), (5, 6, 7), "2d"),
        ((4, 1, 1), (5, 6, 7), "2d"),  # sagittal slices
        ((1, 1, 1), (1, 6, 7), "2d"),
        ((1.25, 1.25, 7.7), (31, 8, 8), "2d"),
    ],
)
def test_thick_slices_are_seen_one_by_one(spacing_mm, shape, expected):
    volume = volume_of(np.zeros(shape), spacing_mm)
    assert AnatomySpace().mode_of(volume) == expected
    assert AnatomySpace("3d").mode_of(volume) == "3d"


def test_two_domains_are_seen_in_the_same_mode():
    thin, thick = volume_of(blobs(), (1, 1, 1)), volume_of(blobs(), (1, 1, 8))
    assert AnatomySpace().settled([thin, thin]).mode == "3d"
    assert AnatomySpace().settled([thin, thick]).mode == "2d"
    assert AnatomySpace("3d").settled([thin, thick]).mode == "3d"
    assert AnatomySpace().settled([]) == AnatomySpace()


def test_a_single_slice_has_an_anatomy_image():
    found = AnatomySpace().apply(volume_of(blobs()[3:4])).array
    assert found.shape == (1, 24, 20)
    assert found.max() == 1


def test_the_space_survives_json():
    for space in (AnatomySpace(), AnatomySpace("2d", 99.0, PERCENTILE)):
        assert AnatomySpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    with pytest.raises(InputError, match="keys mode, percentile and intensity"):
        AnatomySpace.from_dict({"mode": "2d", "percentile": 99, "kernel": 3, "intensity": None})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("4d",), 'must be auto, 2d or 3d, got "4d"'),
        (("2d", 0), "between 0 and 100, got 0"),
        (("2d", True), "got True"),
        (("2d", 99, {"kind": "minmax"}), "an IntensitySpec or none"),
    ],
)
def test_a_space_without_sense_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        AnatomySpace(*values)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.0, 5.0)])
def test_a_volume_takes_a_few_copies_of_itself_in_memory(spacing_mm):
    """MONAI's filter held twenty: 1.6 GB for a CT of 78 slices."""
    used = memory_of(torch.device("cpu"))
    if used is None:
        pytest.skip("this system does not tell the memory of a process")
    volume = Volume(np.random.default_rng(0).random((40, 300, 300), np.float32), np.diag([*spacing_mm, 1.0]))
    AnatomySpace().apply(volume_of(blobs(), spacing_mm))  # imports and buffers
    with MemoryCurve(used, interval_s=0.002) as curve:
        before = used()
        AnatomySpace().apply(volume)
    assert 1e6 * curve.summary()["peak_mb"] - before < 8 * volume.array.nbytes
