"""Translation between modalities: the losses by hand, who learns when, resuming, the toy, and the gate after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude
from torch import Tensor, nn

from FewShotSegLib.data.recipe import from_dict, to_dict
from FewShotSegLib.errors import Cancelled, InputError, StopAndKeepBest
from FewShotSegLib.methods.uda.cycle_gan import (
    TRANSLATION_PRESETS,
    CycleGan,
    ImagePool,
    TranslationRecipe,
    adversarial_loss,
    discriminator_loss,
)
from FewShotSegLib.methods.uda.drift import _similarity, drift_picture, edge_consistency
from FewShotSegLib.methods.uda.generators import Discriminator, Generator
from FewShotSegLib.methods.uda.translation import load_translator, save_translator, train_translator
from FewShotSegLib.progress import Progress

Array = NDArray[Any]

TINY = TranslationRecipe(
    size_px=32,
    steps=4,
    channels=2,
    blocks=1,
    skip=True,
    judge_channels=2,
    judge_layers=1,
    pool_size=2,
    checkpoint_seconds=0.0,
)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def a_batch(seed: int, stack: int = 1) -> Tensor:
    return torch.from_numpy(noise(2, stack, 32, 32, seed=seed))


def copies(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def unchanged(parameters: list[nn.Parameter], before: list[Tensor]) -> bool:
    return all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))


def at_random(network: CycleGan) -> CycleGan:
    """Generators whose last layer does something, unlike in the beginning."""
    with torch.no_grad():
        for generator in (network.to_target, network.to_source):
            generator.head.weight.copy_(
                torch.linspace(-0.3, 0.3, generator.head.weight.numel()).view_as(generator.head.weight)
            )
    return network


# ---------------------------------------------------------------------------------------------------------- the losses


def test_squares_of_minus_one_and_a_half() -> None:
    logits = torch.tensor([-1.0, 0.5])
    assert adversarial_loss(logits, True, "lsgan").item() == pytest.approx((2**2 + 0.5**2) / 2)  # 2.125
    assert adversarial_loss(logits, False, "lsgan").item() == pytest.approx((1 + 0.25) / 2)
    assert discriminator_loss(logits, logits + 1, "lsgan").item() == pytest.approx((2.125 + (0 + 2.25) / 2) / 2)


def test_the_log_loss_of_a_discriminator_is_half_of_eq_1_with_the_sign_turned() -> None:
    real, fake = torch.tensor([2.0, -0.3]), torch.tensor([0.7, -1.5])
    eq_1 = torch.log(torch.sigmoid(real)).mean() + torch.log(1 - torch.sigmoid(fake)).mean()
    assert discriminator_loss(real, fake, "log").item() == pytest.approx(-eq_1.item() / 2)
    assert adversarial_loss(fake, True, "log").item() == pytest.approx(-torch.log(torch.sigmoid(fake)).mean().item())


def test_the_log_loss_is_finite_for_a_discriminator_that_is_sure() -> None:
    assert adversarial_loss(torch.tensor([-200.0]), True, "log").item() == pytest.approx(200.0)


def test_generators_that_change_nothing_lose_nothing_but_to_the_discriminators() -> None:
    objective, fakes = CycleGan(TINY).generator_objective(a_batch(1), a_batch(2))
    assert (objective.cycle.item(), objective.identity.item()) == (0.0, 0.0)
    assert torch.equal(fakes.target, a_batch(1))
    assert torch.equal(fakes.source, a_batch(2))
    assert objective.total(TINY).item() == pytest.approx((objective.gan_target + objective.gan_source).item())


@pytest.mark.parametrize("kind", ["lsgan", "log"])
def test_the_terms_add_up_to_eq_4(kind: Any) -> None:
    recipe = replace(TINY, adversarial=kind, cycle_weight=7.0, identity_weight=3.0)
    networks = at_random(CycleGan(recipe))
    source, target = a_batch(1), a_batch(2)
    objective, _ = networks.generator_objective(source, target)
    there, back = networks.to_target, networks.to_source
    gan_t = adversarial_loss(networks.judge_target(there(source)), True, kind)
    gan_s = adversarial_loss(networks.judge_source(back(target)), True, kind)
    cycle = (back(there(source)) - source).abs().mean() + (there(back(target)) - target).abs().mean()
    same = (there(target) - target).abs().mean() + (back(source) - source).abs().mean()
    assert cycle.item() > 0.01
    assert objective.total(recipe).item() == pytest.approx((gan_s + gan_t + 7 * cycle + 3 * same).item(), rel=1e-5)


def test_the_identity_loss_as_printed_punishes_the_translation_itself() -> None:
    networks = at_random(CycleGan(replace(TINY, identity_of="input")))
    source, target = a_batch(1), a_batch(2)
    objective, fakes = networks.generator_objective(source, target)
    printed = (fakes.target - source).abs().mean() + (fakes.source - target).abs().mean()
    assert objective.identity.item() == pytest.approx(printed.item())


def test_learning_to_generate_leaves_the_discriminators_alone_and_the_other_way_round() -> None:
    networks = at_random(CycleGan(TINY))
    optimizer = torch.optim.SGD(networks.parameters(), lr=0.1)
    source, target = a_batch(1), a_batch(2)

    generators, discriminators = copies(networks.generators), copies(networks.discriminators)
    objective, fakes = networks.generator_objective(source, target)
    objective.total(TINY).backward()
    assert all(parameter.grad is None for parameter in networks.discriminators)
    optimizer.step()
    assert unchanged(networks.discriminators, discriminators)
    assert not unchanged(networks.generators, generators)

    optimizer.zero_grad()
    generators = copies(networks.generators)
    networks.discriminator_objective(source, target, fakes).backward()
    assert all(parameter.grad is None for parameter in networks.generators)
    optimizer.step()
    assert unchanged(networks.generators, generators)
    assert not unchanged(networks.discriminators, discriminators)


# -------------------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_generators_answer_in_the_shape_they_were_given(size: tuple[int, int], skip: bool) -> None:
    answer = Generator(3, 2, 1, skip=skip)(torch.rand(2, 3, *size))
    assert answer.shape == (2, 3, *size)
    if not skip:
        assert 0 <= answer.min() <= answer.max() <= 1


@pytest.mark.parametrize(("layers", "patch_px"), [(1, 16), (2, 34), (3, 70)])
def test_discriminators_judge_patches_of_the_size_they_say(layers: int, patch_px: int) -> None:
    judge = Discriminator(1, 2, layers)
    for layer in judge.modules():
        if isinstance(layer, nn.InstanceNorm2d):  # it sees the whole image
            layer.forward = lambda features: features  # type: ignore[method-assign]
    images = torch.rand(1, 1, 128, 128, requires_grad=True)
    logits = judge(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert images.grad is not None
    rows = images.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == patch_px


def test_the_discriminators_last_word_is_a_logit_of_either_sign() -> None:
    judge = Discriminator(1, 4, 1)
    logits = judge(torch.rand(4, 1, 32, 32))
    assert logits.shape == (4, 1, 14, 14)
    assert logits.min() < 0 < logits.max()


def test_the_same_seed_gives_the_same_networks_and_the_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, other = CycleGan(TINY, 3), CycleGan(TINY, 3), CycleGan(TINY, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert unchanged(list(first.parameters()), copies(list(second.parameters())))
    assert not unchanged(list(first.parameters()), copies(list(other.parameters())))


# ------------------------------------------------------------------------------------------------------------ the pool


def test_a_pool_returns_what_it_gets_until_it_is_full_and_then_earlier_images_half_of_the_time() -> None:
    pool, rng = ImagePool(3), np.random.default_rng(0)
    images = [torch.full((1, 1, 2, 2), float(n)) for n in range(203)]
    returned = [pool.exchange(image, rng)[0, 0, 0, 0].item() for image in images]
    assert returned[:3] == [0, 1, 2]
    earlier = [n for n, value in enumerate(returned) if value != n]
    assert all(returned[n] < n for n in earlier)
    assert 70 < len(earlier) < 130
    assert len(pool.images) == 3


def test_a_pool_of_none_changes_nothing() -> None:
    pool, image = ImagePool(0), torch.ones(1, 1, 2, 2)
    assert all(torch.equal(pool.exchange(image, np.random.default_rng(n)), image) for n in range(5))


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
    with pytest.raises(InputError, match="belongs to another run"):
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


def test_the_rate_is_constant_and_then_falls_to_nothing() -> None:
    recipe = TranslationRecipe(steps=200, learning_rate=2e-4, decay_share=0.5)
    assert [recipe.learning_rate_at(step) for step in (0, 99, 100)] == [2e-4] * 3
    assert recipe.learning_rate_at(150) == pytest.approx(1e-4)
    assert recipe.learning_rate_at(199) == pytest.approx(2e-6)
    assert replace(recipe, decay_share=0.0).learning_rate_at(199) == 2e-4


def test_recipes_survive_json_and_every_preset_is_allowed() -> None:
    assert all(from_dict(TranslationRecipe, to_dict(recipe)) == recipe for recipe in TRANSLATION_PRESETS.values())


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
    assert 2 * np.count_nonzero(found & masks) / (np.count_nonzero(found) + np.count_nonzero(masks)) > 0.95


# ------------------------------------------------------------------------------------------------------------ the gate


def organs(seed: int = 0, shift: tuple[int, int] = (0, 0), leave_out: int | None = None) -> Array:
    """Smooth blobs of different grey, (4, 64, 64) in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    image = np.zeros((4, 64, 64))
    for n in range(6):
        centre, radius, grey = rng.uniform(14, 50, 2), rng.uniform(6, 12), rng.uniform(0.3, 1)
        if n != leave_out:
            image[:, np.hypot(y - centre[0] - shift[0], x - centre[1] - shift[1]) < radius] = grey
    return gaussian_filter(image, (0, 1, 1))


def edges(image: Array) -> Array:
    strength = np.stack([gaussian_gradient_magnitude(piece, 1.0) for piece in image])
    return np.asarray(strength / np.percentile(strength, 99.5)).clip(0, 1)


@pytest.mark.parametrize("measure", ["ncc", "ssim"])
def test_the_gate_keeps_another_contrast_and_rejects_moved_anatomy(measure: Any) -> None:
    before = edges(organs())
    rng = np.random.default_rng(1)
    contrast = edges(np.clip(1 - organs() ** 0.7 + rng.normal(0, 0.01, (4, 64, 64)), 0, 1))
    moved, other = edges(organs(shift=(5, -4))), edges(organs(seed=9))
    good = edge_consistency(before, contrast, measure=measure)
    drifted = [edge_consistency(before, after, measure=measure) for after in (moved, other)]
    assert good.accepted
    assert good.reason == ""
    assert not any(found.accepted for found in drifted)
    assert "drifted" in drifted[0].reason
    assert good.score > 0.3 + max(found.score for found in drifted)


@pytest.mark.parametrize("measure", ["ncc", "ssim"])
def test_the_same_edges_score_one_and_none_at_all_score_nothing(measure: Any) -> None:
    before = edges(organs())
    assert edge_consistency(before, before, measure=measure).score == pytest.approx(1.0)
    wiped = edge_consistency(before, np.zeros_like(before), measure=measure)
    assert not wiped.accepted
    assert wiped.score < 0.2


def test_stronger_and_weaker_edges_correlate_all_the_same() -> None:
    before = edges(organs())
    assert edge_consistency(before, 0.5 * before).score == pytest.approx(1.0, abs=1e-9)


def test_the_slice_that_drifted_is_named_and_empty_ones_do_not_count() -> None:
    before = edges(organs())
    after = before.copy()
    after[2] = np.roll(after[2], 6, axis=0)
    before[0] = after[0] = 0
    found = edge_consistency(before, after)
    assert found.slices[0] is None
    assert found.worst_slice == 2
    assert found.slices[2] is not None
    assert found.score == pytest.approx((1 + 1 + found.slices[2]) / 3)


def test_a_volume_without_any_edge_is_not_accepted() -> None:
    nothing = edge_consistency(np.zeros((2, 8, 8)), np.zeros((2, 8, 8)))
    assert (nothing.score, nothing.accepted, nothing.worst_slice) == (0.0, False, None)


def test_ssim_agrees_with_its_definition_in_one_window() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((1, 33, 33)), rng.random((1, 33, 33))
    weights = gaussian_filter(np.pad([[1.0]], 16), 1.5)
    mean = lambda image: float((weights * image[0]).sum())  # noqa: E731
    va, vb, cov = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2, mean(a * b) - mean(a) * mean(b)
    ssim = (2 * mean(a) * mean(b) + 1e-4) / (mean(a) ** 2 + mean(b) ** 2 + 1e-4) * (2 * cov + 9e-4) / (va + vb + 9e-4)
    only_middle = np.zeros((1, 33, 33))
    only_middle[0, 16, 16] = 1
    assert _similarity(a[0], b[0], only_middle[0] > 0) == pytest.approx(ssim, rel=1e-9)


def test_arrays_that_do_not_match_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        edge_consistency(noise(2, 8, 8), noise(3, 8, 8))
    with pytest.raises(InputError, match='"ncc" or "ssim"'):
        edge_consistency(noise(2, 8, 8), noise(2, 8, 8), measure="mse")  # type: ignore[arg-type]


def test_the_picture_shows_lost_edges_red_new_ones_cyan_and_common_ones_white() -> None:
    grey, before, after = np.full((4, 5), 0.5), np.zeros((4, 5)), np.zeros((4, 5))
    before[0], after[1] = 1, 1
    before[2] = after[2] = 1
    picture = drift_picture(grey, 2 * grey, before, after)
    assert picture.shape == (4, 15, 3)
    assert picture[0, 0].tolist() == [128] * 3
    assert picture[0, 5].tolist() == [255] * 3
    assert picture[:4, 12].tolist() == [[255, 0, 0], [0, 255, 255], [255, 255, 255], [0, 0, 0]]
