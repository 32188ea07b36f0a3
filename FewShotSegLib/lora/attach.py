"""Attaching LoRA to a network: target layers, attaching and detaching, merging into the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from FewShotSegLib.errors import InputError

from .layers import LoraLinear, LoraQKV, LoraSpec


def target_names(network: nn.Module, spec: LoraSpec) -> dict[str, type[LoraLinear] | type[LoraQKV]]:
    """Return module path -> wrapper for every Linear that `spec` adapts, in network order."""
    targets: dict[str, type[LoraLinear] | type[LoraQKV]] = {}
    if spec.encoder:
        for index in _encoder_blocks(network, spec):
            block = f"image_encoder.blocks.{index}"
            targets[f"{block}.attn.qkv"] = LoraQKV
            if spec.mlp:
                targets.update({f"{block}.mlp.lin1": LoraLinear, f"{block}.mlp.lin2": LoraLinear})
    if spec.decoder:
        transformer = network.get_submodule("mask_decoder.transformer")
        for name, _ in transformer.named_modules():
            if name.endswith(("self_attn", "token_to_image", "image_to_token")):
                for projection in ("q_proj", "v_proj"):
                    targets[f"mask_decoder.transformer.{name}.{projection}"] = LoraLinear
    return targets


def _encoder_blocks(network: nn.Module, spec: LoraSpec) -> tuple[int, ...]:
    depth = len(network.get_submodule("image_encoder.blocks"))  # type: ignore[arg-type]
    if spec.encoder_blocks is None:
        return tuple(range(depth))
    unknown = [index for index in spec.encoder_blocks if index not in range(depth)]
    if unknown or not spec.encoder_blocks:
        got = f"block {', '.join(map(str, unknown))}" if unknown else "an empty list of blocks"
        raise InputError(
            f"LoRA got {got}, but this image encoder has blocks {', '.join(map(str, range(depth)))}: "
            "choose among these, or leave the list out for all of them."
        )
    return tuple(sorted(set(spec.encoder_blocks)))


def _check_rank(rank: int, linears: Mapping[str, nn.Linear]) -> None:
    narrowest, name = min((min(linear.in_features, linear.out_features), name) for name, linear in linears.items())
    if rank > narrowest:
        raise InputError(
            f"LoRA rank {rank} is too large for {name}, which is {narrowest} wide: choose a rank from 1 to {narrowest}."
        )


@dataclass(frozen=True, eq=False)
class LoraHandle:
    """What `detach` needs to restore the network."""

    network: nn.Module
    spec: LoraSpec
    bases: Mapping[str, nn.Linear]
    requires_grad: tuple[tuple[nn.Parameter, bool], ...]

    def detach(self) -> None:
        """Restore the base modules and all requires_grad flags. Idempotent."""
        for name, base in self.bases.items():
            _replace(self.network, name, base)
        for parameter, flag in self.requires_grad:
            parameter.requires_grad_(flag)


def attach(network: nn.Module, spec: LoraSpec, *, generator: torch.Generator) -> LoraHandle:
    """Wrap the Linears that `spec` selects. The network's output is unchanged until the adapters are trained.

    `network` is any module with SAM's `image_encoder.blocks[i].attn.qkv` and `mask_decoder.transformer`.
    """
    if lora_modules(network):
        raise InputError("This network carries LoRA adapters already: detach them before attaching others.")
    wrappers = target_names(network, spec)
    bases = {name: _linear(network, name) for name in wrappers}
    _check_rank(spec.rank, bases)
    handle = LoraHandle(network, spec, bases, tuple((p, p.requires_grad) for p in network.parameters()))
    for name, base in bases.items():
        _replace(network, name, wrappers[name](base, spec, generator))
    return handle


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _linear(network: nn.Module, name: str) -> nn.Linear:
    module = network.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{name} is {type(module).__name__}, but LoRA adapts nn.Linear")
    return module


@contextlib.contextmanager
def attached(network: nn.Module, spec: LoraSpec, *, generator: torch.Generator) -> Iterator[LoraHandle]:
    """Attach adapters to the network for the block. Everything but the adapters is frozen inside.

    Afterwards, whether the block returned, failed or was cancelled, the base is bit-identical and its requires_grad
    flags are restored. Parameters that the block itself unfreezes and trains are the block's to restore.
    """
    handle = attach(network, spec, generator=generator)
    try:
        freeze(network)
        yield handle
    finally:
        handle.detach()


def freeze(network: nn.Module) -> None:
    """Freeze all but the adapters: pos_embed, relative positions, neck, decoder and prompt encoder are all fixed."""
    adapters = {id(p) for p in lora_parameters(network).values()}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in adapters)


def lora_modules(network: nn.Module) -> dict[str, LoraLinear | LoraQKV]:
    """Return module path -> wrapper of every adapted Linear."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLinear | LoraQKV)}


def lora_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of all adapters by name."""
    return {
        f"{path}.{name}": parameter
        for path, module in lora_modules(network).items()
        for name, parameter in module.named_parameters()
        if not name.startswith("base.")
    }


def lora_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of the adapter tensors by name, on the CPU."""
    return {name: p.detach().to("cpu", copy=True) for name, p in lora_parameters(network).items()}
