"""Pre-trains the compact model from scratch on random scenes: `python -m FewShotSegLib.pretraining.train --out FILE`.

User interaction is simulated: an initial click or box, then corrections where the mask is wrong, each with the previous
mask as a mask prompt (Kirillov et al. 2023, appendix A). Most of the time is spent at 128 px, where a step costs a
third, and the first part on a shallower encoder; the last part fine-tunes at a larger size. The command runs all of it,
about two hours on two CPU cores. If interrupted, the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from FewShotSegLib.io.files import written_whole
from FewShotSegLib.pretraining.tasks import draw_task
from FewShotSegLib.progress import Progress, Report
from FewShotSegLib.sam.clicks import corrected
from FewShotSegLib.sam.compact import CompactArchitecture, build_compact, set_image_size
from FewShotSegLib.sam.loading import write_model
from FewShotSegLib.sam.network import Embedding, PromptableNetwork, PromptBatch
from FewShotSegLib.training.ahead import drawn_ahead
from FewShotSegLib.training.checkpoint import read_checkpoint
from FewShotSegLib.training.fit import Schedule, fit
from FewShotSegLib.training.losses import focal_loss, soft_dice_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage of pre-training: image size, number of encoder blocks (None: as shipped), steps."""

    image_size: int
    images: int  # per step
    prompts: int  # per image
    learning_rate: float
    steps: int
    depth: int | None = None
    warmup_steps: int = 200


# At 160 px the clicks of a model trained at 128 px were most accurate overall; see its card.
SHIPPED = CompactArchitecture(depth=10, working_size=160)

# Small images first: a step costs a third, and what a click means is independent of the size. Few blocks first: a
# shallow encoder converges sooner, and added blocks are initialized as the identity. The numbers of steps on a CPU are
# those of the shipped file; those on a GPU are a guess at 25 minutes, as none was available.
STAGES = {
    "cpu": (
        Stage(image_size=128, images=8, prompts=6, learning_rate=1e-3, steps=3460, depth=6),
        Stage(image_size=128, images=8, prompts=6, learning_rate=6e-4, steps=3450),
        Stage(image_size=192, images=4, prompts=6, learning_rate=2.4e-4, steps=1460),
    ),
    "cuda": (
        Stage(image_size=128, images=96, prompts=8, learning_rate=2e-3, steps=6000),
        Stage(image_size=256, images=32, prompts=8, learning_rate=8e-4, steps=4000),
    ),
}
ROUNDS = (0.3, 0.25, 0.2, 0.15, 0.1)  # fractions of tasks with 1, 2, ... successive prompts


@dataclass(frozen=True)
class Drawing:
    """Step index -> the tensors of its tasks. Drawn from (seed, stage, step), so independent of the process.

    With a cache, a step that was generated once is read from disk, by a resumed run or one with other settings.
    """

    stage: Stage
    seed: int
    number: int = 0
    cache: Path | None = None

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        if self.cache is None:
            return self._draw(step)
        s = self.stage
        path = self.cache / f"{s.image_size}px-{s.images}x{s.prompts}-seed{self.seed}-{self.number}" / f"{step:06d}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as part:
                torch.save(self._draw(step), part)
        images, targets, coords, labels = torch.load(path, weights_only=True)
        return images, targets, coords, labels

    def _draw(self, step: int) -> tuple[Tensor, ...]:
        """images (B, S, S), targets (B, P, S/2, S/2), coords (B, P, 3, 2), labels (B, P, 3)."""
        rng = np.random.default_rng([self.seed, self.number, self.stage.image_size, step])
        tasks = [draw_task(rng, self.stage.image_size, self.stage.prompts) for _ in range(self.stage.images)]
        fields = ("image", "targets", "coords", "labels")
        return tuple(torch.from_numpy(np.stack([getattr(t, name) for t in tasks])) for name in fields)


def prompted_loss(
    network: PromptableNetwork, batch: tuple[Tensor, ...], rng: np.random.Generator, rounds: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of `corrected_loss` on a batch of tasks."""
    images, targets, coords, labels = batch
    prompts = PromptBatch(coords.flatten(0, 1), labels.flatten(0, 1))
    return corrected_loss(
        network, network.encode(network.normalize(images)), prompts, targets.flatten(0, 1), rng, rounds
    )


def corrected_loss(
    network: PromptableNetwork,
    embedding: Embedding,
    prompts: PromptBatch,
    target: Tensor,
    rng: np.random.Generator,
    rounds: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of an initial prompt on targets (N, h, w) plus the loss after `rounds` - 1 corrections.

    The masks in between are computed without gradients: they cost a third and only serve to produce the kinds of errors
    that users correct.
    """
    losses, metrics = [], dict[str, Tensor]()
    for turn in range(1, rounds + 1):
        learns = turn in (1, rounds)
        with torch.set_grad_enabled(learns):
            logits, iou = network.decode(embedding, prompts)
            if logits.shape[-2:] != target.shape[-2:]:
                logits, iou = F.interpolate(logits.float(), target.shape[-2:], mode="bilinear"), iou.float()
        if learns:
            loss, metrics[f"dice{turn}"] = _mask_loss(logits, iou, target, first=turn == 1)
            losses.append(loss)
        if turn < rounds:
            prompts = corrected(prompts, logits[:, 0].detach(), target, network, rng, central=0.5)
    return torch.stack(losses).mean(), metrics


def _mask_loss(logits: Tensor, iou: Tensor, target: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
    """Focal and Dice loss of logits (N, M, h, w) and MSE of their IoU; also the mean Dice of mask 0, which is the
    output for every prompt. Masks 1.. are for the ambiguous first prompt: only the best of them gets a loss.
    """
    expanded = target[:, None].expand_as(logits)
    per_mask = 10 * focal_loss(logits, expanded) + soft_dice_loss(torch.sigmoid(logits), expanded)
    loss = per_mask[:, 0].mean()
    if first:
        loss = loss + 0.3 * per_mask[:, 1:].min(1).values.mean()
    with torch.no_grad():
        hard, truth = logits > 0, expanded > 0.5
        true_iou = (hard & truth).sum((-2, -1)) / (hard | truth).sum((-2, -1)).clamp(min=1)
        dice = (2 * true_iou[:, 0] / (1 + true_iou[:, 0])).mean()
    return loss + torch.mean((iou - true_iou) ** 2), dice


def train(
    stages: Sequence[Stage],
    out: Path,
    *,
    seed: int,
    workers: int,
    device: str,
    cache: Path | None = None,
) -> PromptableNetwork:
    """Runs the stages in order; each resumes from its checkpoint beside `out`, which is written after every stage."""
    torch.manual_seed(seed)
    architecture = replace(SHIPPED, depth=stages[0].depth or SHIPPED.depth)
    network = build_compact(architecture).to(device)
    for number, stage in enumerate(stages):
        depth = stage.depth or SHIPPED.depth
        if depth != architecture.depth:
            architecture = replace(SHIPPED, depth=depth)
            network = deepened(network, architecture).to(device)
        set_image_size(network, stage.image_size)
        _run(network, stage, number, out.with_name(f"{out.stem}-stage{number}.ckpt"), seed, workers, cache)
        write_model(network, out, architecture.to_dict())
    return network


def _run(
    network: PromptableNetwork,
    stage: Stage,
    number: int,
    checkpoint: Path,
    seed: int,
    workers: int,
    cache: Path | None,
) -> None:
    """Train one stage; afterwards the network has the averaged (EMA) weights."""
    parameters = dict(network.named_parameters())
    frozen = {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"}
    schedule = Schedule(
        stage.steps,
        stage.learning_rate,
        weight_decay=0.02,
        warmup_steps=stage.warmup_steps,
        power=1.0,
        ema_decay=0.998,
        checkpoint_seconds=180,
    )
    identity = f"pretraining {seed} {number} {stage}"
    first = steps_done(checkpoint, identity)
    drawing = Drawing(stage, seed, number, cache)
    batches = drawn_ahead(drawing, first, stage.steps, workers=workers, device=network.device)

    def loss_at(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng([seed, 1, step])
        return prompted_loss(network, next(batches), rng, rounds=1 + int(rng.choice(len(ROUNDS), p=ROUNDS)))

    result = fit(
        {k: v for k, v in parameters.items() if k not in frozen},
        loss_at,
        schedule,
        report=logged(f"stage {number}"),
        checkpoint=checkpoint,
        identity=identity,
        amp=torch.bfloat16,
    )
    with torch.no_grad():
        for name, value in result.best.items():
            parameters[name].copy_(value)


def deepened(network: PromptableNetwork, architecture: CompactArchitecture) -> PromptableNetwork:
    """The same network with more blocks, initialized as the identity, so its output is unchanged."""
    deeper = build_compact(architecture)
    tensors = network.state_dict()
    new = set(deeper.state_dict()) - set(tensors)
    deeper.load_state_dict({**deeper.state_dict(), **tensors})
    with torch.no_grad():
        for name, parameter in deeper.named_parameters():
            if name in new and (".attn.proj." in name or ".mlp.lin2." in name):
                parameter.zero_()
    return deeper


def steps_done(checkpoint: Path, identity: str) -> int:
    """The number of completed steps in a checkpoint of this run."""
    return int(read_checkpoint(checkpoint, identity)["counters"][2]) if checkpoint.exists() else 0


def logged(stage: str) -> Report:
    """A progress callback that logs means over 50 steps."""
    recent: dict[str, list[float]] = {}

    def report(progress: Progress) -> None:
        for key, value in progress.metrics.items():
            recent.setdefault(key, []).append(value)
        if progress.step % 50 == 0:
            line = {k: round(float(np.mean(v)), 4) for k, v in recent.items()}
            logger.info("%s step %d %s", stage, progress.step, json.dumps(line))
            recent.clear()

    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw tasks")
    parser.add_argument("--cache", type=Path, help="folder that keeps the drawn tasks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    train(
        STAGES[torch.device(arguments.device).type],
        arguments.out,
        seed=arguments.seed,
        workers=arguments.workers,
        device=arguments.device,
        cache=arguments.cache,
    )


if __name__ == "__main__":
    main()
