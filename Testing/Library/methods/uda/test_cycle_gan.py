"""The losses of translation by hand, who learns when, and the pool of earlier images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from FewShotSegLib.data.recipe import from_dict, to_dict
from FewShotSegLib.methods.uda.cycle_gan import (
    TRANSLATION_PRESETS,
    CycleGan,
    ImagePool,
    TranslationRecipe,
    adversarial_loss,
    discriminator_loss,
)
from Testing.Library.methods.uda.toys import TINY, noise


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


def test_the_rate_is_constant_and_then_falls_to_nothing() -> None:
    recipe = TranslationRecipe(steps=200, learning_rate=2e-4, decay_share=0.5)
    assert [recipe.learning_rate_at(step) for step in (0, 99, 100)] == [2e-4] * 3
    assert recipe.learning_rate_at(150) == pytest.approx(1e-4)
    assert recipe.learning_rate_at(199) == pytest.approx(2e-6)
    assert replace(recipe, decay_share=0.0).learning_rate_at(199) == 2e-4


def test_recipes_survive_json_and_every_preset_is_allowed() -> None:
    assert all(from_dict(TranslationRecipe, to_dict(recipe)) == recipe for recipe in TRANSLATION_PRESETS.values())
