"""One recorded rule turns raw values into [0, 1], at training and prediction alike."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from FewShotSegLib.data.intensity import IntensitySpec, intensity_from, unlike
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError


def volume_of(array):
    return Volume(np.asarray(array), np.eye(4))


def test_a_window_maps_its_ends_to_0_and_1_and_clips():
    spec = IntensitySpec("window", -125, 275)
    image = np.array([[-1000, -125, 75, 275, 3000]], np.int16)
    result = spec.apply(image, spec.range_of(image))
    assert result.dtype == np.float32
    assert result.tolist() == [[0, 0, 0.5, 1, 1]]
    assert np.array_equal(spec.apply(image), result)


def test_percentiles_are_those_of_the_whole_volume():
    array = np.random.default_rng(0).normal(50, 20, (3, 8, 9))
    spec = IntensitySpec("percentile", 5, 95)
    ordered = np.sort(array.ravel())
    position = 0.05 * (array.size - 1)
    low = np.interp(position, np.arange(array.size), ordered)
    assert spec.range_of(array)[0] == pytest.approx(low)
    low, high = spec.range_of(array)
    assert spec.apply(array[1], (low, high)) == pytest.approx(np.clip((array[1] - low) / (high - low), 0, 1), abs=1e-6)


def test_percentiles_need_the_range_of_the_volume():
    with pytest.raises(ValueError, match="range of the whole volume"):
        IntensitySpec("percentile", 1, 99).apply(np.zeros((2, 2)))


def test_minmax_is_of_each_slice():
    spec = IntensitySpec("minmax", 0, 0)
    assert spec.range_of(np.arange(8)) is None
    assert spec.apply(np.array([[10, 20], [15, 10]]), None).tolist() == [[0, 1], [0.5, 0]]


@pytest.mark.parametrize("kind", ["percentile", "minmax"])
@pytest.mark.parametrize("value", [-1000, 0, 7.5])
def test_a_constant_slice_becomes_zero(kind, value):
    spec = IntensitySpec(kind, 1, 99)
    array = np.full((2, 3, 4), value)
    result = spec.apply(array[0], spec.range_of(array))
    assert result.dtype == np.float32
    assert not result.any()


@given(
    values=st.lists(st.integers(-32768, 65535), min_size=1, max_size=30),
    low=st.integers(-2000, 2000),
    width=st.integers(1, 4000),
)
def test_the_result_is_monotonic_and_within_0_and_1(values, low, width):
    image = np.sort(np.array(values, np.int32))
    for spec in (IntensitySpec("window", low, low + width), IntensitySpec("minmax", 0, 0)):
        result = spec.apply(image, spec.range_of(image))
        assert ((result >= 0) & (result <= 1)).all()
        assert (np.diff(result) >= 0).all()


def test_padding_far_below_the_image_does_not_stretch_the_range():
    rng = np.random.default_rng(0)
    image = rng.normal(1200, 300, (4, 50, 50)).clip(0)
    padded = image.copy()
    padded[:, :3] = -1000
    padded[:, 3] = -1000 + rng.uniform(0, 1, (4, 50)) * 2200  # as interpolation leaves it
    spec = IntensitySpec("percentile", 0.5, 99.5)
    low, high = spec.range_of(image)
    found = spec.range_of(padded)
    assert found[1] == pytest.approx(high, rel=0.02)
    assert abs(found[0] - low) < 0.35 * (high - low)
    standardized = rng.normal(0, 1, (4, 50, 50))
    assert spec.range_of(standardized) == pytest.approx(tuple(np.percentile(standardized, [0.5, 99.5])))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_an_image_that_is_nearly_all_background_keeps_its_contrast(dtype):
    image = np.zeros((10, 100, 100), dtype)
    image[5, 40:50, 40:50], image[5, 44:46, 44:46] = 500, 900
    spec = IntensitySpec.auto(volume_of(image))
    seen = spec.apply(image, spec.range_of(image))
    assert (seen[0, 0, 0], seen[5, 45, 45]) == (0, 1)
    assert 0 < seen[5, 41, 41] < 1


def test_true_and_false_are_an_image_too():
    image = np.zeros((2, 8, 8), bool)
    image[1, 2:5, 2:5] = True
    spec = IntensitySpec.auto(volume_of(image))
    assert np.array_equal(spec.apply(image, spec.range_of(image)) == 1, image)


@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_numbers_beyond_single_precision_keep_their_contrast(factor):
    image = np.linspace(-1, 1, 100).reshape(1, 10, 10) * factor**5
    spec = IntensitySpec("percentile", 0, 100)
    assert spec.apply(image, spec.range_of(image)).ravel() == pytest.approx(np.linspace(0, 1, 100), abs=1e-6)


CT = np.random.default_rng(0).choice([-1000, -95, 40, 60, 300], (3, 40, 40)) + np.random.default_rng(1).normal(
    0, 10, (3, 40, 40)
)


@pytest.mark.parametrize(
    ("array", "spec", "is_ct", "says"),
    [
        (CT, IntensitySpec("window", -125, 275), None, ""),
        (CT + 1024, IntensitySpec("window", -125, 275), None, "these hold Hounsfield units (CT), this one does not"),
        (CT, IntensitySpec("percentile", 0.5, 99.5), None, "these do not hold Hounsfield units, this one does (CT)"),
        (CT, IntensitySpec("percentile", 0.5, 99.5), True, ""),  # somebody chose percentiles for a CT
        (CT + 3000, IntensitySpec("window", 0, 500), False, "outside the intensity window 0 to 500"),
        (CT + 1024, IntensitySpec("percentile", 0.5, 99.5), None, ""),
    ],
)
def test_an_image_unlike_those_of_the_adapter_is_told(array, spec, is_ct, says):
    sentence = unlike(spec, array, "new.nrrd", is_ct)
    assert says in sentence
    assert bool(sentence) == bool(says)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array([[[-1024, -990, 40, 1500]]], np.int16), "window"),  # lung
        (np.array([[[-3024.0, -50, 400]]]), "window"),  # fat
        (np.array([[[-125.0, -90, 40, 275]]]), "window"),  # clipped
        (np.array([[[-1000] * 30 + [900, 1200, 1800]]]), "percentile"),  # MR with padding
        (np.array([[[-1000] * 30 + list(range(0, 400, 5))]]), "percentile"),  # MR of small values with padding
        (np.array([[[-100] + [0, 200, 900] * 100]]), "percentile"),  # MR with one odd voxel
        (np.array([[[-4000, -2000, -90, 30, 2000, 4000]]]), "percentile"),  # phase
        (np.array([[[0, 200, 900]]], np.uint16), "percentile"),  # MR
        (np.array([[[-2.5, 0, 6.0]]]), "percentile"),  # standardized
        (np.array([[[0.0, 0.4, 1.0]]]), "percentile"),  # CT that somebody windowed before
        (np.array([[[0, 128, 255]]], np.uint8), "percentile"),
    ],
)
def test_the_rule_is_chosen_by_what_the_values_look_like(array, kind):
    spec = IntensitySpec.auto(volume_of(array))
    expected = {"window": (-125, 275), "percentile": (0.5, 99.5)}[kind]
    assert (spec.kind, (spec.low, spec.high)) == (kind, expected)
    assert spec.scale == "sam"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("gamma", 0, 1), 'kind must be one of window, percentile, minmax, got "gamma"'),
        (("window", 5, 5), "low < high, got low 5 and high 5"),
        (("window", 5, -5), "low < high"),
        (("percentile", -1, 99), "between 0 and 100"),
        (("percentile", 1, 101), "between 0 and 100"),
        (("window", float("nan"), 1), "low must be a finite number"),
        (("window", 0, "1"), "high must be a finite number, got '1'"),
        (("window", 0, 1, "imagenet"), "scale must be one of sam, unit"),
    ],
)
def test_a_rule_without_sense_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        IntensitySpec(*values)


def test_a_rule_survives_json():
    spec = IntensitySpec("percentile", 0.5, 99, "unit")
    assert IntensitySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(InputError, match="keys kind, low, high and scale"):
        IntensitySpec.from_dict({"kind": "window", "low": 0, "high": 1, "gamma": 2})
    with pytest.raises(InputError, match="keys"):
        IntensitySpec.from_dict({"kind": "window"})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("auto", None),
        ("window:-100,240", ("window", -100, 240)),
        ("percentile:1,99", ("percentile", 1, 99)),
        ("percentile", ("percentile", 0.5, 99.5)),
        ("minmax", ("minmax", 0, 1)),
    ],
)
def test_a_rule_is_written_in_a_word(text, values):
    spec = intensity_from(text)
    assert (spec and (spec.kind, spec.low, spec.high)) == values


@pytest.mark.parametrize("text", ["", "window", "window:5", "window:9,1", "window:a,b", "gamma:1,2", "window:1,nan"])
def test_a_word_that_is_no_rule_is_refused(text):
    with pytest.raises(InputError, match=r"[Ii]ntensity"):
        intensity_from(text)


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_a_whole_volume_is_scaled_with_one_copy(kind):
    array = np.random.default_rng(0).integers(-900, 900, (20, 80, 80)).astype(kind)
    before = array.copy()
    tracemalloc.start()
    try:
        scaled = IntensitySpec("window", -200, 300).apply(array, (-200, 300))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * scaled.nbytes
    assert np.array_equal(array, before)
