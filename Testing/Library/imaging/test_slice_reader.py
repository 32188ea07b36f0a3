"""Slices as squares for a network: scaled once, in the place that their frame says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_reader import SliceReader, check_square

WINDOW = IntensitySpec("window", -100, 100)


def a_volume(dtype: type = np.int16) -> Volume:
    array = np.random.default_rng(0).integers(-300, 300, (12, 24, 24)).astype(dtype)
    return Volume(array, np.diag([-2.0, -2.0, 4.0, 1.0]))


@pytest.mark.parametrize(("axis", "index"), [(0, 5), (1, 23), (2, 0)])
def test_a_square_is_the_scaled_slice_as_torch_resizes_it(axis: int, index: int) -> None:
    volume = a_volume()
    scaled = (volume.array.take(index, axis).astype(np.float32).clip(-100, 100) + 100) / 200
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(scaled)[None, None], (36, 36), mode="bilinear", antialias=True
    )[0, 0].numpy()  # 48 mm either way
    square = SliceReader(volume, WINDOW, 36, axis).square(index)
    assert square.dtype == np.float32
    np.testing.assert_allclose(square, expected, atol=1e-5)


def test_padding_is_zero_and_the_frame_says_where_it_begins() -> None:
    volume = Volume(np.full((4, 10, 20), 100, np.int16), np.eye(4))
    reader = SliceReader(volume, WINDOW, 40)
    square, (height, width) = reader.square(0), reader.frame(0).content
    assert (height, width) == (20, 40)
    assert (square[:20] == 1).all()
    assert not square[20:].any()


def test_percentiles_are_those_of_the_whole_volume_on_every_slice() -> None:
    volume = a_volume()
    spec = IntensitySpec("percentile", 10, 90)
    low, high = np.percentile(volume.array, [10, 90])
    square = SliceReader(volume, spec, 24).square(3)
    np.testing.assert_allclose(square, ((volume.array[3] - low) / (high - low)).clip(0, 1), atol=2e-3)


def test_a_range_that_is_known_already_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, spec = a_volume(), IntensitySpec("percentile", 10, 90)
    known = spec.range_of(volume.array)
    expected = SliceReader(volume, spec, 24).square(3)
    monkeypatch.setattr(IntensitySpec, "range_of", lambda self, array: pytest.fail("worked out again"))
    np.testing.assert_array_equal(SliceReader(volume, spec, 24, value_range=known).square(3), expected)


def test_a_slice_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="k=12"):
        SliceReader(a_volume(), WINDOW, 24).square(12)
    with pytest.raises(InputError, match="k=12"):
        SliceReader(a_volume(), WINDOW, 24).frame(12)


def test_what_a_reader_gives_is_a_square_for_a_network() -> None:
    for dtype in (np.int16, np.float64):
        check_square(SliceReader(a_volume(dtype), WINDOW, 50).square(4), 50)


@pytest.mark.parametrize(
    ("square", "message"),
    [
        (np.zeros((24, 24), np.float64), "squares of 24 x 24 pixels in float32, got float64"),
        (np.zeros((24, 25), np.float32), r"got float32 of shape \(24, 25\)"),
        (np.zeros((1, 24, 24), np.float32), "read slices with a SliceReader"),
        (np.full((24, 24), 40, np.float32), "intensities from 0 to 1, got 40 to 40"),
        (np.full((24, 24), -0.01, np.float32), "got -0.01 to -0.01"),
        (np.full((24, 24), np.nan, np.float32), "got nan"),
    ],
)
def test_what_is_no_square_for_a_network_is_refused(square: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_square(square, 24)


def test_what_resampling_leaves_beyond_0_and_1_is_allowed() -> None:
    check_square(np.array([[-5e-5, 1 + 5e-5]] * 2, np.float32), 2)
