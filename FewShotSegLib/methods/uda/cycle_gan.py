"""Objective of a CycleGAN on slices: two generators, two discriminators, and their loss terms.

Eqs. 1-4 of Zhu et al. 2024 (anatomy space image translation, ASIT), after Zhu et al. 2017. Where the paper cannot be
correct as printed, CycleGAN is followed. The source discriminator judges T_s(X^t), not the reconstruction X^s'. The
identity loss (eq. 3) applies each generator to images of the domain it translates *to*; as printed it penalizes every
translation, and is available as `identity_of="input"`. Generators minimize -log D instead of log(1 - D), whose gradient
vanishes when the discriminator is winning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.data.recipe import check, option

from .generators import Discriminator, Generator


@dataclass(frozen=True)
class TranslationRecipe:
    """Sizes and weights. The paper gives none; defaults are CycleGAN's, `TRANSLATION_PRESETS` has smaller ones."""

    size_px: int = option(256, "Pixels of the square that is learned from; larger slices are cropped", min=32, max=1024)
    neighbours: int = option(0, "Slices on either side that are translated along, as channels", min=0, max=8)
    steps: int = option(20_000, "Optimization steps", min=1, max=1_000_000)
    batch_size: int = option(1, "Slices of each modality per step (CycleGAN: 1)", min=1, max=64)
    channels: int = option(64, "Channels of the generators at full resolution", min=1, max=256, advanced=True)
    blocks: int = option(6, "Residual blocks (CycleGAN: 6 up to 128 pixels, else 9)", min=1, max=16, advanced=True)
    # Edges stay edges. For inverted contrast it must be off, as in CycleGAN: on the way from the identity to the
    # inverse every slice becomes uniformly grey, which the cycle loss penalizes.
    skip: bool = option(
        True, "Add the answer to the slice: learning starts from no change. Off for inverted contrast", advanced=True
    )
    judge_channels: int = option(64, "Channels of the discriminators' first layer", min=1, max=256, advanced=True)
    judge_layers: int = option(
        3,
        "1, 2, 3: discriminators judge patches of 16, 34, 70 pixels; small ones see texture only",
        min=1,
        max=4,
        advanced=True,
    )
    adversarial: Literal["lsgan", "log"] = option("lsgan", "Squares (CycleGAN's code) or logarithms (eq. 1)")
    cycle_weight: float = option(10.0, "Weight of coming back to the same slice, lambda 1", min=0.0, max=1000.0)
    identity_weight: float = option(5.0, "Weight of leaving slices alone, lambda 2", min=0.0, max=1000.0)
    identity_of: Literal["output", "input"] = option(
        "output",
        "Which are left alone: those already in the wanted modality (CycleGAN), or the others (eq. 3)",
        advanced=True,
    )
    learning_rate: float = option(2e-4, "Adam's learning rate", min=1e-7, max=0.1, advanced=True)
    decay_share: float = option(
        0.5, "Share of the steps, at the end, over which the learning rate falls to 0", min=0.0, max=1.0, advanced=True
    )
    pool_size: int = option(50, "Earlier translations that discriminators are reminded of", min=0, advanced=True)
    checkpoint_seconds: float = option(60.0, "Seconds between checkpoints", min=0.0, advanced=True)

    def __post_init__(self) -> None:
        check(self)

    @property
    def stack(self) -> int:
        """Slices per stack, the number of channels of all networks."""
        return 2 * self.neighbours + 1

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a 0-based step: constant, then linear decay to 0 after the last step.

        >>> recipe = TranslationRecipe(steps=100, learning_rate=0.01)
        >>> [recipe.learning_rate_at(step) for step in (0, 50, 75)]
        [0.01, 0.01, 0.005]
        """
        falling = self.steps * self.decay_share
        return self.learning_rate * min(1.0, (self.steps - step) / falling) if falling else self.learning_rate


TRANSLATION_PRESETS = {
    "cpu": TranslationRecipe(size_px=128, steps=1500, channels=16, blocks=4, judge_channels=16, judge_layers=2),
    "gpu": TranslationRecipe(size_px=192, steps=10_000, channels=32),
    "paper": TranslationRecipe(blocks=9),
}


# -------------------------------------------------------------------------------------------------------------- losses


class Objective(NamedTuple):
    """Loss terms of the generators, each summed over both directions except the first two."""

    gan_target: Tensor
    gan_source: Tensor
    cycle: Tensor
    identity: Tensor

    def total(self, recipe: TranslationRecipe) -> Tensor:
        """Eq. 4."""
        weighted = recipe.cycle_weight * self.cycle + recipe.identity_weight * self.identity
        return self.gan_target + self.gan_source + weighted


class Fakes(NamedTuple):
    """Translations of a batch, (B, C, H, W)."""

    target: Tensor
    source: Tensor


def adversarial_loss(logits: Tensor, real: bool, kind: Literal["lsgan", "log"]) -> Tensor:
    """Loss of a discriminator's logits against "real" or "fake": mean of squares, or of -log D, -log(1-D).

    >>> adversarial_loss(torch.tensor([-1.0, 0.5]), True, "lsgan").item()
    2.125
    """
    if kind == "lsgan":
        return ((logits - float(real)) ** 2).mean()
    return F.softplus(-logits if real else logits).mean()  # D = sigmoid(logits)


def discriminator_loss(real: Tensor, fake: Tensor, kind: Literal["lsgan", "log"]) -> Tensor:
    """Loss of a discriminator; with "log" it is eq. 1 times -1/2."""
    return (adversarial_loss(real, True, kind) + adversarial_loss(fake, False, kind)) / 2


class CycleGan(nn.Module):
    """Two generators and two discriminators, with their losses. Batches are (B, C, H, W) in [0, 1]."""

    def __init__(self, recipe: TranslationRecipe, seed: int = 0) -> None:
        """With fresh weights; torch's global random state is left alone."""
        super().__init__()
        self.recipe = recipe
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.to_target, self.to_source = (generator_of(recipe) for _ in range(2))
            self.judge_target, self.judge_source = (
                Discriminator(recipe.stack, recipe.judge_channels, recipe.judge_layers) for _ in range(2)
            )

    @property
    def generators(self) -> list[nn.Parameter]:
        """Parameters of T_t and T_s."""
        return [*self.to_target.parameters(), *self.to_source.parameters()]

    @property
    def discriminators(self) -> list[nn.Parameter]:
        """Parameters of D_t and D_s."""
        return [*self.judge_target.parameters(), *self.judge_source.parameters()]

    def generator_objective(self, source: Tensor, target: Tensor) -> tuple[Objective, Fakes]:
        """The terms of eq. 4; no gradient reaches the discriminators."""
        recipe = self.recipe
        fakes = Fakes(self.to_target(source), self.to_source(target))
        for parameter in self.discriminators:
            parameter.requires_grad_(False)
        try:
            gan_target = adversarial_loss(self.judge_target(fakes.target), True, recipe.adversarial)
            gan_source = adversarial_loss(self.judge_source(fakes.source), True, recipe.adversarial)
        finally:
            for parameter in self.discriminators:
                parameter.requires_grad_(True)
        cycle = F.l1_loss(self.to_source(fakes.target), source) + F.l1_loss(self.to_target(fakes.source), target)
        return Objective(gan_target, gan_source, cycle, self._identity(source, target, fakes)), fakes

    def _identity(self, source: Tensor, target: Tensor, fakes: Fakes) -> Tensor:
        if not self.recipe.identity_weight:
            return source.new_zeros(())
        if self.recipe.identity_of == "input":  # eq. 3 verbatim
            return F.l1_loss(fakes.target, source) + F.l1_loss(fakes.source, target)
        return F.l1_loss(self.to_target(target), target) + F.l1_loss(self.to_source(source), source)

    def discriminator_objective(self, source: Tensor, target: Tensor, fakes: Fakes) -> Tensor:
        """Loss of both discriminators; no gradient reaches the generators."""
        kind = self.recipe.adversarial
        return discriminator_loss(
            self.judge_target(target), self.judge_target(fakes.target.detach()), kind
        ) + discriminator_loss(self.judge_source(source), self.judge_source(fakes.source.detach()), kind)


def generator_of(recipe: TranslationRecipe) -> Generator:
    """A generator with fresh weights."""
    return Generator(recipe.stack, recipe.channels, recipe.blocks, skip=recipe.skip)


class ImagePool:
    """History of translations, against forgetting in the discriminators (Shrivastava et al. 2017)."""

    def __init__(self, size: int, images: Sequence[Tensor] = ()) -> None:
        self.size = size
        self.images = list(images)

    def exchange(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a batch like `images` (B, C, H, W), where each is swapped for an earlier one with probability 1/2.

        Until the pool is full every image is kept and returned.
        """
        return torch.stack([self._exchanged(image, rng) for image in images.detach()])

    def _exchanged(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image)
            return image
        if not self.size or rng.random() < 0.5:
            return image
        at = int(rng.integers(self.size))
        earlier, self.images[at] = self.images[at], image
        return earlier
