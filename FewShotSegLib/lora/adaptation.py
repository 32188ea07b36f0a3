"""Everything that an adapter changes in a network, as one object to apply, train, save and remove.

LoRA on the attention of encoder and decoder; full training of the small heads and the prompt encoder (SAMed_s); a
two-class head with logits for background and target (Feng et al. 2023, section 2.2); and learned structure tokens with
a locator, which let the same adapter work without clicks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam.network import POSITIVE, Embedding, PromptableNetwork, PromptBatch, mask_prompts

from .attach import attached, lora_parameters
from .heads import LOCATOR_SKIPS, Locator, two_class_decoder
from .layers import LoraSpec


@dataclass(frozen=True)
class AdaptationSpec:
    """What is trained. `tokens`: structure tokens per structure. `full_decoder`: train the whole mask decoder instead
    of LoRA. `locator`: a head that finds structures without clicks; without it, mask prompts must come from elsewhere.
    """

    lora: LoraSpec
    tokens: int = 4
    full_decoder: bool = False
    locator: bool = True


class Adaptation:
    """Trainable parts for one network and some structures; `with adaptation.applied(network):` puts them in place.

    On exit, including by an exception, the network has its own modules back, untouched. At initialization an adapted
    network outputs the base model's masks: LoRA adds zero and the background logit is zero.
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
        """Attaches the adaptation to `network` and yields its trainable parameters by name."""
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
        if self.spec.locator:
            parameters.update({f"locator.{name}": p for name, p in self.locator.named_parameters()})
        return parameters

    def remember_clicks(self, network: PromptableNetwork, clicks: Mapping[int, NDArray[np.float32]]) -> None:
        """Initializes the tokens of a structure from the clicks (n, 2) that a user gave on it, in network pixels.

        Organs lie in similar places in every patient, so a remembered click is a far better initialization than noise.
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
        """The prompts (N, grouped by image) with the tokens of their structures and the locator's masks as mask
        prompts.

        Prompts that already have a mask keep it.
        """
        maps = self.locator.log_odds(self.locator(embedding))  # B K h w
        images = len(maps)
        per_image = len(structures) // images
        rows = [self.structures.index(value) for value in structures]
        chosen = torch.stack([maps[i // per_image, row] for i, row in enumerate(rows)])
        masks = mask_prompts(chosen, network.mask_input_size)
        if prompts.masks is not None:
            own = torch.ones(len(prompts), dtype=torch.bool) if prompts.has_mask is None else prompts.has_mask
            masks = torch.where(own.to(masks.device).view(-1, 1, 1, 1), prompts.masks, masks)
        return PromptBatch(prompts.coords, prompts.labels, masks, tokens=self.tokens_of(structures))

    def tokens_of(self, structures: Sequence[int | None]) -> Tensor:
        """Sparse prompts (N, n, C) of the requested structures."""
        rows = [self.structures.index(value) for value in structures if value is not None]
        if len(rows) != len(structures):
            raise InputError("A prompt without a structure has no structure token.")
        return self.structure_tokens[rows]

    def tensors(self, network: PromptableNetwork) -> dict[str, np.ndarray[Any, Any]]:
        """All trained values by name, as an `Adapter` stores them."""
        with self.applied(network) as parameters:
            return {name: p.detach().float().cpu().numpy().copy() for name, p in parameters.items()}

    def load(self, network: PromptableNetwork, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Loads the values of an adapter."""
        with self.applied(network) as parameters:
            if set(parameters) != set(tensors):
                odd = sorted(set(parameters) ^ set(tensors))
                raise InputError(
                    f"The adapter does not fit this network: {len(odd)} parameters differ, first {odd[0]}."
                )
            _copy({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, parameters)


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
