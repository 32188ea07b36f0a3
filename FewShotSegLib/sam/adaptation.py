"""Everything an adapter changes in a network, as one thing to enter, train, save and leave.

LoRA on the attention of encoder and decoder; the small heads and the prompt encoder trained fully (SAMed_s); a
two-class head that answers background and target (Feng et al. 2023, section 2.2); and learned structure tokens with a
locator, which let the same adapter work without clicks.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam.lora import LoraSpec, attached, lora_parameters
from FewShotSegLib.sam.network import MOST_LOGIT, POSITIVE, Embedding, PromptableNetwork, PromptBatch

BACKGROUND, TARGET = 0, 1
LOCATOR_SKIPS = 2  # the coarsest ones; finer skips hold edges and texture, not places


class Locator(nn.Module):
    """Where each structure is, at low resolution: logits (B, K + 1, h, w), background first, from the encoder's
    features.

    What it answers is handed to the decoder as a mask prompt. Without clicks something has to say where to look; a
    small head that every pixel teaches learns that in seconds, tokens alone do not. It sees features, skips and the
    position in the slice, since organs lie in similar places in every patient.
    """

    HIDDEN = 128
    POSITIONS = 7

    def __init__(self, embedding_channels: tuple[int, ...], structures: int, *, generator: torch.Generator) -> None:
        super().__init__()
        channels = sum(embedding_channels) + self.POSITIONS
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        conv = functools.partial(nn.utils.skip_init, nn.Conv2d)  # a fresh layer would draw from the global generator
        self.inputs = conv(channels, self.HIDDEN, 1)
        self.mix = conv(self.HIDDEN, self.HIDDEN, 3, padding=1)
        self.output = conv(self.HIDDEN, structures + 1, 1)
        with torch.no_grad():
            for layer in (self.inputs, self.mix, self.output):
                fan_in = layer.weight[0].numel()
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * fan_in**-0.5)
                layer.bias.copy_(torch.zeros(len(layer.weight)))

    def standardize(self, embedding: Embedding) -> None:
        """Brings every input channel to mean 0 and deviation 1 over these slices; without it learning is ten times
        slower.
        """
        with torch.no_grad():
            maps = self._maps(embedding).float()
            self.shift.copy_(-maps.mean((0, 2, 3), keepdim=True))
            self.scale.copy_(1 / (maps.std((0, 2, 3), keepdim=True) + 1e-4))

    def forward(self, embedding: Embedding) -> Tensor:
        hidden = F.relu(self.inputs((self._maps(embedding) + self.shift) * self.scale))
        return self.output(F.relu(self.mix(hidden)))

    def _maps(self, embedding: Embedding) -> Tensor:
        """All inputs on the grid of the coarsest skip, or of the features where there is none."""
        height, width = (embedding.skips[0] if embedding.skips else embedding.features).shape[-2:]
        grid = (height, width)
        maps = [F.interpolate(embedding.features, grid, mode="bilinear")]
        maps += [F.adaptive_avg_pool2d(skip, grid) for skip in embedding.skips[:LOCATOR_SKIPS]]
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, device=maps[0].device) for n in grid), indexing="ij")
        position = torch.stack([x, y, x * x, y * y, x * y, x**3, y**3]).to(maps[0].dtype)
        return torch.cat([*maps, position.expand(len(maps[0]), -1, -1, -1)], dim=1)

    @staticmethod
    def log_odds(logits: Tensor) -> Tensor:
        """Logits (B, K + 1, h, w) -> log(p / (1 - p)) of each structure, (B, K, h, w)."""
        log_p = F.log_softmax(logits.float(), dim=1)[:, 1:]
        return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))


@dataclass(frozen=True)
class AdaptationSpec:
    """What is trained. `tokens`: structure tokens per structure. `full_decoder`: all of the mask decoder instead of
    LoRA.
    """

    lora: LoraSpec
    tokens: int = 4
    full_decoder: bool = False


class Adaptation:
    """Trainable parts for one network and some structures; `with adaptation.applied(network):` puts them in place.

    The network is lent: on leaving, also by an exception, it holds its own modules again, untouched. At the start an
    adapted network gives the base model's masks: LoRA adds zero and the background logit is zero.
    """

    def __init__(
        self, network: PromptableNetwork, spec: AdaptationSpec, structures: Sequence[int], *, generator: torch.Generator
    ) -> None:
        self.spec = spec
        self.structures = tuple(structures)
        self.prompt_encoder = copy.deepcopy(network.prompt_encoder)
        self.mask_decoder = two_class_decoder(network.mask_decoder)
        shape = (len(self.structures), spec.tokens, network.embed_dim)
        spread = float(network.prompt_encoder.not_a_point_embed.weight.detach().std())
        tokens = spread * torch.randn(shape, generator=generator)
        self.structure_tokens = nn.Parameter(tokens.to(network.device))
        channels = (network.embed_dim, *network.skip_channels[:LOCATOR_SKIPS])
        self.locator = Locator(channels, len(self.structures), generator=generator).to(network.device)
        self._lora: dict[str, Tensor] | None = None
        self._generator_state = generator.get_state()

    @contextmanager
    def applied(self, network: PromptableNetwork) -> Iterator[dict[str, nn.Parameter]]:
        """Puts the adaptation into `network` and yields its trainable parameters by name."""
        base = network.prompt_encoder, network.mask_decoder
        frozen = {name: p.requires_grad for name, p in network.named_parameters()}
        with ExitStack() as stack:
            stack.callback(_restore, network, base, frozen)
            network.requires_grad_(False)
            network.prompt_encoder, network.mask_decoder = self.prompt_encoder, self.mask_decoder
            generator = torch.Generator().set_state(self._generator_state)
            stack.enter_context(attached(network, self.spec.lora, generator=generator))
            parameters = self._parameters(network)
            if self._lora is not None:
                _copy(self._lora, parameters)
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            try:
                yield parameters
            finally:
                self._lora = {k: p.detach().clone() for k, p in lora_parameters(network).items()}

    def _parameters(self, network: PromptableNetwork) -> dict[str, nn.Parameter]:
        parameters = dict(lora_parameters(network))
        for part, module in (("prompt_encoder", self.prompt_encoder), ("mask_decoder", self.mask_decoder)):
            for name, parameter in module.named_parameters():
                in_transformer = part == "mask_decoder" and name.startswith("transformer.")
                if ".lora" not in name and (self.spec.full_decoder or not in_transformer):
                    parameters.setdefault(f"{part}.{name}", parameter)
        parameters["structure_tokens"] = self.structure_tokens
        parameters.update({f"locator.{name}": p for name, p in self.locator.named_parameters()})
        return parameters

    def remember_clicks(self, network: PromptableNetwork, clicks: Mapping[int, NDArray[np.float32]]) -> None:
        """Starts the tokens of a structure as the clicks (n, 2) that a user gave on it, in network pixels.

        Organs lie in similar places in every patient, so a remembered click is a far better start than noise.
        """
        with torch.no_grad():
            for value, xy in clicks.items():
                coords = torch.from_numpy(np.asarray(xy, np.float32))[None].to(network.device)
                labels = torch.full(coords.shape[:2], POSITIVE, device=network.device)
                row = self.structures.index(value)
                self.structure_tokens[row] = network.sparse_embedding(PromptBatch(coords, labels))[0]

    def structure_prompts(
        self, network: PromptableNetwork, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int]
    ) -> PromptBatch:
        """The prompts (N, grouped by image) with the tokens of their structures and the locator's mask of each.

        A mask that a prompt brings itself is kept.
        """
        maps = self.locator.log_odds(self.locator(embedding))  # B K h w
        images = len(maps)
        per_image = len(structures) // images
        rows = [self.structures.index(value) for value in structures]
        chosen = torch.stack([maps[i // per_image, row] for i, row in enumerate(rows)])[:, None]
        masks = F.interpolate(chosen, (network.mask_input_size,) * 2, mode="bilinear").clamp(-MOST_LOGIT, MOST_LOGIT)
        if prompts.masks is not None:
            own = torch.ones(len(prompts), dtype=torch.bool) if prompts.has_mask is None else prompts.has_mask
            masks = torch.where(own.to(masks.device).view(-1, 1, 1, 1), prompts.masks, masks)
        return PromptBatch(prompts.coords, prompts.labels, masks, tokens=self.tokens_of(structures))

    def tokens_of(self, structures: Sequence[int | None]) -> Tensor:
        """Sparse prompts (N, n, C) of the structures asked for."""
        rows = [self.structures.index(value) for value in structures if value is not None]
        if len(rows) != len(structures):
            raise InputError("A prompt without a structure has no structure token.")
        return self.structure_tokens[rows]

    def tensors(self, network: PromptableNetwork) -> dict[str, np.ndarray[Any, Any]]:
        """All trained values by name, as an `Adapter` stores them."""
        with self.applied(network) as parameters:
            return {name: p.detach().float().cpu().numpy().copy() for name, p in parameters.items()}

    def load(self, network: PromptableNetwork, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Takes the values of an adapter."""
        with self.applied(network) as parameters:
            if set(parameters) != set(tensors):
                odd = sorted(set(parameters) ^ set(tensors))
                raise InputError(
                    f"The adapter does not fit this network: {len(odd)} parameters differ, first {odd[0]}."
                )
            _copy({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, parameters)


def two_class_decoder(decoder: Any) -> Any:
    """A copy of a SAM mask decoder with two mask tokens: background, then target.

    The target starts as SAM's token 0, its answer to an unambiguous prompt. The background takes token 1 with the last
    layer of its hypernetwork at zero: softmax over (0, target) is then SAM's own sigmoid, so training starts from the
    base model's masks rather than from a head that must be learned first. SAM's other tokens answer no more, but stay
    in the attention as constants, because without them the answer of token 0 is another one.
    """
    twin = copy.deepcopy(decoder)
    with torch.no_grad():
        base_tokens = decoder.mask_tokens.weight
        # from_pretrained and skip_init, because fresh layers would draw from the global generator.
        twin.mask_tokens = nn.Embedding.from_pretrained(base_tokens[[1, 0]].clone(), freeze=False)
        twin.register_buffer("silent_tokens", base_tokens[2:].clone(), persistent=False)
        background = copy.deepcopy(decoder.output_hypernetworks_mlps[1])
        background.layers[-1].weight.zero_()
        background.layers[-1].bias.zero_()
        twin.output_hypernetworks_mlps = nn.ModuleList(
            [background, copy.deepcopy(decoder.output_hypernetworks_mlps[0])]
        )
        last = decoder.iou_prediction_head.layers[-1]
        twin.iou_prediction_head.layers[-1] = nn.utils.skip_init(
            nn.Linear, last.in_features, 2, device=last.weight.device, dtype=last.weight.dtype
        )
        for row, source in ((BACKGROUND, 1), (TARGET, 0)):
            twin.iou_prediction_head.layers[-1].weight[row] = last.weight[source]
            twin.iou_prediction_head.layers[-1].bias[row] = last.bias[source]
    twin.num_mask_tokens = 2
    return twin


def target_of(logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, h, w) and predicted IoU (N,) of the target, from `PromptableNetwork.decode` of either head.

    Two tokens: the logit of a two-class softmax. SAM's own head: token 0.
    """
    if logits.shape[1] == 2:
        return logits[:, TARGET] - logits[:, BACKGROUND], iou[:, TARGET]
    return logits[:, 0], iou[:, 0]


def _restore(network: PromptableNetwork, base: tuple[nn.Module, nn.Module], frozen: dict[str, bool]) -> None:
    network.prompt_encoder, network.mask_decoder = base
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(frozen[name])


def _copy(values: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            if parameters[name].shape != value.shape:
                raise InputError(
                    f"The adapter does not fit: {name} has shape {tuple(value.shape)}, "
                    f"the network needs {tuple(parameters[name].shape)}."
                )
            parameters[name].copy_(value)
