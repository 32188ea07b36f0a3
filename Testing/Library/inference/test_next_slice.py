"""The slice with the most doubt is suggested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.inference.load import load_predictor
from FewShotSegLib.inference.next_slice import doubt, suggest_slice
from FewShotSegLib.inference.predictor import Masks, Predictor
from FewShotSegLib.sam.network import PromptableNetwork
from Testing.conftest import Listener, dice


@pytest.fixture
def a_predictor(an_adapter_file: Path) -> Predictor:
    return load_predictor(str(an_adapter_file), None, torch.device("cpu"))


def a_disc_with(logit: float, size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    return np.where(x**2 + y**2 < 200, logit, -20.0).astype(np.float32)[None]


def test_doubt_falls_with_certainty_and_does_not_see_empty_slices() -> None:
    doubts = [doubt(a_disc_with(logit)) for logit in (0.5, 2.0, 8.0, -20.0)]
    assert doubts == sorted(doubts, reverse=True)
    assert doubts[0] > 0.3
    assert doubts[-2] < 0.01
    assert doubts[-1] < 0.001


def test_doubt_is_one_minus_the_dice_of_two_draws() -> None:
    p, n = 0.7, 128
    logits = np.full((1, n, n), np.log(p / (1 - p)), np.float32)
    rng = np.random.default_rng(0)
    first, second = rng.random((2, n, n)) < p
    assert doubt(logits) == pytest.approx(1 - dice(first, second), abs=0.02)


def test_the_slice_with_the_most_doubt_is_suggested(a_predictor: Predictor, a_volume: Volume) -> None:
    found = suggest_slice(a_volume, a_predictor, 0)
    assert sorted(found.doubts) == list(range(6))
    assert found.doubts[found.index] == max(found.doubts.values())


def test_where_the_model_wavers_is_where_it_is_taught(
    a_predictor: Predictor, a_volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    certainty = iter([8.0, 8.0, 0.3, 8.0, 8.0, 8.0])

    def decided(self: Predictor, embedding: object, structures: list[int]) -> Masks:
        logits = np.repeat(a_disc_with(next(certainty)), len(structures), axis=0)
        return Masks(logits, np.ones(len(structures), np.float32))

    monkeypatch.setattr(Predictor, "decode_structures", decided)
    assert suggest_slice(a_volume, a_predictor, 0).index == 2


def test_annotated_slices_and_their_neighbours_are_left_out(a_predictor: Predictor, a_volume: Volume) -> None:
    assert set(suggest_slice(a_volume, a_predictor, 0, known=[1, 2]).doubts) == {4, 5}
    assert set(suggest_slice(a_volume, a_predictor, 0, known=[1, 4]).doubts) == {0, 2, 3, 5}  # neighbours, for want
    with pytest.raises(InputError, match="Every slice"):
        suggest_slice(a_volume, a_predictor, 0, known=range(6))


def test_a_long_volume_is_looked_at_in_steps(a_predictor: Predictor, a_volume: Volume, a_listener: Listener) -> None:
    found = suggest_slice(a_volume, a_predictor, 1, most=5, report=a_listener)
    assert list(found.doubts) == [0, 16, 32, 47, 63]
    assert [progress.step for progress in a_listener.heard] == [1, 2, 3, 4, 5]
    with pytest.raises(Cancelled):
        suggest_slice(a_volume, a_predictor, 0, report=Listener(2, Cancelled()))


def test_without_an_adapter_there_is_no_doubt_to_look_for(a_tiny_sam: PromptableNetwork, a_volume: Volume) -> None:
    with pytest.raises(InputError, match="only with an adapter"):
        suggest_slice(a_volume, Predictor(a_tiny_sam), 0)
