"""LoRA adapters in the layout of Hugging Face peft, out and back.

peft adapts a whole Linear. For the fused qkv an adapter of rank 2r says exactly what our two of rank r say:
A = [Aq; Av] (2r, C) and B (3C, 2r) with Bq at the q rows of the first r columns, Bv at the v rows of the last r, zero
elsewhere. The decoder's adapters are plain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from FewShotSegLib.errors import InputError

from .attach import lora_modules, lora_tensors
from .layers import LoraQKV, LoraSpec

_PREFIX = "base_model.model."
# Settings of peft that change what the tensors mean, with the one value we can read.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "modules_to_save": None,
}


def to_peft(network: nn.Module, spec: LoraSpec) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, config) of the adapters attached to `network`.

    Save them as `adapter_model.safetensors` and `adapter_config.json`; peft then loads them onto the same network.
    """
    if spec.kind != "lora":
        raise InputError(f"Adapters of kind {spec.kind!r} have no peft layout: only kind 'lora' can be exported.")
    ours, tensors = lora_tensors(network), {}
    modules = lora_modules(network)
    for name, module in modules.items():
        if isinstance(module, LoraQKV):
            a, b = _fused(*(ours[f"{name}.{part}"] for part in ("lora_q.A", "lora_q.B", "lora_v.A", "lora_v.B")))
        else:
            a, b = ours[f"{name}.lora.A"], ours[f"{name}.lora.B"]
        tensors[f"{_PREFIX}{name}.lora_A.weight"], tensors[f"{_PREFIX}{name}.lora_B.weight"] = a, b
    return tensors, _config(spec, sorted(modules))


def _fused(q_a: Tensor, q_b: Tensor, v_a: Tensor, v_b: Tensor) -> tuple[Tensor, Tensor]:
    width, rank = q_b.shape
    b = q_b.new_zeros(3 * width, 2 * rank)
    b[:width, :rank], b[2 * width :, rank:] = q_b, v_b
    return torch.cat([q_a, v_a]), b


def _config(spec: LoraSpec, targets: list[str]) -> dict[str, Any]:
    alpha = spec.scale * spec.rank
    # Twice the rank needs twice the alpha for the same scale alpha / rank.
    fused = any(target.endswith(".qkv") for target in targets)
    return {
        **_PLAIN,
        "r": spec.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "inference_mode": True,
        "target_modules": targets,
        "rank_pattern": {"qkv": 2 * spec.rank} if fused else {},
        "alpha_pattern": {"qkv": 2 * alpha} if fused else {},
    }


def from_peft(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[LoraSpec, dict[str, Tensor]]:
    """Return (spec, tensors) to `attach` and `load_lora_tensors`; refuses what our adapters cannot say exactly."""
    for key, plain in _PLAIN.items():
        # Lists left empty and settings left out mean the plain value.
        if (config.get(key, plain) or plain) != plain:
            raise InputError(f"This peft adapter has {key}={config[key]!r}, but only {plain!r} can be imported.")
    ours: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    ranks: dict[str, int] = {}
    for name, (a, b) in _pairs(tensors).items():
        scales[name] = _setting(config, "alpha_pattern", "lora_alpha", name) / a.shape[0]
        if name.endswith(".qkv"):
            ours.update({f"{name}.{part}": value for part, value in _split(name, a, b).items()})
            ranks[name] = a.shape[0] // 2
        else:
            ours.update({f"{name}.lora.A": a, f"{name}.lora.B": b})
            ranks[name] = a.shape[0]
    rank = _only_one("rank", ranks)
    return _spec(list(ranks), rank, _only_one("scale alpha/rank", scales)), ours


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return module path -> (A, B). peft in memory puts the adapter's name before `.weight`, on disk it does not."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, end = key.removeprefix(_PREFIX).partition(".lora_")
        if end not in ("A.weight", "B.weight", "A.default.weight", "B.default.weight"):
            raise InputError(f"{key} is not a LoRA tensor of peft: only names with .lora_A or .lora_B can be imported.")
        halves.setdefault(name, {})[end[0]] = tensor
    if not halves:
        raise InputError(
            "This peft adapter holds no tensors: give the file adapter_model.safetensors of a LoRA adapter."
        )
    lonely = [name for name, half in halves.items() if len(half) != 2]
    if lonely:
        raise InputError(f"{lonely[0]} has only one of lora_A and lora_B: the peft adapter is incomplete.")
    return {name: (half["A"], half["B"]) for name, half in halves.items()}


def _split(name: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Undo `_fused`."""
    rank, width = a.shape[0] // 2, b.shape[0] // 3
    others = (b[:width, rank:], b[width : 2 * width], b[2 * width :, :rank])
    if a.shape[0] % 2 or b.shape[0] % 3 or any(bool(part.any()) for part in others):
        raise InputError(
            f"{name} adapts more than q and v separately: only peft adapters whose first half of the rank changes q, "
            "whose second half changes v, and which leave k alone can be imported, such as those exported here."
        )
    return {"lora_q.A": a[:rank], "lora_q.B": b[:width, :rank], "lora_v.A": a[rank:], "lora_v.B": b[2 * width :, rank:]}


def _setting(config: Mapping[str, Any], pattern: str, default: str, name: str) -> float:
    for key, value in (config.get(pattern) or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", name):  # peft's keys are such expressions
            return float(value)
    if default not in config:
        raise InputError(f"The peft config lacks {default}: give the adapter_config.json that belongs to the tensors.")
    return float(config[default])


def _only_one(what: str, values: Mapping[str, Any]) -> Any:
    if len(set(values.values())) > 1:
        raise InputError(
            f"This peft adapter has several values of {what}, {sorted(set(values.values()))}: one is allowed."
        )
    return next(iter(values.values()))


def _spec(names: list[str], rank: int, scale: float) -> LoraSpec:
    blocks = {int(name.split(".")[2]) for name in names if name.startswith("image_encoder.blocks.")}
    return LoraSpec(
        rank=rank,
        alpha=scale * rank,
        encoder=bool(blocks),
        encoder_blocks=tuple(sorted(blocks)) or None,
        decoder=any(name.startswith("mask_decoder.") for name in names),
        mlp=any(".mlp." in name for name in names),
    )
