"""Slice-wise image translation between modalities: a CycleGAN, trained on unpaired volumes.

It is agnostic of the content: given anatomy images (`anatomy_space`) it is ASIT (Zhu et al. 2024), given intensities it
is a plain CycleGAN (Zhu et al. 2017). `cycle_gan` has the losses.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from FewShotSegLib.data.recipe import from_dict, to_dict
from FewShotSegLib.errors import InputError, StopAndKeepBest
from FewShotSegLib.io.files import written_whole
from FewShotSegLib.networks.weights import load_weights, weights_of
from FewShotSegLib.progress import Progress, Report, silent
from FewShotSegLib.training.checkpoint import read_checkpoint, write_checkpoint
from FewShotSegLib.training.fit import read_metrics, step_rng

from .cycle_gan import CycleGan, Fakes, ImagePool, TranslationRecipe, generator_of
from .generators import Generator

Array = NDArray[Any]
Volumes = Sequence[Array]  # (D, H, W) in [0, 1]
Draw = Callable[[np.random.Generator], Array]  # a stack (2 neighbours + 1, H, W) in [0, 1]
Direction = Literal["to_target", "to_source"]

_TOGETHER = 8  # batch size of translation
_PICTURES = 25  # preview images per training
_HEADER_KEY = "fewshotseg_translator"


# ---------------------------------------------------------------------------------------------------------------- data


class _Domain:
    """The slices of one modality, without constant ones."""

    def __init__(self, given: Volumes | Draw, name: str, recipe: TranslationRecipe, seed: list[int]) -> None:
        self.draw = given if callable(given) else None
        self.volumes = [] if callable(given) else [_checked(v, f"{name} {n}") for n, v in enumerate(given, start=1)]
        self.places = [(v, k) for v, volume in enumerate(self.volumes) for k in range(len(volume)) if _shows(volume[k])]
        if not self.draw and not self.places:
            raise InputError(f"There is no {name} to learn from, or all of its slices are blank; give at least one.")
        self.name = name
        self.recipe = recipe
        self.seed = seed
        self._order = (-1, np.empty(0, np.int64))

    def batch(self, step: int, rng: np.random.Generator, *, in_turn: bool) -> Tensor:
        """(B, C, S, S): every slice once before any repeats, or drawn with replacement."""
        size = self.recipe.batch_size
        return torch.from_numpy(np.stack([self._stack(step * size + n, rng, in_turn) for n in range(size)]))

    def _stack(self, number: int, rng: np.random.Generator, in_turn: bool) -> Array:
        if self.draw:
            stack = _checked(np.asarray(self.draw(rng)), self.name)
            if len(stack) != self.recipe.stack:
                raise InputError(
                    f"A {self.name} to learn from is drawn as {self.recipe.stack} slices (C, H, W) with neighbours "
                    f"{self.recipe.neighbours}, got {len(stack)}."
                )
        else:
            place = self._in_turn(number) if in_turn else int(rng.integers(len(self.places)))
            volume, k = self.places[place]
            stack = _stack_around(self.volumes[volume], k, self.recipe.neighbours)
        return _cropped_or_padded(stack, self.recipe.size_px, rng)

    def _in_turn(self, number: int) -> int:
        rounds, at = divmod(number, len(self.places))
        if self._order[0] != rounds:
            shuffled = np.random.default_rng([*self.seed, rounds]).permutation(len(self.places))
            self._order = (rounds, shuffled)
        return int(self._order[1][at])


def _checked(volume: Array, name: str) -> Array:
    if volume.ndim != 3 or not volume.size:
        raise InputError(f"The {name} to translate must be an array (D, H, W), got the shape {volume.shape}.")
    volume = volume.astype(np.float32, copy=False)
    low, high = float(volume.min()), float(volume.max())  # NaN propagates
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise InputError(f"The {name} to translate must lie in [0, 1], got {low:g} to {high:g}; scale it first.")
    return volume


def _shows(image: Array) -> bool:
    return float(np.ptp(image)) > 0


def _stack_around(volume: Array, k: int, neighbours: int) -> Array:
    """(2 neighbours + 1, H, W); edge slices are replicated."""
    return volume[np.clip(np.arange(k - neighbours, k + neighbours + 1), 0, len(volume) - 1)]


def _cropped_or_padded(stack: Array, size: int, rng: np.random.Generator) -> Array:
    """A random square crop of (C, H, W), zero-padded where smaller."""
    for axis in (1, 2):
        spare = stack.shape[axis] - size
        if spare > 0:
            start = int(rng.integers(spare + 1))
            stack = stack[(slice(None),) * axis + (slice(start, start + size),)]
    return _padded(stack, size)


def _padded(stack: Array, size: int) -> Array:
    """(C, H, W) centred in zero padding where it is smaller than the square."""
    missing = [max(size - n, 0) for n in stack.shape[1:]]
    return np.pad(stack, [(0, 0), *((n // 2, n - n // 2) for n in missing)])


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True, eq=False)
class Translator:
    """Two trained generators. `history` has a row of losses per step."""

    recipe: TranslationRecipe
    to_target: Generator
    to_source: Generator
    history: list[dict[str, float]] = field(default_factory=list)
    stopped_by: str = "steps"  # or "user"

    def translate(
        self, volume: Array, direction: Direction = "to_target", report: Report = silent
    ) -> NDArray[np.float32]:
        """Return a volume (D, H, W) in [0, 1], of any size, translated slice by slice to the other modality, in [0, 1].

        Slices smaller than the training size are zero-padded, as in training, so that instance norm statistics match.
        """
        volume = _checked(volume, "volume")
        network: Generator = getattr(self, direction)
        device = next(network.parameters()).device
        _, height, width = volume.shape
        answer = np.empty(volume.shape, np.float32)
        top, left = (max(self.recipe.size_px - n, 0) // 2 for n in (height, width))
        for start in range(0, len(volume), _TOGETHER):
            report(Progress(start, len(volume), "translating"))
            slices = range(start, min(start + _TOGETHER, len(volume)))
            stacks = [_stack_around(volume, k, self.recipe.neighbours) for k in slices]
            batch = np.stack([_padded(stack, self.recipe.size_px) for stack in stacks])
            with torch.inference_mode():
                found = network(torch.from_numpy(batch).to(device))[:, self.recipe.neighbours].clamp(0, 1)
            answer[slices.start : slices.stop] = found.cpu().numpy()[:, top : top + height, left : left + width]
        return answer


def train_translator(
    source: Volumes | Draw,
    target: Volumes | Draw,
    recipe: TranslationRecipe,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    amp: torch.dtype | None = None,
    report: Report = silent,
    checkpoint: Path | None = None,
    identity: str = "",
) -> Translator:
    """Train translation of slices of `source` to slices of `target`, and back, from unpaired data.

    Volumes are (D, H, W) in [0, 1], of any sizes; each slice of the modality with more of them is used equally often,
    the other's are drawn with replacement. Alternatively, a function draws stacks. `amp`: dtype of mixed precision.
    `checkpoint` is read if it exists and belongs to the same `identity` (a digest of all that determines the run), and
    removed by the caller. `report` is called once per step, occasionally with an image: source, its translation,
    target, its translation.
    """
    domains = [
        _Domain(given, name, recipe, [seed, number])
        for number, (given, name) in enumerate(((source, "source volume"), (target, "target volume")))
    ]
    run = _AdversarialGame(recipe, seed, torch.device(device), amp, identity)
    if checkpoint is not None and checkpoint.exists():
        run.restore(checkpoint)
    most = max(len(domain.places) for domain in domains)
    stopped_by, saved = "steps", time.monotonic()
    while run.step < recipe.steps:
        rng = step_rng(seed, run.step)
        real = [domain.batch(run.step, rng, in_turn=len(domain.places) == most) for domain in domains]
        metrics, fakes = run.advance(real[0], real[1], rng)
        if checkpoint is not None and time.monotonic() - saved >= recipe.checkpoint_seconds:
            run.save(checkpoint)
            saved = time.monotonic()
        shown = run.step % max(recipe.steps // _PICTURES, 1) == 0
        picture = _picture([real[0], fakes.target, real[1], fakes.source]) if shown else None
        try:
            report(Progress(run.step, recipe.steps, "learning to translate", metrics, picture))
        except StopAndKeepBest:
            stopped_by = "user"
            break
    networks = run.networks.eval()
    return Translator(recipe, networks.to_target, networks.to_source, run.history, stopped_by)


def _picture(batches: Sequence[Tensor]) -> NDArray[np.uint8]:
    """The middle slices of the first stacks, side by side: (S, n S, 3)."""
    images = [batch[0, batch.shape[1] // 2].detach().float().cpu().clamp(0, 1) for batch in batches]
    grey = torch.cat(images, dim=1).mul(255).round().to(torch.uint8)
    return grey[:, :, None].expand(-1, -1, 3).numpy()


class _AdversarialGame:
    """The game between generators and discriminators: everything a checkpoint must hold."""

    def __init__(
        self, recipe: TranslationRecipe, seed: int, device: torch.device, amp: torch.dtype | None, identity: str
    ) -> None:
        self.recipe = recipe
        self.device = device
        self.amp = amp
        self.identity = identity
        self.networks = CycleGan(recipe, seed).to(device)
        self.optimizers = [
            torch.optim.Adam(parameters, lr=recipe.learning_rate, betas=(0.5, 0.999))
            for parameters in (self.networks.generators, self.networks.discriminators)
        ]
        self.pools = [ImagePool(recipe.pool_size) for _ in Fakes._fields]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
        self.step = 0
        self.history: list[dict[str, float]] = []

    def advance(self, source: Tensor, target: Tensor, rng: np.random.Generator) -> tuple[dict[str, float], Fakes]:
        """One step of the generators, then one of the discriminators."""
        source, target = source.to(self.device), target.to(self.device)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            objective, fakes = self.networks.generator_objective(source, target)
            total = objective.total(self.recipe)
        self._descend(0, total)
        remembered = Fakes(*(pool.exchange(fake, rng) for pool, fake in zip(self.pools, fakes, strict=True)))
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            judged = self.networks.discriminator_objective(source, target, remembered)
        self._descend(1, judged)
        self.scaler.update()
        self.step += 1
        terms = {name: term.detach() for name, term in objective._asdict().items()}
        metrics = read_metrics({"loss": total.detach(), **terms, "discriminators": judged.detach()})
        if not all(math.isfinite(value) for value in metrics.values()):
            raise InputError(f"The translation diverged at step {self.step}; choose a lower learning rate.")
        self.history.append({"step": self.step, **metrics})
        return metrics, fakes

    def _descend(self, player: int, loss: Tensor) -> None:
        optimizer = self.optimizers[player]
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(self.step)
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)

    def save(self, path: Path) -> None:
        state = {
            "identity": self.identity,
            "networks": self.networks.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "pools": [pool.images for pool in self.pools],
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "history": self.history,
        }
        write_checkpoint(state, path)

    def restore(self, path: Path) -> None:
        state = read_checkpoint(path, self.identity)
        self.networks.load_state_dict(state["networks"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.pools = [
            ImagePool(self.recipe.pool_size, [i.to(self.device) for i in images]) for images in state["pools"]
        ]
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.history = state["history"]


# --------------------------------------------------------------------------------------------------------------- files


def save_translator(translator: Translator, path: str | os.PathLike[str]) -> None:
    """Write generators and recipe as one `.safetensors` file; equal content gives equal bytes."""
    from safetensors.numpy import save

    header = json.dumps(to_dict(translator.recipe), sort_keys=True)
    content = save(weights_of(_both(translator)), metadata={_HEADER_KEY: header})
    with written_whole(path) as part:
        part.write_bytes(content)


def load_translator(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Translator:
    """Load what `save_translator` wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), "numpy") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable file ({error}); train the translation again.") from error
    if header is None:
        raise InputError(f"{path} holds no translation, but something else; choose a file of save_translator.")
    recipe = from_dict(TranslationRecipe, json.loads(header))
    translator = Translator(recipe, generator_of(recipe), generator_of(recipe))
    load_weights(_both(translator), tensors)
    _both(translator).to(device).eval()
    return translator


def _both(translator: Translator) -> nn.ModuleDict:
    return nn.ModuleDict({"to_target": translator.to_target, "to_source": translator.to_source})
