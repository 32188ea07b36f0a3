"""The prompt-free baseline of the Cheap Lunch paper: SAM with a head of K + 1 classes, SAMed (Zhang and Liu 2023).

LoRA in the image encoder; a newly initialized mask token and hypernetwork per class, background first; the whole mask
decoder and the prompt encoder's own embeddings are trained. All classes are predicted at once and the highest logit
wins. It is trained on the same synthesized samples as the paper's model, which is the paper's comparison.

SAMed's loss, 0.2 cross-entropy + 0.8 Dice over all classes with the background, and its learning rate 5e-3 are used;
its 250 warm-up steps and batch size of 12 are not, as a benchmark of a minute has fewer steps.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.devices import training_precision
from FewShotSegLib.lora.attach import attach, lora_parameters
from FewShotSegLib.methods import lora
from FewShotSegLib.progress import Report
from FewShotSegLib.sam.network import PromptableNetwork, PromptBatch
from FewShotSegLib.training.fit import Schedule, fit, step_rng
from FewShotSegLib.training.losses import soft_dice_loss
from FewShotSegLib.training.prompted import synthesizer_of
from FewShotSegLib.training.prompted_recipe import adaptation_spec

LEARNING_RATE, WARMUP_STEPS = 5e-3, 20
CROSS_ENTROPY, DICE = 0.2, 0.8
UNKNOWN = -1  # class of pixels with unreliable labels


class ClassNetwork(nn.Module):
    """A copy of a promptable network that predicts K + 1 classes without prompts.

    The base is not modified. `scale` is the network's input scale, see `PromptableNetwork.normalize`.
    """

    def __init__(self, base: PromptableNetwork, structures: Sequence[int], recipe: lora.Recipe, seed: int) -> None:
        super().__init__()
        self.network, self.scale = copy.deepcopy(base), base.scale
        self.structures = tuple(sorted(structures))
        self.network.mask_decoder = class_decoder(self.network.mask_decoder, len(self.structures) + 1, seed)
        spec = replace(adaptation_spec(recipe, base).lora, decoder=False)
        attach(self.network, spec, generator=torch.Generator().manual_seed(seed))
        self.network.requires_grad_(False)
        for parameter in self.trained().values():
            parameter.requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        """Trainable parameters: LoRA in the encoder, prompt encoder and mask decoder."""
        heads = ("prompt_encoder.", "mask_decoder.")
        whole = {name: p for name, p in self.network.named_parameters() if name.startswith(heads)}
        return {**lora_parameters(self.network), **whole}

    def forward(self, images: Tensor) -> Tensor:
        """Grey images (B, 1, S, S) in [0, 1] -> logits (B, K + 1, h, w), background first, then by label value."""
        device, count = self.network.device, len(images)
        nothing = PromptBatch(
            torch.zeros(count, 0, 2, device=device), torch.zeros(count, 0, dtype=torch.long, device=device)
        )
        embedding = self.network.encode(self.network.normalize(images[:, 0].to(device), self.scale))
        return self.network.decode(embedding, nothing)[0]

    def classes_of(self, labels: Tensor) -> Tensor:
        """Label values (...) -> class indices, 0 for everything that is not a structure."""
        return sum((labels == value) * number for number, value in enumerate(self.structures, 1))  # type: ignore[return-value]


def class_decoder(decoder: nn.Module, classes: int, seed: int) -> Any:
    """A copy of a mask decoder with a newly initialized mask token and hypernetwork per class, as in SAMed."""
    made: Any = copy.deepcopy(decoder)
    tokens = made.mask_tokens
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made.mask_tokens = nn.Embedding(classes, tokens.embedding_dim).to(tokens.weight)
        heads = nn.ModuleList([copy.deepcopy(made.output_hypernetworks_mlps[0]) for _ in range(classes)])
        for module in heads.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        made.output_hypernetworks_mlps = heads
    made.num_mask_tokens = classes
    return made


def class_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """SAMed's loss of logits (B, K + 1, h, w) and class indices (B, S, S), UNKNOWN where unlabelled.

    Dice is the mean over all classes, including the background, each over all pixels of the batch.
    """
    small = F.interpolate(classes[:, None].float(), logits.shape[-2:], mode="nearest-exact")[:, 0].long()
    entropy = F.cross_entropy(logits, small, ignore_index=UNKNOWN)
    known = (small != UNKNOWN)[:, None]
    truth = F.one_hot(small.clamp(min=0), logits.shape[1]).movedim(-1, 1)
    found, there = ((part * known).transpose(0, 1).flatten(1)[:, None] for part in (logits.softmax(1), truth))
    return CROSS_ENTROPY * entropy + DICE * soft_dice_loss(found, there, squared=True, smooth=1e-5).mean()


def train_samed(
    base: PromptableNetwork,
    exemplars: Sequence[Exemplar],
    intensity: IntensitySpec,
    recipe: lora.Recipe,
    *,
    seed: int,
    seconds: float,
    report: Report,
) -> tuple[ClassNetwork, dict[int, str]]:
    """The network trained on samples synthesized from the exemplars, and its structures."""
    recipe = lora.resolve(recipe, base.family, base.device)
    structures = dict(exemplars[0].structures)
    source = synthesizer_of(exemplars, intensity, base.image_size, recipe, structures)
    made = ClassNetwork(base, list(structures), recipe, seed)
    pooled = functools.cache(lambda number: source.draw(step_rng(seed + 1, number)))
    count = recipe.batch_size or 1

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = step_rng(seed, step)
        if recipe.pool_size:
            samples = [pooled(int(rng.integers(recipe.pool_size))) for _ in range(count)]
        else:
            samples = [source.draw(rng) for _ in range(count)]
        images = torch.from_numpy(np.stack([sample.image for sample in samples]))[:, None]
        classes = made.classes_of(torch.from_numpy(np.stack([sample.labels for sample in samples])))
        for at, sample in enumerate(samples):
            if sample.known is not None:
                classes[at][torch.from_numpy(~sample.known)] = UNKNOWN
        return class_loss(made(images).float(), classes.to(base.device)), {}

    schedule = Schedule(
        recipe.steps or 1,
        LEARNING_RATE,
        weight_decay=recipe.weight_decay,
        warmup_steps=WARMUP_STEPS,
        max_seconds=seconds,
    )
    fit(made.trained(), loss_at, schedule, report=report, amp=training_precision(base.device))
    return made.eval(), structures
