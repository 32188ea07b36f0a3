"""Learning to translate and translating: what is drawn, resuming, stopping, the toy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from FewShotSegLib.errors import Cancelled, InputError, StopAndKeepBest
from FewShotSegLib.methods.uda.cycle_gan import CycleGan, TranslationRecipe
from FewShotSegLib.methods.uda.translation import load_translator, save_translator, train_translator
from FewShotSegLib.progress import Progress
from Testing.conftest import dice
from Testing.Library.methods.uda.toys import TINY, Array, noise

# -------------------------------------------------------------------------------------------------------- the training


def seen_by(source: Any, target: Any, recipe: TranslationRecipe, monkeypatch: pytest.MonkeyPatch) -> tuple[list, list]:
    """The batches of each modality that a training looks at."""
    batches: tuple[list, list] = ([], [])
    original = CycleGan.generator_objective

    def recorded(self: CycleGan, *pair: Tensor) -> Any:
        for batch, tensor in zip(batches, pair, strict=True):
            batch.append(tensor.clone())
        return original(self, *pair)

    monkeypatch.setattr(CycleGan, "generator_objective", recorded)
    train_translator(source, target, recipe)
    return batches


def stepped(count: int) -> Array:
    """A volume whose slice k is k / 100 but for one pixel, to be known by."""
    volume = np.repeat(np.arange(count, dtype=np.float32) / 100, 32 * 32).reshape(count, 32, 32)
    volume[:, 0, 0] = 1
    return volume


def test_slices_of_the_larger_modality_come_equally_often_and_the_others_as_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    larger = [stepped(3), stepped(7)[3:]]
    source, target = seen_by([stepped(2)], larger, replace(TINY, steps=7, batch_size=2), monkeypatch)
    numbers = [round(100 * float(image[0, 5, 5])) for batch in target for image in batch]
    assert sorted(numbers[:7]) == sorted(numbers[7:]) == list(range(7))
    assert {round(100 * float(image[0, 5, 5])) for batch in source for image in batch} == {0, 1}


def test_neighbouring_slices_come_along_and_are_repeated_at_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(TINY, steps=5, neighbours=1)
    source, _ = seen_by([stepped(5)], [stepped(5)], recipe, monkeypatch)
    stacks = {tuple((100 * batch[0, :, 5, 5]).round().int().tolist()) for batch in source}
    assert stacks == {(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 4)}


def test_blank_slices_are_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    half_blank = np.concatenate([np.zeros((5, 32, 32), np.float32), stepped(1)])
    source, _ = seen_by([half_blank], [stepped(3)], replace(TINY, steps=6), monkeypatch)
    assert all(float(batch.max()) == 1 for batch in source)


def test_small_slices_get_zeros_around_and_large_ones_are_cropped(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = seen_by([1 - 0.5 * noise(3, 20, 40)], [noise(3, 50, 60)], TINY, monkeypatch)
    for batch in source:
        assert batch.shape == (1, 1, 32, 32)
        assert bool((batch[0, 0, 6:26] > 0).all())
        assert float(batch[0, 0, :6].abs().sum() + batch[0, 0, 26:].abs().sum()) == 0
    assert all(batch.shape == (1, 1, 32, 32) for batch in target)


def test_slices_may_be_drawn_by_a_function() -> None:
    drawn: list[float] = []

    def draw(rng: np.random.Generator) -> Array:
        drawn.append(rng.random())
        return rng.random((1, 32, 32), dtype=np.float32)

    train_translator(draw, [noise(2, 32, 32)], TINY)
    assert len(set(drawn)) == TINY.steps


def test_a_run_that_was_killed_and_resumed_ends_in_the_same_bytes(tmp_path: Path) -> None:
    volumes, recipe, checkpoint = (
        ([noise(3, 32, 32)], [noise(4, 32, 32, seed=1)]),
        replace(TINY, steps=6),
        tmp_path / "c.pt",
    )
    whole = train_translator(*volumes, recipe, seed=5)
    with pytest.raises(Cancelled):
        train_translator(*volumes, recipe, seed=5, checkpoint=checkpoint, identity="x", report=stop_at(4, Cancelled))
    heard: list[Progress] = []
    resumed = train_translator(*volumes, recipe, seed=5, checkpoint=checkpoint, identity="x", report=heard.append)
    assert heard[0].step == 5
    save_translator(whole, tmp_path / "whole.safetensors")
    save_translator(resumed, tmp_path / "resumed.safetensors")
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "resumed.safetensors").read_bytes()
    assert whole.history == resumed.history


def stop_at(step: int, error: type[Exception]) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise error

    return report


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    volumes = [noise(2, 32, 32)]
    train_translator(volumes, volumes, TINY, checkpoint=tmp_path / "c.pt", identity="one")
    with pytest.raises(InputError, match="interrupted training of this name with other"):
        train_translator(volumes, volumes, TINY, checkpoint=tmp_path / "c.pt", identity="two")


def test_every_step_is_reported_with_its_losses_and_a_picture_now_and_then() -> None:
    heard: list[Progress] = []
    train_translator([noise(2, 32, 32)], [noise(2, 32, 32)], TINY, report=heard.append)
    assert [(progress.step, progress.total) for progress in heard] == [(n, 4) for n in (1, 2, 3, 4)]
    names = {"loss", "gan_target", "gan_source", "cycle", "identity", "discriminators"}
    assert set(heard[0].metrics) == names
    picture = heard[-1].picture
    assert picture is not None
    assert (picture.shape, picture.dtype) == ((32, 4 * 32, 3), np.uint8)


def test_a_user_who_has_seen_enough_keeps_what_was_learned() -> None:
    volumes = [noise(2, 32, 32)]
    translator = train_translator(volumes, volumes, TINY, report=stop_at(2, StopAndKeepBest))
    assert (translator.stopped_by, len(translator.history)) == ("user", 2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([], "no target volume"),
        ([np.zeros((3, 32, 32), np.float32)], "blank"),
        ([noise(32, 32)], r"target volume 1 .* \(D, H, W\), got the shape \(32, 32\)"),
        ([noise(1, 32, 32), 300 * noise(1, 32, 32)], r"target volume 2 .* lie in \[0, 1\]"),
        ([np.full((1, 32, 32), np.nan, np.float32)], "target volume 1 .* got nan"),
        (lambda rng: noise(2, 32, 32), r"drawn as 1 slices \(C, H, W\) with neighbours 0, got 2"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_by_name(wrong: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        train_translator([noise(2, 32, 32)], wrong, TINY)


def test_a_training_that_diverges_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(self: CycleGan, *_: Any) -> Tensor:
        return torch.inf * self.judge_target(_[0]).sum()

    monkeypatch.setattr(CycleGan, "discriminator_objective", explode)
    with pytest.raises(InputError, match="diverged at step 1; choose a lower"):
        train_translator([noise(2, 32, 32)], [noise(2, 32, 32)], TINY)


# --------------------------------------------------------------------------------------------------- using a translator


def test_a_translator_comes_back_from_its_file(tmp_path: Path) -> None:
    translator = train_translator([noise(2, 32, 32)], [noise(2, 32, 32, seed=1)], replace(TINY, neighbours=1))
    save_translator(translator, tmp_path / "t.safetensors")
    loaded = load_translator(tmp_path / "t.safetensors")
    volume = noise(11, 30, 41)
    assert loaded.recipe == translator.recipe
    for direction in ("to_target", "to_source"):
        ours, theirs = translator.translate(volume, direction), loaded.translate(volume, direction)  # type: ignore[arg-type]
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(translator.translate(volume), translator.translate(volume, "to_source"))


def test_files_that_hold_no_translator_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "a.safetensors").write_bytes(b"no")
    save_file({"a": noise(2)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="not a readable file"):
        load_translator(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="holds no translation"):
        load_translator(tmp_path / "b.safetensors")


def test_volumes_are_translated_slice_by_slice_in_their_own_shape() -> None:
    translator = train_translator([noise(2, 32, 32)], [noise(2, 32, 32)], replace(TINY, skip=False))
    volume = noise(9, 21, 44)
    whole = translator.translate(volume)
    assert (whole.shape, whole.dtype) == (volume.shape, np.float32)
    assert 0 <= whole.min() <= whole.max() <= 1
    np.testing.assert_allclose(whole[4:5], translator.translate(volume[4:5]), atol=1e-6)


def test_a_translator_that_learned_nothing_returns_the_volume_to_the_pixel() -> None:
    translator = train_translator([noise(2, 32, 32)], [noise(2, 32, 32)], replace(TINY, learning_rate=1e-7, steps=1))
    volume = noise(3, 21, 44)
    np.testing.assert_allclose(translator.translate(volume), volume, atol=1e-4)


def test_translating_can_be_cancelled_between_slices() -> None:
    translator = train_translator([noise(2, 32, 32)], [noise(2, 32, 32)], TINY)
    with pytest.raises(Cancelled):
        translator.translate(noise(20, 32, 32), report=stop_at(8, Cancelled))


# ------------------------------------------------------------------------------------------------------------- the toy


def discs(rng: np.random.Generator, count: int, inside: float, outside: float) -> tuple[Array, Array]:
    """Slices (N, 64, 64) with a disc, and where it is. Large ones: half a pixel of edge must not decide."""
    y, x = np.mgrid[:64, :64]
    centres, radii = rng.uniform(0.4, 0.6, (count, 2, 1, 1)) * 64, rng.uniform(15, 22, (count, 1, 1))
    depth = np.clip(radii - np.hypot(y - centres[:, 0], x - centres[:, 1]) + 0.5, 0, 1)
    image = outside + (inside - outside) * depth + rng.normal(0, 0.02, depth.shape)
    return image.clip(0, 1).astype(np.float32), depth > 0.5


@pytest.mark.slow
def test_discs_of_inverted_contrast_get_the_other_modalitys_grey_and_keep_their_shape() -> None:
    rng = np.random.default_rng(0)
    bright, masks = discs(rng, 40, 0.8, 0.2)
    dark, _ = discs(rng, 60, 0.25, 0.7)
    recipe = TranslationRecipe(
        size_px=64,
        steps=400,
        channels=8,
        blocks=2,
        skip=False,
        judge_channels=8,
        judge_layers=2,
        learning_rate=1e-3,
        identity_weight=0.0,
    )
    translated = train_translator([bright], [dark], recipe).translate(bright)
    found = translated < (0.25 + 0.7) / 2
    assert translated[masks].mean() == pytest.approx(0.25, abs=0.025)
    assert dice(found, masks) > 0.95
