"""Clicks from Python: the answers of the predictor, in the volume they belong to."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.api.adapter import Adapter
from FewShotSegLib.api.segmenter import Segmenter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt, along
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_reader import SliceReader
from FewShotSegLib.inference.load import predictor_for
from FewShotSegLib.progress import Progress
from Testing.Library.examples import an_adapter

CENTRE = (20.0, 22.0, 2.0)


@pytest.fixture
def a_segmenter(a_tiny_base: str, a_labelled_volume: tuple[Volume, np.ndarray]) -> Segmenter:
    return Segmenter(a_labelled_volume[0], base=a_tiny_base)


def answer_of_the_predictor(segmenter: Segmenter, base: str, prompt: Prompt) -> np.ndarray:
    """What the parts of the library say, put together by hand."""
    predictor = predictor_for(None, base, torch.device("cpu"))
    reader = SliceReader(segmenter.volume, IntensitySpec.auto(segmenter.volume), predictor.image_size, prompt.axis)
    frame = reader.frame(prompt.index)
    masks = predictor.answer(predictor.encode([reader.square(prompt.index)])[0], prompt, frame)
    return predictor.on_voxels(masks, frame)[0] > 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda segmenter: segmenter.click(CENTRE),
        lambda segmenter: segmenter.scribble([CENTRE, (21.0, 22.0, 2.0)]),
        lambda segmenter: segmenter.box((10, 10, 2), (30, 30, 2)),
    ],
    ids=["click", "scribble", "box"],
)
def test_a_slow_computer_is_offered_the_small_base_model_once(
    ask: Callable[[Segmenter], object], a_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("FewShotSegLib.inference.predictor.SLOW_SLICE", 0.0)
    with pytest.warns(UserWarning, match="s for a slice with the base model .*bundled-small") as told:
        ask(a_segmenter)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a_segmenter.click((21.0, 22.0, 2.0))


@pytest.mark.parametrize(("axis", "letter"), [(0, "k"), (1, "j"), (2, "i")])
def test_clicks_are_answered_on_the_slice_that_holds_them(
    a_tiny_base: str, a_labelled_volume: tuple[Volume, np.ndarray], axis: int, letter: str
) -> None:
    segmenter = Segmenter(a_labelled_volume[0], base=a_tiny_base, axis=letter)
    index = int(CENTRE[2 - axis])
    segmenter.click(CENTRE)
    second = np.array(CENTRE) + 3.0
    second[2 - axis] = index
    mask = segmenter.click(second, positive=False)
    both = Prompt(axis, index, points_ijk=np.array([CENTRE, second]), point_labels=np.array([1, 0]))
    expected = answer_of_the_predictor(segmenter, a_tiny_base, both)
    assert np.array_equal(mask.on_slice, expected)
    assert mask.array.sum() == expected.sum()
    assert (mask.axis, mask.index) == (axis, index)


def test_a_box_and_a_click_ask_together(a_segmenter: Segmenter, a_tiny_base: str) -> None:
    a_segmenter.click(CENTRE)
    mask = a_segmenter.box((10, 12, 2), (30, 32, 2))
    corners = np.array([[10.0, 12, 2], [30, 32, 2]])
    asked = Prompt(0, 2, points_ijk=np.array([CENTRE]), point_labels=np.array([1]), box_ijk=corners)
    assert np.array_equal(mask.on_slice, answer_of_the_predictor(a_segmenter, a_tiny_base, asked))


def test_a_scribble_is_clicks_along_its_line(a_segmenter: Segmenter, a_tiny_base: str) -> None:
    line = [(10, 20, 2), (15, 20, 2), (15, 30, 2), (25, 30, 2)]
    mask = a_segmenter.scribble(line)
    # 25 voxels long: four points, a third of it apart
    points = np.array([[10, 20, 2], [15, 20 + 10 / 3, 2], [15 + 5 / 3, 30, 2], [25, 30, 2]])
    asked = Prompt(0, 2, points_ijk=points, point_labels=np.ones(4))
    assert np.array_equal(mask.on_slice, answer_of_the_predictor(a_segmenter, a_tiny_base, asked))


def test_points_along_a_line_are_equally_far_apart() -> None:
    corner = np.stack([np.arange(11.0), np.zeros(11), np.zeros(11)], axis=1)
    corner = np.concatenate([corner, corner[-1] + np.stack([np.zeros(10), np.arange(1.0, 11), np.zeros(10)], axis=1)])
    points = along(corner, 5)
    assert points.tolist() == [[0, 0, 0], [5, 0, 0], [10, 0, 0], [10, 5, 0], [10, 10, 0]]
    assert len(along(corner[:1], 5)) == 1


def test_undo_takes_back_one_step_at_a_time(a_segmenter: Segmenter) -> None:
    first = a_segmenter.click(CENTRE).array
    a_segmenter.click((40, 40, 4))
    a_segmenter.propagate(1)
    a_segmenter.undo()
    assert np.array_equal(a_segmenter.undo().array, first)
    assert not a_segmenter.undo().array.any()
    with pytest.raises(InputError, match="nothing to undo"):
        a_segmenter.undo()


def test_slices_that_were_clicked_on_keep_their_masks(a_segmenter: Segmenter) -> None:
    on_two = a_segmenter.click(CENTRE).on_slice
    mask = a_segmenter.click((20, 22, 4))
    assert np.array_equal(mask.array[2], on_two)
    assert mask.index == 4
    a_segmenter.reset()
    assert not a_segmenter.mask.array.any()


def test_propagation_goes_to_the_slices_that_the_library_reaches(a_segmenter: Segmenter, a_tiny_base: str) -> None:
    from FewShotSegLib.inference.segment import SegmentOptions, propagate

    heard: list[Progress] = []
    a_segmenter.box((10, 12, 2), (30, 32, 2))
    asked = Prompt(0, 2, box_ijk=np.array([[10.0, 12, 2], [30, 32, 2]]), structure="object")
    predictor = predictor_for(None, a_tiny_base, torch.device("cpu"))
    for direction in (0, 1):
        options = SegmentOptions(max_propagation=2, directions=(1,) if direction else (1, -1))
        reached = propagate(a_segmenter.volume, predictor, [asked], options=options)
        mask = a_segmenter.propagate(2, direction=direction, progress=heard.append)
        for index, (expected, _) in reached.items():
            assert np.array_equal(mask.array[index], expected)
    assert heard


def test_the_adapter_helps_with_the_structure_it_has_learned(
    an_adapter_file: Path, a_labelled_volume: tuple[Volume, np.ndarray]
) -> None:
    volume = a_labelled_volume[0]
    adapter = Adapter.load(an_adapter_file)
    masks = [Segmenter(volume, adapter, structure=name).click(CENTRE).array for name in ("disc", "square", "other")]
    same = Segmenter(volume, an_adapter_file, structure="disc").click(CENTRE)
    assert np.array_equal(same.array, masks[0])
    assert same.structure == "disc"
    values = [Segmenter(volume, adapter, structure=name).click(CENTRE).iou for name in ("disc", "square", "other")]
    assert len(set(values)) == 3


@pytest.mark.parametrize(
    ("point", "sentence"),
    [
        ((20, 22, 6), "k=6; the volume has k=0 to 5"),
        ((20, 99, 2), "outside the volume"),
        ((20, 22), "three numbers"),
        ("abc", "three numbers"),
        ((20, float("nan"), 2), "three numbers"),
    ],
)
def test_points_that_are_nowhere_are_refused_and_change_nothing(
    a_segmenter: Segmenter, point: object, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        a_segmenter.click(point)  # type: ignore[arg-type]
    assert not a_segmenter.mask.array.any()
    with pytest.raises(InputError, match="nothing to undo"):
        a_segmenter.undo()


def test_other_requests_that_make_no_sense_are_refused(a_segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match="click, scribble or draw a box"):
        a_segmenter.propagate()
    with pytest.raises(InputError, match="at least one point"):
        a_segmenter.scribble([])
    with pytest.raises(InputError, match="the prompt is on slice"):
        a_segmenter.scribble([(1, 1, 2), (5, 5, 3)])
    a_segmenter.click(CENTRE)
    with pytest.raises(InputError, match=r"-1, 0 \(both\) or 1"):
        a_segmenter.propagate(direction=2)


def test_the_window_decides_what_the_model_sees(a_tiny_base: str, a_labelled_volume: tuple[Volume, np.ndarray]) -> None:
    auto, narrow = (
        Segmenter(a_labelled_volume[0], base=a_tiny_base, window=window).click(CENTRE).iou for window in (None, (0, 60))
    )
    assert auto != narrow


def test_a_network_for_whole_volumes_answers_no_clicks(
    a_labelled_volume: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from FewShotSegLib.api import segmenter

    class Whole:
        def __init__(self) -> None:
            self.adapter = an_adapter()

    monkeypatch.setattr(segmenter, "VolumePredictor", Whole)
    monkeypatch.setattr(segmenter, "predictor_for", lambda *arguments: Whole())
    with pytest.raises(InputError, match="does not take clicks"):
        Segmenter(a_labelled_volume[0])
