"""Volumes to labelmaps. A fake predictor says exactly what is answered where, so every decision can be seen."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.imaging.slice_frame import SliceFrame, mask_from_network
from FewShotSegLib.inference.predictor import Masks, Predictor
from FewShotSegLib.inference.segment import (
    SegmentOptions,
    cleaned,
    cut_beyond_ends,
    keep_main_pieces,
    propagate,
    segment,
    smoothed,
)
from FewShotSegLib.io.volumes import load_volume, save_labelmap, save_volume
from FewShotSegLib.progress import Progress
from FewShotSegLib.sam.network import PromptableNetwork

SIZE = 16
UNIT = IntensitySpec("window", 0, 1)
AS_IT_IS = SegmentOptions(axis=0)
Square = np.ndarray[Any, Any]


@dataclass
class Fake:
    """Answers structure v with +v where the image is bright, prompts with what `on_prompt` says; remembers the
    questions.
    """

    structures: dict[int, str] | None = None
    on_prompt: Callable[[Square, Prompt], tuple[Square, float]] = lambda image, prompt: (
        np.where(image > 0.5, 3.0, -3.0),
        0.9,
    )
    on_token: Callable[[Square, int], Square] = lambda image, value: np.where(image > 0.5, float(value), -5.0)
    adapter_axis: int = 0
    image_size: int = SIZE
    encoded: int = 0
    largest_batch: int = 0
    prompts: list[Prompt] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)
    is_ready: bool = False

    @property
    def adapter(self) -> Any:
        if self.structures is None:
            return None
        return SimpleNamespace(structures=self.structures, intensity=UNIT, axis=self.adapter_axis, metrics={})

    @contextmanager
    def ready(self) -> Iterator[None]:
        self.is_ready = True
        yield
        self.is_ready = False

    def knows(self, structure: int) -> bool:
        return structure in (self.structures or {})

    def encode(self, images: Sequence[Square]) -> list[Square]:
        assert self.is_ready
        self.encoded += len(images)
        self.largest_batch = max(self.largest_batch, len(images))
        return list(images)

    def answer(self, image: Square, prompt: Prompt, frame: SliceFrame, structures: Sequence[int] = ()) -> Masks:
        self.prompts.append(prompt)
        self.asked.append(list(structures))
        logits, iou = self.on_prompt(image, prompt)
        return Masks(logits[None].astype(np.float32), np.array([iou], np.float32))

    def decode_structures(self, image: Square, structures: Sequence[int]) -> Masks:
        logits = np.stack([self.on_token(image, value) for value in structures]).astype(np.float32)
        return Masks(logits, np.full(len(structures), 0.7, np.float32))

    def on_voxels(self, masks: Masks, frame: SliceFrame) -> Square:
        return np.stack([mask_from_network(logits, frame) for logits in masks.logits])


def a_block(shape: tuple[int, int, int] = (7, SIZE, SIZE), affine: Square | None = None) -> Volume:
    """A bright block in the dark, off centre, not touching the faces."""
    array = np.zeros(shape, np.float32)
    array[tuple(slice(n // 4, n // 4 + max(n // 2, 1)) for n in shape)] = 1
    return Volume(array, np.eye(4) if affine is None else affine)


def a_column(count: int = 7) -> Volume:
    """A bright square in the same place on every slice."""
    array = np.zeros((count, SIZE, SIZE), np.float32)
    array[:, 4:10, 5:12] = 1
    return Volume(array, np.eye(4))


def click(index: int, structure: str | None = None, axis: int = 0) -> Prompt:
    point = np.array([[8.0, 6.0, index]])
    point[0, 2 - axis] = index
    return Prompt(axis, index, point, np.array([1]), structure=structure)


def run(volume: Volume, fake: Fake, *prompts: Prompt, **options: Any):  # type: ignore[no-untyped-def]
    chosen = SegmentOptions(**{"axis": prompts[0].axis if prompts else 0, **options})
    return segment(volume, fake, intensity=UNIT, prompts=prompts, options=chosen)  # type: ignore[arg-type]


# --- structures by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tokens_find_their_structure_on_every_slice_along_every_axis(axis: int) -> None:
    volume, fake = a_block((SIZE, SIZE, SIZE)), Fake({3: "block"})
    found = run(volume, fake, axis=axis)
    np.testing.assert_array_equal(found.labelmap.volume.array, 3 * (volume.array > 0))
    assert found.labelmap.structures == {3: "block"}
    assert set(found.confidence[3]) == set(range(SIZE))
    assert fake.encoded == SIZE
    assert fake.largest_batch == 4


def test_slices_that_are_not_square_come_back_in_place() -> None:
    volume = Volume(np.zeros((5, SIZE, 10), np.float32), np.eye(4))
    volume.array[1:4, 3:9, 2:7] = 1
    np.testing.assert_array_equal(run(volume, Fake({1: "a"})).labelmap.volume.array, volume.array)


def test_where_structures_overlap_the_higher_logit_wins_and_only_positive_ones_count() -> None:
    volume = a_column(2)
    logits = {
        1: np.where(np.arange(SIZE) < 8, 5.0, 1.0) * np.ones((SIZE, 1)),
        2: np.full((SIZE, SIZE), 3.0),
        7: np.full((SIZE, SIZE), -0.1),
    }
    for value in (1, 2):
        logits[value][12:] = -1.0
    fake = Fake({1: "a", 2: "b", 7: "c"}, on_token=lambda image, value: logits[value])
    expected = np.where(np.arange(SIZE) < 8, 1, 2) * np.ones((2, SIZE, 1))
    expected[:, 12:] = 0
    np.testing.assert_array_equal(run(volume, fake).labelmap.volume.array, expected)


def test_a_logit_of_exactly_zero_is_background() -> None:
    fake = Fake({1: "a"}, on_token=lambda image, value: np.zeros((SIZE, SIZE)))
    assert not run(a_column(1), fake).labelmap.volume.array.any()


def test_labels_beyond_255_need_and_get_two_bytes() -> None:
    found = run(a_column(2), Fake({300: "a"}))
    assert found.labelmap.volume.array.dtype == np.uint16
    assert found.labelmap.volume.array.max() == 300
    assert run(a_column(2), Fake({255: "a"})).labelmap.volume.array.dtype == np.uint8


def test_a_volume_of_one_slice_is_an_image() -> None:
    found = run(a_column(1), Fake({1: "a"}))
    np.testing.assert_array_equal(found.labelmap.volume.array, a_column(1).array)
    sideways = Volume(np.moveaxis(a_column(1).array, 0, 2), np.eye(4))
    found = segment(sideways, Fake({1: "a"}), intensity=UNIT)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.labelmap.volume.array, sideways.array)


def test_an_oblique_anisotropic_volume_keeps_its_geometry(tmp_path: Any) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.7, 0.7, 3.0)
    affine[:3, 3] = (-12.5, 40.25, 7.75)
    volume = a_block((8, SIZE, SIZE), affine)
    found = run(volume, Fake({1: "block"})).labelmap
    assert found.volume.same_geometry(volume)
    np.testing.assert_array_equal(found.volume.array, volume.array)
    save_labelmap(Labelmap(found.volume, found.structures), tmp_path / "found.seg.nrrd")
    save_volume(volume, tmp_path / "image.nrrd")
    assert load_volume(tmp_path / "found.seg.nrrd").same_geometry(load_volume(tmp_path / "image.nrrd"))


# --- which axis -----------------------------------------------------------------------------------------------------


def visited_axis(volume: Volume, **given: Any) -> int:
    fake = given.pop("fake", None) or Fake({1: "a"}, adapter_axis=given.pop("adapter_axis", 0))
    segment(volume, fake, intensity=UNIT, **given)
    return {7: 0, 11: 1, 13: 2}[fake.encoded]


def test_the_axis_is_the_one_asked_for_else_the_adapters_else_that_of_acquisition() -> None:
    isotropic = a_block((7, 11, 13))
    sagittal = a_block((7, 11, 13), np.diag([5.0, 1, 1, 1]))
    assert visited_axis(isotropic) == 0
    assert visited_axis(isotropic, adapter_axis=1) == 1
    assert visited_axis(sagittal, adapter_axis=0) == 2
    assert visited_axis(sagittal, options=SegmentOptions(axis=1)) == 1


def test_prompts_on_several_axes_or_another_axis_are_refused() -> None:
    with pytest.raises(InputError, match="different axes"):
        run(a_block(), Fake(), click(3), click(3, axis=1))
    with pytest.raises(InputError, match="on axis k, the axis asked for is j"):
        run(a_block(), Fake(), click(3), axis=1)


# --- prompts --------------------------------------------------------------------------------------------------------


def test_without_an_adapter_structures_are_numbered_in_the_order_of_mention() -> None:
    places = {"vein": slice(0, 5), "liver": slice(5, 10), None: slice(10, 16)}

    def on_prompt(image: Square, prompt: Prompt) -> tuple[Square, float]:
        logits = np.full((SIZE, SIZE), -3.0)
        logits[places[prompt.structure]] = 3
        return logits, 0.9

    prompts = [click(3, "vein"), click(2, "liver"), click(3), click(1, "vein")]
    found = run(a_column(), Fake(on_prompt=on_prompt), *prompts, propagate=False)
    assert found.labelmap.structures == {1: "vein", 2: "liver", 3: "object"}
    array = found.labelmap.volume.array
    assert np.unique(array[3, :5]) == 1
    assert np.unique(array[3, 10:]) == 3
    assert np.unique(array[2]).tolist() == [0, 2]
    assert array.any((1, 2)).tolist() == [False, True, True, True, False, False, False]


def test_prompts_decide_their_structure_and_tokens_the_others() -> None:
    volume = a_column()
    far = np.full((SIZE, SIZE), -3.0)
    far[12:15, 12:15] = 9

    fake = Fake({1: "a", 2: "b"}, on_prompt=lambda image, prompt: (far, 0.8))
    found = run(volume, fake, click(3, "b"), propagate=False)
    expected = (volume.array > 0).astype(int)
    expected[3, 12:15, 12:15] = 2
    np.testing.assert_array_equal(found.labelmap.volume.array, expected)
    assert fake.asked == [[2]]  # its tokens went along
    assert found.confidence[2] == {3: pytest.approx(0.8)}


def test_a_structure_that_the_adapter_does_not_know_gets_the_next_label() -> None:
    fake = Fake({1: "a", 4: "b"})
    found = run(a_column(), fake, click(0, "new"), propagate=False)
    assert found.labelmap.structures == {1: "a", 4: "b", 5: "new"}
    assert fake.asked == [[]]


def test_naming_a_structure_of_the_adapter_without_pointing_leaves_it_to_its_tokens() -> None:
    found = run(a_column(), Fake({1: "a", 2: "b"}), Prompt(0, 3, structure="a"))
    assert np.unique(found.labelmap.volume.array[0]).tolist() == [0, 2]  # both found, "b" louder
    assert set(found.confidence) == {1, 2}


@pytest.mark.parametrize("structures", [None, {1: "a"}])
def test_naming_an_unknown_structure_without_pointing_is_refused(structures: dict[int, str] | None) -> None:
    with pytest.raises(InputError, match="nothing points at vein"):
        run(a_column(), Fake(structures), Prompt(0, 3, structure="vein"))


def test_two_prompts_on_one_slice_add_up() -> None:
    def on_prompt(image: Square, prompt: Prompt) -> tuple[Square, float]:
        logits = np.full((SIZE, SIZE), -3.0)
        column = int(prompt.points_ijk[0, 0])
        logits[5:9, column : column + 2] = 2
        return logits, 0.9

    left, right = (Prompt(0, 2, np.array([[x, 6.0, 2]]), np.array([1])) for x in (2, 11))
    array = run(a_column(), Fake(on_prompt=on_prompt), left, right, propagate=False).labelmap.volume.array
    assert np.flatnonzero(array[2].any(0)).tolist() == [2, 3, 11, 12]


def test_nothing_to_segment_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to segment"):
        run(a_column(), Fake())


def test_a_prompt_outside_the_volume_is_refused_before_any_work() -> None:
    fake = Fake()
    with pytest.raises(InputError, match="slice k=9"):
        run(a_column(), fake, click(9))
    assert fake.encoded == 0


# --- propagation ----------------------------------------------------------------------------------------------------


def found_slices(found: Any, value: int = 1) -> list[int]:
    return np.flatnonzero((found.labelmap.volume.array == value).any((1, 2))).tolist()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_click_finds_the_whole_object_along_every_axis(axis: int) -> None:
    array = np.moveaxis(a_column().array, 0, axis)
    fake = Fake()
    found = run(Volume(array, np.eye(4)), fake, click(3, axis=axis))
    np.testing.assert_array_equal(found.labelmap.volume.array, array)
    assert [prompt.index for prompt in fake.prompts] == [3, 4, 5, 6, 2, 1, 0]
    for prompt in fake.prompts[1:]:
        assert prompt.mask is not None
        np.testing.assert_array_equal(prompt.mask, array.take(prompt.index, axis) > 0)
        rows, columns = (2 - a for a in range(3) if a != axis)
        row, column = (int(prompt.points_ijk[0, a]) for a in (rows, columns))
        assert prompt.mask[row, column]
        assert prompt.points_ijk[0, 2 - axis] == prompt.index


def test_propagation_stops_where_confidence_falls() -> None:
    sure = {0: 0.9, 1: 0.4, 2: 0.9, 3: 0.9, 4: 0.6, 5: 0.49, 6: 0.9}
    fake = Fake(on_prompt=lambda image, prompt: (np.where(image > 0.5, 3.0, -3.0), sure[prompt.index]))
    assert found_slices(run(a_column(), fake, click(3))) == [2, 3, 4]


@pytest.mark.parametrize(("width", "goes_on"), [(6, True), (12, True), (13, False), (3, True), (2, False)])
def test_propagation_stops_where_the_area_jumps(width: int, goes_on: bool) -> None:
    array = np.zeros((2, SIZE, SIZE), np.float32)
    array[0, 4:10, 2:8] = 1
    array[1, 4:10, 2 : 2 + width] = 1
    assert found_slices(run(Volume(array, np.eye(4)), Fake(), click(0))) == ([0, 1] if goes_on else [0])


def test_propagation_stops_where_nothing_is_left() -> None:
    volume = a_column()
    volume.array[5:] = 0
    assert found_slices(run(volume, Fake(), click(3))) == [0, 1, 2, 3, 4]


def test_propagation_goes_no_further_than_allowed_and_nowhere_when_off() -> None:
    assert found_slices(run(a_column(), Fake(), click(3), max_propagation=2)) == [1, 2, 3, 4, 5]
    assert found_slices(run(a_column(), Fake(), click(3), propagate=False)) == [3]


def walked(fake: Fake, *prompts: Prompt, volume: Volume | None = None, **options: Any) -> dict[int, Any]:
    volume, chosen = volume or a_column(), SegmentOptions(**options)
    return propagate(volume, fake, prompts, intensity=UNIT, options=chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(("directions", "slices"), [((1,), [3, 4, 5]), ((-1,), [1, 2, 3]), ((1, -1), [1, 2, 3, 4, 5])])
def test_one_structure_is_followed_in_the_directions_asked_for(directions: tuple[int, ...], slices: list[int]) -> None:
    fake = Fake()
    found = walked(fake, click(3, "a"), max_propagation=2, directions=directions)
    assert list(found) == slices
    for mask, iou in found.values():
        np.testing.assert_array_equal(mask, a_column().array[0] > 0)
        assert iou == pytest.approx(0.9)
    assert fake.asked == [[]] * len(slices)


def test_a_structure_the_adapter_knows_is_followed_with_its_tokens_and_the_others_are_left_alone() -> None:
    fake = Fake({4: "a", 5: "b"})
    assert list(walked(fake, click(3, "b"), max_propagation=1)) == [2, 3, 4]
    assert fake.asked == [[5]] * 3


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ((), "at least one prompt"),
        ((click(1, "a"), click(2, "b")), "one structure at a time"),
        ((Prompt(0, 1, structure="a"),), "a point, a box or a mask shows it"),
        ((click(9),), "slice k=9"),
    ],
)
def test_what_cannot_be_followed_is_refused(prompts: tuple[Prompt, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        walked(Fake(), *prompts)


def test_between_two_prompted_slices_each_walk_ends_half_way() -> None:
    origin: dict[int, set[int]] = {}

    def on_prompt(image: Square, prompt: Prompt) -> tuple[Square, float]:
        # The mask tells where the walk came from: 4 rows from slice 1, 5 rows from slice 7.
        rows = {1: 4, 7: 5}.get(prompt.index) or int(prompt.mask.any(1).sum())  # type: ignore[union-attr]
        origin.setdefault(prompt.index, set()).add(rows)
        logits = np.full((SIZE, SIZE), -3.0)
        logits[:rows] = 3
        return logits, 0.9 if rows == 5 else 0.8

    found = run(a_column(10), Fake(on_prompt=on_prompt), click(1), click(7))
    assert {index: rows for index, rows in origin.items() if index not in (1, 7)} == {
        0: {4},
        2: {4},
        3: {4},
        4: {4, 5},
        5: {5},
        6: {5},
        8: {5},
        9: {5},
    }
    heights = found.labelmap.volume.array.any(2).sum(1).tolist()
    assert heights == [4, 4, 4, 4, 5, 5, 5, 5, 5, 5]  # the surer of the two has the middle


@pytest.mark.parametrize("prompts", [[], [click(3)]])
def test_cancelling_stops_within_a_few_slices(prompts: list[Prompt]) -> None:
    seen: list[Progress] = []

    def report(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 3:
            raise Cancelled

    fake = Fake({1: "a"} if not prompts else None)
    with pytest.raises(Cancelled):
        segment(a_column(40), fake, intensity=UNIT, prompts=prompts, report=report)  # type: ignore[arg-type]
    assert fake.encoded <= 4


# --- probabilities and memory ---------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_logits_and_zero_where_nothing_was_asked() -> None:
    fake = Fake({1: "a", 2: "b"}, on_prompt=lambda image, prompt: (np.full((SIZE, SIZE), 1.5), 0.9))
    found = run(a_column(4), fake, click(2, "b"), propagate=False, probabilities=True)
    expected = 1 / (1 + np.exp(-np.where(a_column(4).array > 0.5, 1.0, -5.0)))
    np.testing.assert_allclose(found.probabilities[1], expected, atol=1e-3)
    np.testing.assert_allclose(found.probabilities[2][2], 1 / (1 + np.exp(-1.5)), atol=1e-3)
    assert not found.probabilities[2][[0, 1, 3]].any()
    assert found.probabilities[1].dtype == np.float16


def test_no_array_of_numbers_per_voxel_is_made_unless_probabilities_are_asked_for() -> None:
    volume = Volume(np.zeros((400, SIZE, SIZE), np.int16), np.eye(4))
    volume.array[:, 4:10, 4:10] = 1
    fake = Fake({1: "a", 2: "b", 3: "c"})
    run(a_column(2), fake)  # what is made once is made now
    tracemalloc.start()
    found = run(volume, fake)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.probabilities == {}
    assert found.labelmap.volume.array.any((1, 2)).all()
    assert peak < 0.75 * 4 * volume.array.size  # less than one float per voxel, all structures and slices included


# --- islands --------------------------------------------------------------------------------------------------------


def test_the_largest_island_of_each_structure_is_kept() -> None:
    labels = np.zeros((3, 10, 10), np.uint8)
    labels[0:2, 1:4, 1:4] = 1
    labels[2, 8:10, 8:10] = 1
    labels[0, 7:9, 0:2] = 2
    labels[0, 0, 9] = 2
    labels[2, 0, 0] = 2
    kept = cleaned(labels, np.ones(3), SegmentOptions(largest_component=True))
    expected = labels.copy()
    expected[2, 8:10, 8:10] = expected[0, 0, 9] = expected[2, 0, 0] = 0
    np.testing.assert_array_equal(kept, expected)
    assert labels[0, 0, 9] == 2  # the input is left alone


def test_islands_below_a_volume_in_millilitres_go() -> None:
    labels = np.zeros((2, 10, 10), np.uint8)
    labels[0, :2, :5] = 1  # 10 voxels of 0.1 mL: 1 mL
    labels[0, 5:7, 5:7] = 1  # 0.4 mL
    labels[1, 9, 9] = 3  # alone and too small
    spacing_mm = np.array([2.0, 5.0, 10.0])
    kept = cleaned(labels, spacing_mm, SegmentOptions(min_island_ml=0.5))
    assert np.unique(kept).tolist() == [0, 1]
    assert (kept == 1).sum() == 10
    assert (cleaned(labels, spacing_mm, SegmentOptions(min_island_ml=0.4)) == 1).sum() == 14


def test_a_neighbour_of_another_structure_does_not_join_islands() -> None:
    labels = np.zeros((1, 3, 9), np.uint8)
    labels[0, 1] = [1, 1, 1, 2, 1, 0, 2, 2, 0]
    kept = cleaned(labels, np.ones(3), SegmentOptions(largest_component=True))
    assert kept[0, 1].tolist() == [1, 1, 1, 0, 0, 0, 2, 2, 0]


def test_without_the_wish_nothing_is_removed() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    np.testing.assert_array_equal(cleaned(labels, np.ones(3), SegmentOptions()), labels)
    assert not cleaned(0 * labels, np.ones(3), SegmentOptions(largest_component=True)).any()


def test_islands_are_removed_from_what_segment_returns() -> None:
    volume = a_column(3)
    volume.array[1, 14, 14] = 1
    found = run(volume, Fake({1: "a"}), largest_component=True)
    assert found.labelmap.volume.array[1, 14, 14] == 0
    assert found.labelmap.volume.array[1, 5, 6] == 1


# --- with a real network --------------------------------------------------------------------------------------------


def test_a_network_answers_a_click_on_a_volume_and_gives_the_same_labels_twice(a_tiny_sam: PromptableNetwork) -> None:
    volume = a_block((5, 20, 12), np.diag([1.0, 1.5, 4.0, 1.0]))
    options = SegmentOptions(min_confidence=-10, max_growth=1e9, probabilities=True)
    prompt = Prompt(0, 2, np.array([[5.0, 8.0, 2.0]]), np.array([1]), structure="block")
    first, second = (
        segment(volume, Predictor(a_tiny_sam), intensity=UNIT, prompts=[prompt], options=options) for _ in range(2)
    )
    assert first.labelmap.structures == {1: "block"}
    assert 2 in first.confidence[1]
    np.testing.assert_array_equal(first.labelmap.volume.array, second.labelmap.volume.array)
    probability = first.probabilities[1]
    clear = np.abs(probability - np.float16(0.5)) > 0.001  # half precision
    np.testing.assert_array_equal((first.labelmap.volume.array == 1)[clear], (probability > 0.5)[clear])
    assert clear.mean() > 0.5


# --- pieces ---------------------------------------------------------------------------------------------------------


def test_a_light_piece_is_removed_and_a_second_heavy_one_stays() -> None:
    labels, certainty = np.zeros((4, 20, 20), np.uint8), np.zeros((4, 20, 20), np.uint8)
    labels[1:3, 2:6, 2:6], certainty[1:3, 2:6, 2:6] = 1, 60
    labels[1:3, 2:6, 12:15], certainty[1:3, 2:6, 12:15] = 1, 50  # the other kidney
    labels[0:2, 10:19, 0:9], certainty[0:2, 10:19, 0:9] = 1, 2  # large, and doubtful
    labels[3, 19, 19], certainty[3, 19, 19] = 2, 1  # of another structure
    keep_main_pieces(labels, certainty, 1)
    assert (labels == 1).sum() == 2 * 4 * 4 + 2 * 4 * 3
    assert labels[3, 19, 19] == 2


@pytest.mark.parametrize(("whole", "all_pieces", "pieces"), [((), False, 2), (("a",), False, 1), (("a",), True, 2)])
def test_pieces_are_removed_of_what_was_in_one_piece_unless_told_otherwise(
    whole: tuple[str, ...], all_pieces: bool, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((2, SIZE, SIZE), np.float32)
    image[:, 2:9, 2:9] = 1.0
    image[0, -3:-1, -3:-1] = 1.0
    fake = Fake({1: "a"})
    adapter = fake.adapter
    adapter.metrics = {"in_one_piece": list(whole)}
    monkeypatch.setattr(Fake, "adapter", adapter)
    options = SegmentOptions(axis=0, all_pieces=all_pieces)
    found = segment(Volume(image, np.eye(4)), fake, intensity=UNIT, options=options)  # type: ignore[arg-type]
    assert ndimage.label(found.labelmap.volume.array == 1)[1] == pieces


@pytest.mark.parametrize(
    ("metrics", "all_pieces", "slices"),
    [
        ({"in_one_piece": ["a"], "shown_together": [["a"]]}, False, [4, 5, 6, 7, 8, 9]),
        ({"in_one_piece": ["a"], "shown_together": [["a"]]}, True, [0, 1, 2, 4, 5, 6, 7, 8, 9]),
        ({"in_one_piece": ["a"]}, False, [0, 1, 2, 4, 5, 6, 7, 8, 9]),  # of a version that did not note it
        ({"in_one_piece": [], "shown_together": [["a"]]}, False, [0, 1, 2, 4, 5, 6, 7, 8, 9]),  # lesions
    ],
)
def test_what_is_found_beyond_the_ends_is_removed_unless_told_otherwise(
    metrics: dict[str, Any], all_pieces: bool, slices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((10, SIZE, SIZE), np.float32)
    image[4:, 2:9, 2:9] = 1.0
    image[:3, 7:13, 7:13] = 1.0  # elsewhere on the slice
    fake = Fake({1: "a"})
    adapter = fake.adapter
    adapter.metrics = metrics
    monkeypatch.setattr(Fake, "adapter", adapter)
    options = SegmentOptions(axis=0, all_pieces=all_pieces)
    found = segment(Volume(image, np.eye(4)), fake, intensity=UNIT, options=options)  # type: ignore[arg-type]
    assert np.flatnonzero((found.labelmap.volume.array == 1).any((1, 2))).tolist() == slices


@pytest.mark.parametrize(("together", "slices"), [([["a"]], [3, 4, 5, 6, 7, 8, 9]), ([["a", "b"]], [0])])
def test_of_a_structure_that_is_shown_alone_the_certain_piece_is_cut_and_not_the_slice_with_most(
    together: list[list[str]], slices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((10, SIZE, SIZE), np.float32)
    image[3:, 2:8, 2:8] = 1.0
    image[0, 2:14, 2:14] = 0.7  # larger, less certain, and on one slice alone
    structures = {1: "a", 2: "b"}
    fake = Fake(structures, on_token=lambda seen, value: np.where(seen > 0.5, seen - 0.4 if value == 1 else -1.0, -5.0))
    adapter = fake.adapter
    adapter.metrics = {"in_one_piece": ["a"], "shown_together": together}
    monkeypatch.setattr(Fake, "adapter", adapter)
    volume = Volume(image, np.eye(4))
    found = segment(volume, fake, intensity=UNIT, options=SegmentOptions(axis=0))  # type: ignore[arg-type]
    assert np.flatnonzero((found.labelmap.volume.array == 1).any((1, 2))).tolist() == slices


def test_the_ends_are_sought_across_the_axis_of_the_slices() -> None:
    labels = np.zeros((4, 9, 9), np.uint8)
    labels[:, :, 3:9], labels[:, 0:3, 0:2] = 1, 1  # a gap along the last axis alone
    certainty = np.where(labels, 40, 0).astype(np.uint8)
    for axis, first in ((0, 0), (2, 3)):
        found = labels.copy()
        cut_beyond_ends(found, certainty, axis, [1], [1], [[1]])
        assert np.flatnonzero((found == 1).any((0, 1)))[0] == first


def test_a_vessel_that_is_poorly_found_on_some_slices_is_not_cut_there() -> None:
    labels = np.zeros((12, 30, 30), np.uint8)
    labels[:, 10:20, 10:20], labels[7:9] = 1, 0
    labels[9:, 10:20, 12:22], labels[9:, 10:20, 10:12] = 1, 0  # a little aside: IoU 2/3
    elsewhere = labels.copy()
    elsewhere[9:] = 0
    elsewhere[9:, 10:20, 18:28] = 1
    for given, last in ((labels, 11), (elsewhere, 6)):
        cut_beyond_ends(given, np.where(given, 40, 0).astype(np.uint8), 0, [1], [1], [[1]])
        assert np.flatnonzero((given == 1).any((1, 2)))[-1] == last


def test_a_structure_that_was_pointed_at_beside_learned_ones_is_no_matter_to_their_ends() -> None:
    labels = np.zeros((6, 9, 9), np.uint8)
    labels[:4, 1:4, 1:4], labels[5, 1:3, 1:3] = 1, 1
    labels[2, 6, 6] = 3  # of a larger value than any that the adapter has learned, on one of the slices
    cut_beyond_ends(labels, np.where(labels, 40, 0).astype(np.uint8), 0, [1], [1], [[1]])
    assert np.flatnonzero((labels == 1).any((1, 2))).tolist() == [0, 1, 2, 3]
    assert labels[2, 6, 6] == 3


def test_smoothing_rounds_stairs_between_thick_slices_and_keeps_what_is_flat() -> None:
    labels = np.zeros((9, 40, 44), np.uint8)
    for k in range(9):
        labels[k, 4:36, 4 : 16 + 6 * (k // 3)] = 1  # a step of six columns every third slice
    labels[:, 4:36, 34:44] = 2
    spacing = np.array([1.0, 1.0, 5.0])
    again = smoothed(labels, spacing, 4.0)
    ends = [int(np.flatnonzero(again[k, 20] == 1).max()) for k in range(9)]
    assert ends == sorted(ends)
    assert max(np.diff(ends)) < 6  # no step is as high as before
    assert set(np.unique(again)) == {0, 1, 2}
    assert (again[:, 12:28, 8:12] == 1).all()
    assert (smoothed(labels, spacing, 0.05) == labels).all()


def test_smoothing_gives_a_voxel_between_two_structures_to_one_of_them() -> None:
    labels = np.zeros((1, 30, 30), np.uint8)
    labels[0, 5:25, 5:15], labels[0, 5:25, 15:25] = 3, 7
    again = smoothed(labels, np.ones(3), 2.0)
    assert (again[0, 10:20, 8:22] > 0).all()
    assert (again[0, 10:20, :15] != 7).all()
    assert not smoothed(np.zeros((2, 3, 4), np.uint8), np.ones(3), 2.0).any()


def test_smoothing_near_the_border_and_in_a_window_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((12, 40, 40), np.uint8)
    labels[0:5, 0:14, 20:33] = 1 + (rng.random((5, 14, 13)) > 0.5)
    whole = labels.copy()
    whole[11, 39, 39] = whole[11, 0, 0] = 1  # which makes the window that of the volume
    near = (slice(0, 7), slice(0, 25), slice(10, 39))
    assert (smoothed(labels, np.ones(3), 1.5)[near] == smoothed(whole, np.ones(3), 1.5)[near]).all()


def peak_bytes(run: Callable[[], object]) -> int:
    """What NumPy had allocated at most while this ran, beyond what was there before."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_cleaning_takes_few_bytes_for_each_voxel() -> None:
    labels = np.zeros((16, 96, 96), np.uint8)
    labels[:, ::2, :] = 1  # many pieces, all over the volume
    labels[:, :40] = 1
    certainty = np.full(labels.shape, 9, np.uint8)
    # Pieces have a number of 4 bytes; counting them all at once would take 16 more, finding them in a copy another 4.
    assert peak_bytes(lambda: keep_main_pieces(labels.copy(), certainty, 1)) < 8 * labels.size
    options = SegmentOptions(largest_component=True)
    assert peak_bytes(lambda: cleaned(labels, np.ones(3), options)) < 8 * labels.size
    found = labels.copy()
    keep_main_pieces(found, certainty, 1)
    assert found[:, :40].all()
    assert not found[:, 41:].any()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_cleaning_takes_labels_of_one_and_two_bytes(kind: type) -> None:
    labels = np.zeros((4, 12, 12), kind)
    top = np.iinfo(kind).max
    labels[1:3, 1:6, 1:6], labels[1, 9, 9] = top, top
    found = cleaned(labels, np.ones(3), SegmentOptions(largest_component=True, smoothing_mm=0.2))
    assert found.dtype == kind
    assert found[1, 3, 3] == top
    assert not found[1, 9, 9]
