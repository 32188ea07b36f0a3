"""Pre-trains the compact model from scratch on random scenes: `python -m FewShotSegLib.pretraining.train --out FILE`.

Clicks are simulated as a person gives them: a first click or box, then corrections where the mask is wrong, each
with the
previous mask as a further prompt (Kirillov et al. 2023, appendix A). Most of the time is spent at 128 px, where a
step costs a quarter; the last part at full size sharpens what was learned.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from FewShotSegLib.files import written_whole
from FewShotSegLib.losses import focal_loss, soft_dice_loss
from FewShotSegLib.pretraining.tasks import draw_task
from FewShotSegLib.progress import Progress
from FewShotSegLib.sam.clicks import corrected
from FewShotSegLib.sam.compact import CompactArchitecture, build_compact, set_image_size
from FewShotSegLib.sam.network import PromptableNetwork, PromptBatch
from FewShotSegLib.training import Schedule, fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One part of pre-training at one image size."""

    image_size: int
    images: int  # per step
    prompts: int  # per image
    steps: int
    learning_rate: float
    warmup_steps: int = 100
    max_seconds: float | None = None


# 160 px is where the clicks of a model trained at 128 px were found most accurate on the whole; see its card.
SHIPPED = CompactArchitecture(working_size=160)

# Small images first: a step costs a quarter, and what a click means does not depend on the size.
STAGES = (
    Stage(image_size=128, images=8, prompts=6, steps=100_000, learning_rate=1e-3, warmup_steps=200),
    Stage(image_size=256, images=4, prompts=6, steps=100_000, learning_rate=4e-4, warmup_steps=50),
)
SHARES = {128: 0.62, 256: 0.38}  # of the time


class _Steps(Dataset[tuple[Tensor, ...]]):
    """Step number -> the tensors of its tasks. Drawn from (seed, size, step), so any process makes the same ones."""

    def __init__(self, stage: Stage, seed: int, first: int = 0) -> None:
        self.stage, self.seed, self.first = stage, seed, first

    def __len__(self) -> int:
        return self.stage.steps - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng([self.seed, self.stage.image_size, self.first + index])
        tasks = [draw_task(rng, self.stage.image_size, self.stage.prompts) for _ in range(self.stage.images)]
        fields = ("image", "targets", "coords", "labels")
        return tuple(torch.from_numpy(np.stack([getattr(t, name) for t in tasks])) for name in fields)


def prompted_loss(
    network: PromptableNetwork, batch: tuple[Tensor, ...], rng: np.random.Generator, rounds: int
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a first prompt and of `rounds` - 1 corrections. Focal and Dice for the best of the masks, MSE for its
    IoU.
    """
    images, targets, coords, labels = batch
    target = targets.flatten(0, 1).float()  # N h w
    prompts = PromptBatch(coords.flatten(0, 1), labels.flatten(0, 1))
    embedding = network.encode(network.normalize(images))
    total = torch.zeros((), device=images.device)
    dice = 0.0
    for turn in range(rounds):
        logits, iou = network.decode(embedding, prompts)
        per_mask = 10 * focal_loss(logits, target[:, None].expand_as(logits)) + soft_dice_loss(
            torch.sigmoid(logits), target[:, None].expand_as(logits)
        )
        # Token 0 answers every prompt; tokens 1.. share the ambiguous first click, the best one learns.
        loss = per_mask[:, 0].mean()
        if turn == 0:
            loss = loss + 0.3 * per_mask[:, 1:].min(1).values.mean()
        with torch.no_grad():
            hard = logits > 0
            truth = target[:, None] > 0.5
            true_iou = (hard & truth).sum((-2, -1)) / (hard | truth).sum((-2, -1)).clamp(min=1)
            dice = float((2 * true_iou[:, 0] / (1 + true_iou[:, 0])).mean())
        total = total + loss + torch.mean((iou - true_iou) ** 2)
        if turn + 1 < rounds:
            prompts = corrected(prompts, logits[:, 0].detach(), target, network, rng)
    return total / rounds, {f"dice{rounds}": dice}


def train(stages: list[Stage], out: Path, *, seed: int, workers: int, device: str) -> PromptableNetwork:
    """Runs the stages in order; each resumes from its checkpoint beside `out`."""
    torch.manual_seed(seed)
    network = build_compact(SHIPPED).to(device)
    parameters = dict(network.named_parameters())
    frozen = {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"}
    for number, stage in enumerate(stages):
        checkpoint = out.with_name(f"{out.stem}-stage{number}.ckpt")
        set_image_size(network, stage.image_size)
        schedule = Schedule(
            stage.steps, stage.learning_rate, weight_decay=0.02, warmup_steps=stage.warmup_steps, power=1.0,
            max_seconds=stage.max_seconds, ema_decay=0.998, checkpoint_seconds=180,
        )  # fmt: skip
        first, prefetch = _steps_done(checkpoint), 8 if workers else None
        loader = iter(
            DataLoader(_Steps(stage, seed, first), batch_size=None, num_workers=workers, prefetch_factor=prefetch)
        )

        def loss_at(step: int, loader=loader) -> tuple[Tensor, dict[str, float]]:  # type: ignore[no-untyped-def]
            batch = tuple(tensor.to(device) for tensor in next(loader))
            rng = np.random.default_rng([seed, 1, step])
            return prompted_loss(network, batch, rng, rounds=int(rng.integers(1, 4)))

        result = fit(
            {k: v for k, v in parameters.items() if k not in frozen}, loss_at, schedule, report=_log(number),
            checkpoint=checkpoint, identity=f"pretraining {seed} {number}", amp=torch.bfloat16,
        )  # fmt: skip
        with torch.no_grad():
            for name, value in result.best.items():
                parameters[name].copy_(value)
        save_network(network, out)
    return network


def _steps_done(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    return int(torch.load(checkpoint, weights_only=True)["counters"][2])


def _log(stage: int):  # type: ignore[no-untyped-def]
    recent: dict[str, list[float]] = {}

    def report(progress: Progress) -> None:
        for key, value in progress.metrics.items():
            recent.setdefault(key, []).append(value)
        if progress.step % 50 == 0:
            line = {k: round(float(np.mean(v)), 4) for k, v in recent.items()}
            logger.info("stage %d step %d %s", stage, progress.step, json.dumps(line))
            recent.clear()

    return report


def save_network(network: PromptableNetwork, out: Path) -> None:
    """Writes fp16 safetensors: what ships."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().half().contiguous().cpu() for k, v in network.state_dict().items()}
    with written_whole(out) as part:
        save_file(tensors, part, metadata={"fewshotseg": json.dumps(SHIPPED.to_dict(), sort_keys=True)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=120.0, help="wall time of all stages")
    parser.add_argument("--stages", type=int, nargs="+", default=[128, 256], choices=[128, 256], help="image sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw tasks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    seconds = 60 * arguments.minutes
    chosen = [stage for stage in STAGES if stage.image_size in arguments.stages]
    shares = [SHARES[stage.image_size] for stage in chosen]
    stages = [replace(s, max_seconds=seconds * share / sum(shares)) for s, share in zip(chosen, shares, strict=True)]
    train(stages, arguments.out, seed=arguments.seed, workers=arguments.workers, device=arguments.device)


if __name__ == "__main__":
    main()
