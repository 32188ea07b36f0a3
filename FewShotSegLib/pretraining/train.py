"""Pre-trains the compact model from scratch on random scenes: `python -m FewShotSegLib.pretraining.train --out FILE`.

Clicks are simulated as a person gives them: a first click or box, then corrections where the mask is wrong, each with
the previous mask as a further prompt (Kirillov et al. 2023, appendix A). Most of the time is spent at 128 px, where a
step costs a third; the last part at a larger size sharpens what was learned. Interrupted, the same command goes on.
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
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from FewShotSegLib.errors import InputError
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
    learning_rate: float
    share: float = 1.0  # of the time
    steps: int = 1_000_000  # at most
    warmup_steps: int = 200


# 160 px is where the clicks of a model trained at 128 px were found most accurate on the whole; see its card.
SHIPPED = CompactArchitecture(depth=10, working_size=160)

# Small images first: a step costs a third, and what a click means does not depend on the size.
STAGES = {
    "cpu": (
        Stage(image_size=128, images=8, prompts=6, learning_rate=1e-3, share=0.7),
        Stage(image_size=192, images=4, prompts=6, learning_rate=4e-4, share=0.3),
    ),
    "cuda": (
        Stage(image_size=128, images=96, prompts=8, learning_rate=2e-3, share=0.5),
        Stage(image_size=256, images=32, prompts=8, learning_rate=8e-4, share=0.5),
    ),
}
CONTINUED = 0.6  # of the learning rate, for a model that has learned already
ROUNDS = (0.3, 0.25, 0.2, 0.15, 0.1)  # shares of tasks with 1, 2, ... prompts in a row


class _Steps(Dataset[tuple[Tensor, ...]]):
    """Step number -> the tensors of its tasks. Drawn from (seed, size, step), so any process makes the same ones.

    With a cache, a step that was drawn once is read from disk: by a run that goes on, or one with other settings.
    """

    def __init__(self, stage: Stage, seed: int, first: int = 0, cache: Path | None = None) -> None:
        self.stage, self.seed, self.first, self.cache = stage, seed, first, cache

    def __len__(self) -> int:
        return self.stage.steps - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        step = self.first + index
        if self.cache is None:
            return self._draw(step)
        s = self.stage
        path = self.cache / f"{s.image_size}px-{s.images}x{s.prompts}-seed{self.seed}" / f"{step:06d}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as part:
                torch.save(self._draw(step), part)
        images, targets, coords, labels = torch.load(path, weights_only=True)
        return images, targets, coords, labels

    def _draw(self, step: int) -> tuple[Tensor, ...]:
        """images (B, S, S), targets (B, P, S/2, S/2), coords (B, P, 3, 2), labels (B, P, 3)."""
        rng = np.random.default_rng([self.seed, self.stage.image_size, step])
        tasks = [draw_task(rng, self.stage.image_size, self.stage.prompts) for _ in range(self.stage.images)]
        fields = ("image", "targets", "coords", "labels")
        return tuple(torch.from_numpy(np.stack([getattr(t, name) for t in tasks])) for name in fields)


def prompted_loss(
    network: PromptableNetwork, batch: tuple[Tensor, ...], rng: np.random.Generator, rounds: int
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a first prompt and, after `rounds` - 1 corrections, of the last. The masks in between are made without
    gradients: they cost a third and only serve to show the kinds of errors that people correct.
    """
    images, targets, coords, labels = batch
    target = targets.flatten(0, 1)  # N h w
    prompts = PromptBatch(coords.flatten(0, 1), labels.flatten(0, 1))
    embedding = network.encode(network.normalize(images))
    losses, metrics = [], {}
    for turn in range(1, rounds + 1):
        learns = turn in (1, rounds)
        with torch.set_grad_enabled(learns):
            logits, iou = network.decode(embedding, prompts)
        if learns:
            loss, metrics[f"dice{turn}"] = _mask_loss(logits, iou, target, first=turn == 1)
            losses.append(loss)
        if turn < rounds:
            prompts = corrected(prompts, logits[:, 0].detach(), target, network, rng, central=0.5)
    return torch.stack(losses).mean(), metrics


def _mask_loss(logits: Tensor, iou: Tensor, target: Tensor, *, first: bool) -> tuple[Tensor, float]:
    """Focal and Dice of logits (N, M, h, w) and MSE of their IoU; also the mean Dice of mask 0, which answers every
    prompt. Masks 1.. share the ambiguous first one: the best of them learns.
    """
    expanded = target[:, None].expand_as(logits)
    per_mask = 10 * focal_loss(logits, expanded) + soft_dice_loss(torch.sigmoid(logits), expanded)
    loss = per_mask[:, 0].mean()
    if first:
        loss = loss + 0.3 * per_mask[:, 1:].min(1).values.mean()
    with torch.no_grad():
        hard, truth = logits > 0, expanded > 0.5
        true_iou = (hard & truth).sum((-2, -1)) / (hard | truth).sum((-2, -1)).clamp(min=1)
        dice = float((2 * true_iou[:, 0] / (1 + true_iou[:, 0])).mean())
    return loss + torch.mean((iou - true_iou) ** 2), dice


def train(
    stages: Sequence[Stage],
    out: Path,
    *,
    minutes: float | None = None,
    seed: int,
    workers: int,
    device: str,
    cache: Path | None = None,
    start: Path | None = None,
) -> PromptableNetwork:
    """Runs the stages in order, `minutes` in all; each resumes from its checkpoint beside `out`.

    `start` is a model of an earlier sitting to go on from; it may have fewer blocks.
    """
    torch.manual_seed(seed)
    network = build_compact(SHIPPED).to(device)
    if start is not None:
        go_on_from(network, start)
        stages = [replace(stage, learning_rate=CONTINUED * stage.learning_rate) for stage in stages]
    parameters = dict(network.named_parameters())
    frozen = {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"}
    for number, stage in enumerate(stages):
        checkpoint = out.with_name(f"{out.stem}-stage{number}.ckpt")
        set_image_size(network, stage.image_size)
        schedule = Schedule(
            stage.steps, stage.learning_rate, weight_decay=0.02, warmup_steps=stage.warmup_steps, power=1.0,
            max_seconds=60 * minutes * stage.share if minutes else None, ema_decay=0.998, checkpoint_seconds=180,
        )  # fmt: skip
        first, prefetch = _steps_done(checkpoint), 8 if workers else None
        loader = iter(
            DataLoader(
                _Steps(stage, seed, first, cache), batch_size=None, num_workers=workers, prefetch_factor=prefetch
            )
        )

        def loss_at(step: int, loader=loader) -> tuple[Tensor, dict[str, float]]:  # type: ignore[no-untyped-def]
            batch = tuple(tensor.to(device) for tensor in next(loader))
            rng = np.random.default_rng([seed, 1, step])
            return prompted_loss(network, batch, rng, rounds=1 + int(rng.choice(len(ROUNDS), p=ROUNDS)))

        result = fit(
            {k: v for k, v in parameters.items() if k not in frozen}, loss_at, schedule, report=_log(number),
            checkpoint=checkpoint, identity=f"pretraining {seed} {number}", amp=torch.bfloat16,
        )  # fmt: skip
        with torch.no_grad():
            for name, value in result.best.items():
                parameters[name].copy_(value)
        save_network(network, out)
    return network


def go_on_from(network: PromptableNetwork, file: Path) -> None:
    """Takes the weights of a model of the same widths. Blocks that it does not have start as the identity, so the
    network gives that model's masks.
    """
    tensors = load_file(file)
    own = network.state_dict()
    unfit = sorted(name for name in tensors if name not in own or own[name].shape != tensors[name].shape)
    new = {name for name in own if name not in tensors}
    if unfit or any(not name.startswith("image_encoder.blocks.") for name in new):
        raise InputError(f"{file} is not an earlier state of this model: {(unfit or sorted(new))[0]} does not fit.")
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in new and (".attn.proj." in name or ".mlp.lin2." in name):
                parameter.zero_()


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
    tensors = {k: v.detach().half().contiguous().cpu() for k, v in network.state_dict().items()}
    with written_whole(out) as part:
        save_file(tensors, part, metadata={"fewshotseg": json.dumps(SHIPPED.to_dict(), sort_keys=True)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=120.0, help="wall time of all stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw tasks")
    parser.add_argument("--start", type=Path, metavar="FILE", help="model of an earlier sitting to go on from")
    parser.add_argument("--cache", type=Path, help="folder that keeps the drawn tasks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    stages = STAGES[torch.device(arguments.device).type]
    train(
        stages, arguments.out, minutes=arguments.minutes, seed=arguments.seed, workers=arguments.workers,
        device=arguments.device, cache=arguments.cache, start=arguments.start,
    )  # fmt: skip


if __name__ == "__main__":
    main()
