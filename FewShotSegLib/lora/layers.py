"""LoRA for SAM: q and v of the fused qkv projection, decoder attention, optional MLPs (Hu et al. 2022).

Two kinds of adapter: LoRA, and Loose LoRA as we read it in GMISeg (Xu 2024, section 3.2).

The base is not modified. `attach` puts a wrapper in the place of each adapted Linear and leaves the Linear itself
alone, so `detach` restores the very same modules, bit for bit.

Names: `image_encoder.blocks.0.attn.qkv.lora_q.A`, `mask_decoder.transformer.layers.1.self_attn.v_proj.lora.B`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from FewShotSegLib.errors import InputError


class LowRank(nn.Module):
    """scale * B A x with A (rank, in) and B (out, rank); zero at initialization because B is."""

    def __init__(self, base: nn.Linear, out_features: int, spec: LoraSpec, generator: torch.Generator) -> None:
        super().__init__()
        weight = base.weight
        self.scale = spec.scale
        self.A = nn.Parameter(_kaiming_uniform((spec.rank, base.in_features), generator).to(weight))
        self.B = nn.Parameter(weight.new_zeros(out_features, spec.rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.A), self.B) * self.scale

    def delta(self) -> Tensor:
        """The weight update, (out, in)."""
        return self.scale * (self.B @ self.A)


class LooseLowRank(nn.Module):
    """scale * W z, where z are the channel-pooled outputs of four consecutive linear layers; zero at initialization
    because W is.

    The layers go in -> 4 rank -> rank -> 4 rank -> out, with A1, A2, B1, B2; each output is averaged over its channels
    to `rank` values, and W (out, 4 rank) takes the concatenation of all four. The paper gives a figure and no formula.
    Without an activation, which it does not mention, all of this is one matrix of rank at most 2 rank: the third and
    fourth layer see only the output of the second. Pooling over tokens instead would lose all spatial information.
    """

    def __init__(self, base: nn.Linear, out_features: int, spec: LoraSpec, generator: torch.Generator) -> None:
        super().__init__()
        weight, rank, wide = base.weight, spec.rank, 4 * spec.rank
        self.scale, self.rank = spec.scale, rank
        self.A1 = nn.Parameter(_kaiming_uniform((wide, base.in_features), generator).to(weight))
        self.A2 = nn.Parameter(_kaiming_uniform((rank, wide), generator).to(weight))
        self.B1 = nn.Parameter(_kaiming_uniform((wide, rank), generator).to(weight))
        self.B2 = nn.Parameter(_kaiming_uniform((out_features, wide), generator).to(weight))
        self.W = nn.Parameter(weight.new_zeros(out_features, 4 * rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.pooled()), self.W) * self.scale

    def pooled(self) -> Tensor:
        """The matrix (4 rank, in) from x to z. Pooling is linear, so the wide layers are never evaluated per token."""
        inner = self.A2 @ self.A1
        layers = (self.A1, inner, self.B1 @ inner, self.B2 @ (self.B1 @ inner))
        return torch.cat([F.adaptive_avg_pool1d(layer.T, self.rank).T for layer in layers])

    def delta(self) -> Tensor:
        """The weight update, (out, in)."""
        return self.scale * (self.W @ self.pooled())


# The adapter class of each kind. Each takes (base, out_features, spec, generator).
KINDS: dict[str, Callable[[nn.Linear, int, LoraSpec, torch.Generator], LowRank | LooseLowRank]] = {
    "lora": LowRank,
    "loose": LooseLowRank,
}


@dataclass(frozen=True)
class LoraSpec:
    """Which parts of a network get adapters, and of what size. The update is scaled by alpha / rank.

    `alpha` None means alpha = rank, a scale of 1, as in SAMed (Zhang and Liu 2023); peft's default is 2 at rank 4.
    `encoder_blocks` None means all; adapting only a few late blocks saves most of the memory. `mlp` adds the encoder's
    MLP layers.
    `kind` "loose" takes about six times the parameters of "lora" for twice the rank.
    """

    rank: int = 4
    alpha: float | None = None
    encoder_blocks: tuple[int, ...] | None = None
    encoder: bool = True
    decoder: bool = True
    mlp: bool = False
    kind: str = "lora"

    def __post_init__(self) -> None:
        if self.encoder_blocks is not None:  # JSON has lists only
            object.__setattr__(self, "encoder_blocks", tuple(self.encoder_blocks))
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(
                f"LoRA rank {self.rank!r} is not allowed: give a whole number of 1 or more, for example 4."
            )
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(
                f"LoRA alpha {self.alpha!r} is not allowed: give a positive number, or none for alpha = rank."
            )
        if self.kind not in KINDS:
            raise InputError(f"LoRA kind {self.kind!r} is unknown: choose one of {', '.join(map(repr, KINDS))}.")
        if not (self.encoder or self.decoder):
            raise InputError("LoRA has no target: switch on the encoder, the decoder or both.")
        if self.mlp and not self.encoder:
            raise InputError("LoRA mlp=True adapts the encoder's MLPs, but encoder=False: switch one of them.")

    @property
    def scale(self) -> float:
        """Scaling factor of the low-rank product.

        >>> LoraSpec(rank=4).scale, LoraSpec(rank=4, alpha=8).scale
        (1.0, 2.0)
        """
        return (self.rank if self.alpha is None else self.alpha) / self.rank


def _kaiming_uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    # kaiming_uniform with a = sqrt(5), which is U(-1/sqrt(in), 1/sqrt(in)); drawn on the generator's device in
    # float32, so that one seed gives the same initialization on every device and in every precision.
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    return (2 * uniform - 1) / math.sqrt(shape[1])


class _Adapted(nn.Module):
    """A Linear with parallel adapters. `base` is never written to."""

    base: nn.Linear

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def delta(self) -> Tensor:
        """The weight update, (out, in)."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The effective dense weight of this module, (out, in)."""
        return self.base.weight + self.delta()

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base, which is not adapted."""
        return self.base.bias


class LoraLinear(_Adapted):
    """A Linear plus one adapter."""

    def __init__(self, base: nn.Linear, spec: LoraSpec, generator: torch.Generator) -> None:
        super().__init__(base)
        self.lora = KINDS[spec.kind](base, base.out_features, spec, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora(x)

    def delta(self) -> Tensor:
        return self.lora.delta()


class LoraQKV(_Adapted):
    """The fused projection [q; k; v] with adapters on q and v; k is untouched."""

    def __init__(self, base: nn.Linear, spec: LoraSpec, generator: torch.Generator) -> None:
        super().__init__(base)
        width = base.out_features // 3
        self.lora_q = KINDS[spec.kind](base, width, spec, generator)
        self.lora_v = KINDS[spec.kind](base, width, spec, generator)

    def forward(self, x: Tensor) -> Tensor:
        # cat, not an in-place sum, so that quantized or compiled bases work. Last axis: any token layout.
        q, k, v = self.base(x).chunk(3, dim=-1)
        return torch.cat([q + self.lora_q(x), k, v + self.lora_v(x)], dim=-1)

    def delta(self) -> Tensor:
        q, v = self.lora_q.delta(), self.lora_v.delta()
        return torch.cat([q, torch.zeros_like(q), v])
