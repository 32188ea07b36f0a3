"""Training one 3-D network for all structures at once, on many labelled cases: a small nnU-Net.

Deep supervision with Dice + cross-entropy on patches around structures (Isensee et al. 2021); differences are
described in `patches.PatchRecipe`. Used with many, imperfect labels: translated sources and pseudo-labelled
targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from FewShotSegLib.devices import patch_precision
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.inference.sliding_window import decided, predict
from FewShotSegLib.inference.volume_network import network_arguments
from FewShotSegLib.networks import build
from FewShotSegLib.networks.weights import load_weights, weights_of
from FewShotSegLib.progress import Report, silent
from FewShotSegLib.training.ahead import DrawnByThreads
from FewShotSegLib.training.fit import FitResult, Schedule, fit, step_rng
from FewShotSegLib.training.patches import Case, PatchRecipe, PatchSource


@dataclass(frozen=True)
class ClassRecipe:
    """A training run. The paper: SGD 0.01 with momentum 0.99, poly 0.9, batch 2, 250,000 steps."""

    network: str = "dynunet"
    size: Literal["small", "paper", "large"] = "small"
    steps: int = 300
    batch_size: int = 2
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 3e-5
    patches: PatchRecipe = field(default_factory=PatchRecipe)


def train_classes(
    cases: Sequence[Case],
    weights: Sequence[float],
    grid: Grid,
    names: Iterable[str],
    recipe: ClassRecipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    start: dict[str, NDArray[np.float32]] | None = None,
    report: Report = silent,
    message: str = "training",
    checkpoint: Path | None = None,
    identity: str = "",
) -> tuple[dict[str, NDArray[np.float32]], FitResult]:
    """Train a network with background and one channel per name, in the order of the labels 1, 2, ...; return its
    weights, and how training ended.

    `weights`: sampling weights of the cases. `start`: initial weights.
    """
    from monai.losses import DiceCELoss  # takes seconds; the options of this method are shown without it

    from FewShotSegLib.networks.small import supervised

    names = list(names)
    network = class_network(grid, len(names) + 1, recipe, seed).to(device)
    if start is not None:
        load_weights(network, start)
    network.train()
    share = np.array(weights, dtype=np.float64) / np.sum(weights)
    sources = [PatchSource([case], grid, recipe.patches, names, device) for case in cases]
    loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        """Images and labels (B, 1, D, H, W)."""
        rng = step_rng(seed, step)
        patches = [sources[int(at)].draw(rng) for at in rng.choice(len(sources), recipe.batch_size, p=share)]
        return torch.stack([p.image for p in patches])[:, None], torch.stack([p.mask for p in patches])[:, None]

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        images, truth = drawn(step)
        parts = [weight * loss(part.float(), truth) for weight, part in supervised(network(images))]
        return torch.stack(parts).sum(), {}

    schedule = Schedule(
        recipe.steps,
        recipe.learning_rate,
        recipe.weight_decay,
        warmup_steps=0 if recipe.optimizer == "sgd" else min(20, recipe.steps // 10),
        optimizer=recipe.optimizer,
        clip_norm=12.0 if recipe.optimizer == "sgd" else 1.0,
        checkpoint_seconds=20.0,
    )
    with DrawnByThreads(draw, torch.device(device)) as drawn:
        fitted = fit(
            dict(network.named_parameters()),
            loss_at,
            schedule,
            report=report,
            message=message,
            can_stop=True,
            amp=patch_precision(device),
            checkpoint=checkpoint,
            identity=identity,
        )
    return weights_of(network), fitted


def class_network(grid: Grid, channels: int, recipe: ClassRecipe, seed: int = 0) -> nn.Module:
    """The network, randomly initialized."""
    return build(**network_arguments(grid, recipe.network, recipe.size, channels), seed=seed)


class Prediction(NamedTuple):
    """Labels (D, H, W), and the doubt about them: the mean of 1 - p(label) over the voxels of each structure, averaged
    over structures. A structure that was not found has doubt 1.
    """

    labels: NDArray[np.uint8]
    doubt: float


def predicted(
    weights: dict[str, NDArray[np.float32]],
    image: NDArray[np.float32],
    grid: Grid,
    channels: int,
    recipe: ClassRecipe,
    *,
    device: torch.device | str = "cpu",
    report: Report = silent,
    message: str = "segmenting",
) -> Prediction:
    """The network's prediction for an image (D, H, W) on the grid."""
    network = class_network(grid, channels, recipe)
    load_weights(network, weights)
    logits = predict(
        network.to(device),
        image,
        grid.patch,
        overlap=0.5,
        batch=2,
        device=device,
        amp=patch_precision(device),
        report=report,
        message=message,
    )
    labels = decided(logits)
    return Prediction(labels, float(np.mean([_doubt(logits[:, labels == label]) for label in range(1, channels)])))


def _doubt(logits: NDArray[np.float32]) -> float:
    """The mean of 1 - p of the highest of the logits (C, N); 1 without voxels.

    Averaged by structure, since among all voxels those of the largest one would outvote the others.
    """
    if not logits.size:
        return 1.0
    odds = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    return float(np.mean(1 - 1 / odds.sum(axis=0)))
