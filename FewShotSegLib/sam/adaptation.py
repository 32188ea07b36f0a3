"""Everything an adapter changes in a network, as one thing to enter, train, save and leave.

LoRA on the attention of encoder and decoder; the small heads and the prompt encoder trained fully (SAMed_s); a two-class
head that answers background and target (Feng et al. 2023, section 2.2); and learned structure tokens, which let the same
adapter work without clicks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam.lora import LoraSpec, attached, lora_parameters
from FewShotSegLib.sam.network import PromptableNetwork

BACKGROUND, TARGET = 0, 1


@dataclass(frozen=True)
class AdaptationSpec:
    """What is trained. `tokens`: structure tokens per structure. `full_decoder`: all of the mask decoder instead of LoRA."""

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
        return parameters

    def tokens_of(self, structures: Sequence[int | None]) -> Tensor:
        """Sparse prompts (N, n, C) of the structures asked for."""
        rows = [self.structures.index(value) for value in structures if value is not None]
        if len(rows) != len(structures):
            raise InputError("A prompt without a structure has no structure token.")
        return self.structure_tokens[rows]

    def tensors(self, network: PromptableNetwork) -> dict[str, np.ndarray]:
        """All trained values by name, as an `Adapter` stores them."""
        with self.applied(network) as parameters:
            return {name: p.detach().float().cpu().numpy().copy() for name, p in parameters.items()}

    def load(self, network: PromptableNetwork, tensors: dict[str, np.ndarray]) -> None:
        """Takes the values of an adapter."""
        with self.applied(network) as parameters:
            if set(parameters) != set(tensors):
                odd = sorted(set(parameters) ^ set(tensors))
                raise InputError(f"The adapter does not fit this network: {len(odd)} parameters differ, first {odd[0]}.")
            _copy({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, parameters)


def two_class_decoder(decoder: nn.Module) -> nn.Module:
    """A copy of a SAM mask decoder with two mask tokens: background, then target.

    The target starts as SAM's token 0, its answer to an unambiguous prompt. The background takes token 1 with the last
    layer of its hypernetwork at zero: softmax over (0, target) is then SAM's own sigmoid, so training starts from the
    base model's masks rather than from a head that must be learned first.
    """
    twin = copy.deepcopy(decoder)
    with torch.no_grad():
        base_tokens = decoder.mask_tokens.weight
        twin.mask_tokens = nn.Embedding(2, base_tokens.shape[1]).to(base_tokens)
        twin.mask_tokens.weight.copy_(torch.stack([base_tokens[1], base_tokens[0]]))
        background = copy.deepcopy(decoder.output_hypernetworks_mlps[1])
        background.layers[-1].weight.zero_()
        background.layers[-1].bias.zero_()
        twin.output_hypernetworks_mlps = nn.ModuleList(
            [background, copy.deepcopy(decoder.output_hypernetworks_mlps[0])]
        )
        last = decoder.iou_prediction_head.layers[-1]
        twin.iou_prediction_head.layers[-1] = nn.Linear(last.in_features, 2).to(last.weight)
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
    network.prompt_encoder, network.mask_decoder = base  # type: ignore[assignment]
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
