"""Trains LiteMedSAM to use clicks, on random scenes: `python -m FewShotSegLib.pretraining.clicks --out FILE`.

First the decoder alone is trained on clicks; then all weights are trained on the scenes; then the encoder is set to the
average of the official and the trained weights and frozen, while the decoder is trained on corrections: up to eight
rounds of corrective clicks, each with the previous mask as a mask prompt (Kirillov et al. 2023, appendix A). A fraction
of the scenes has the resolution of an upsampled small image. Last, all weights are trained on corrections, with a
penalty on the change of the encoder's features; then the encoder is restored, since it has forgotten some of its
knowledge of real images, and the decoder is kept as trained alongside it. If interrupted, the same command resumes. The
last three parts took ten minutes on one H200 and 16 CPU cores that generate its scenes.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from FewShotSegLib.errors import InputError
from FewShotSegLib.pretraining.tasks import draw_task
from FewShotSegLib.pretraining.train import corrected_loss, logged, steps_done
from FewShotSegLib.sam.loading import load_base, write_model
from FewShotSegLib.sam.network import PromptableNetwork, PromptBatch
from FewShotSegLib.training.ahead import drawn_ahead
from FewShotSegLib.training.fit import Schedule, fit, step_rng

START = "litemedsam"
PADDING_POINTS = 2  # of the initial prompt, as scenes are generated with
SMALLEST_SHOWN = 3  # pixels of a target at low resolution
CHECKPOINT_SECONDS = 180.0
LOW_RESOLUTIONS = (28, 80)  # pixels per side


@dataclass(frozen=True)
class Part:
    """One part of the training.

    `encoder`: whether the image encoder is trained too; `mean_encoder`: it is first averaged with the official one.
    `held`: weight of the penalty on feature changes relative to the encoder at the start of the part, as a fraction of
    their squared norm. `rounds`: fractions of batches with 1, 2, ... successive prompts. `low_resolution`: fraction of
    the scenes that are generated small and upsampled. `put_back`: restore the encoder afterwards to what it was before
    it was last trained. `seconds`: time limit of the part.
    """

    steps: int
    scenes: int
    learning_rate: float
    encoder: bool
    rounds: tuple[float, ...]
    low_resolution: float = 0.0
    mean_encoder: bool = False
    held: float = 0.0
    put_back: bool = False
    prompts: int = 8
    seconds: float | None = None


FEW, MANY = (0.3, 0.25, 0.2, 0.15, 0.1), (0.12, 0.14, 0.16, 0.16, 0.14, 0.12, 0.1, 0.06)
PARTS = (
    Part(183, 16, 3e-4, False, FEW),
    Part(225, 16, 5e-5, True, FEW),
    Part(875, 2, 2e-4, False, MANY, low_resolution=0.25, mean_encoder=True),
    Part(1200, 16, 2e-4, False, MANY, low_resolution=0.35),
    Part(700, 16, 1e-4, True, MANY, low_resolution=0.35, held=2.0),
    Part(650, 16, 1e-4, True, MANY, low_resolution=0.5, held=2.0, put_back=True),
)


@dataclass(frozen=True)
class Running:
    """Settings of a training run: seed, device, worker processes that generate scenes, the first part."""

    seed: int = 0
    device: str = "cpu"
    workers: int = 0
    first_part: int = 0


def teach(start: PromptableNetwork, parts: Sequence[Part], out: Path, running: Running) -> PromptableNetwork:
    """Train all parts; the network is also in the file `out`, which is written after every part."""
    network = start.to(running.device).requires_grad_(False)
    network.padding_points = PADDING_POINTS
    official = {name: value.detach().clone() for name, value in network.image_encoder.state_dict().items()}
    settled = official  # the encoder before it was last trained
    for number in range(running.first_part, len(parts)):
        part = parts[number]
        if part.mean_encoder:
            _mix(network.image_encoder, official)
        _run(network, part, number, out.with_name(f"{out.stem}-part{number}.ckpt"), running)
        if part.put_back:
            network.image_encoder.load_state_dict(settled)
        if part.put_back or not part.encoder:
            settled = {name: value.detach().clone() for name, value in network.image_encoder.state_dict().items()}
        write_model(network, out, {"kind": "tiny_vit", "padding_points": PADDING_POINTS})
    return network


def _mix(encoder: torch.nn.Module, official: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in encoder.state_dict().items():
            if value.is_floating_point():
                value.copy_((value + official[name]) / 2)


def _run(network: PromptableNetwork, part: Part, number: int, checkpoint: Path, running: Running) -> None:
    fixed = "prompt_encoder.pe_layer."
    parameters = {
        name: parameter
        for name, parameter in network.named_parameters()
        if not name.startswith(fixed) and (part.encoder or not name.startswith("image_encoder."))
    }
    before = copy.deepcopy(network.image_encoder) if part.held else None
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    schedule = Schedule(
        part.steps,
        part.learning_rate,
        weight_decay=0.01,
        warmup_steps=min(50, part.steps // 4),
        max_seconds=part.seconds,
        ema_decay=0.998,
        checkpoint_seconds=CHECKPOINT_SECONDS,
    )
    seed = running.seed + number
    identity = f"clicks {running.seed} {number} {part}"
    draw = functools.partial(scenes, part, network.image_size, seed)
    first = steps_done(checkpoint, identity)
    batches = drawn_ahead(draw, first, part.steps, workers=running.workers, device=network.device)
    result = fit(
        parameters,
        lambda step: part_loss(network, part, next(batches), np.random.default_rng([seed, 1, step]), before),
        schedule,
        report=logged(f"part {number}"),
        checkpoint=checkpoint,
        identity=identity,
        amp=torch.bfloat16,
    )
    with torch.no_grad():
        for name, value in result.best.items():
            parameters[name].copy_(value).requires_grad_(False)


def scenes(part: Part, size: int, seed: int, step: int) -> tuple[Tensor, ...]:
    """The scenes of a step: images (B, S, S) in [0, 1], targets (B, P, S/2, S/2), and the coords (B, P, 3, 2) and
    labels (B, P, 3) of their first prompts.
    """
    rng = step_rng(seed, step)
    tasks = [draw_task(rng, size, part.prompts) for _ in range(part.scenes)]
    images = np.stack([_looked_at(task.image, rng) for task in tasks])
    targets = np.stack([task.targets for task in tasks])
    for scene in range(part.scenes):
        if rng.random() < part.low_resolution:
            images[scene], targets[scene] = enlarged(images[scene], targets[scene], int(rng.integers(*LOW_RESOLUTIONS)))
    points = (np.stack([getattr(task, name) for task in tasks]) for name in ("coords", "labels"))
    return tuple(torch.from_numpy(array) for array in (images, targets, *points))


def part_loss(
    network: PromptableNetwork,
    part: Part,
    batch: tuple[Tensor, ...],
    rng: np.random.Generator,
    before: torch.nn.Module | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the first and of the last of several rounds of prompts on a batch of `scenes`. `before`: the encoder
    whose features are the reference of the penalty.
    """
    images, targets, coords, labels = batch
    images = network.normalize(images, "unit")
    with torch.set_grad_enabled(part.encoder):
        embedding = network.encode(images)
    prompts = PromptBatch(coords.flatten(0, 1), labels.flatten(0, 1))
    rounds = 1 + int(rng.choice(len(part.rounds), p=np.array(part.rounds) / sum(part.rounds)))
    loss, metrics = corrected_loss(network, embedding, prompts, targets.flatten(0, 1), rng, rounds)
    if before is None:
        return loss, metrics
    with torch.no_grad():
        known = before(images).float()
    moved = (embedding.features.float() - known).square().mean() / known.square().mean()
    return loss + part.held * moved, {**metrics, "moved": moved.detach()}


def _looked_at(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Augmentation by window, gamma and occasional inversion, as scanners and displays differ."""
    if rng.random() < 0.5:
        width = rng.uniform(0.4, 1)
        image = image * np.float32(width) + np.float32(rng.uniform(0, 1 - width))
    if rng.random() < 0.5:
        image = image ** np.float32(rng.uniform(0.6, 1.6))
    return 1 - image if rng.random() < 0.3 else image


def enlarged(
    image: NDArray[np.float32], targets: NDArray[np.float32], side: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A scene (S, S) with targets (P, h, w) as if generated with `side` pixels per side and upsampled; unchanged where
    a target would nearly vanish.
    """
    masks = torch.from_numpy(targets)[:, None]
    small = (F.interpolate(masks, (side, side), mode="area") >= 0.5).float()
    if small.flatten(1).sum(1).min() < SMALLEST_SHOWN:
        return image, targets
    low = F.interpolate(torch.from_numpy(image)[None, None], (side, side), mode="area")
    shown = F.interpolate(low, image.shape, mode="bilinear")[0, 0].numpy()
    return shown, F.interpolate(small, targets.shape[-2:], mode="nearest-exact")[:, 0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", default=START, help="base model to start from, by name or file (litemedsam)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first-part", type=int, default=0, help="to begin with, where START was taught those before")
    parser.add_argument("--parts", type=int, default=len(PARTS), help="to end before")
    parser.add_argument("--seconds", type=float, help="of each part at most")
    parser.add_argument(
        "--workers", type=int, help="processes that draw scenes; default: on a GPU all cores but one, else 1"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    parts = [replace(part, seconds=arguments.seconds) for part in PARTS[: arguments.parts]]
    # One process cannot keep a GPU busy.
    workers = arguments.workers or (max((os.cpu_count() or 1) - 1, 1) if arguments.device.startswith("cuda") else 1)
    running = Running(arguments.seed, arguments.device, workers, arguments.first_part)
    try:
        teach(load_base(arguments.start), parts, arguments.out, running)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
