"""Load a predictor: device, base model, adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.recipe import from_dict
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.progress import Report, silent
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.sam.presets import affordable_size

from . import support
from .embedding_cache import EmbeddingCache
from .predictor import Predictor
from .structure_maps import MapPredictor, has_maps
from .volume_network import VolumePredictor, is_volume_network


def load_any_predictor(adapter_path: str | None, base: str | None, device: torch.device) -> Predictor | VolumePredictor:
    """Like `load_predictor`, but also loads adapters that are 3-D networks, for which `base` is ignored."""
    return predictor_for(load_adapter(adapter_path) if adapter_path else None, base, device, adapter_path)


def predictor_for(
    adapter: Adapter | None, base: str | None, device: torch.device, name: str | None = "The adapter"
) -> Predictor | VolumePredictor:
    """The predictor of an in-memory adapter; `name` is used in error messages."""
    if adapter is not None and is_volume_network(adapter):
        return VolumePredictor(adapter, device)
    return _promptable(adapter, name, base, device)


def load_predictor(adapter_path: str | None, base: str | None, device: torch.device) -> Predictor:
    """An adapter on the base model it was made for (or on `base`), or a base model alone (default: "bundled")."""
    adapter = load_adapter(adapter_path) if adapter_path else None
    if adapter is not None and is_volume_network(adapter):
        raise InputError(
            f"{adapter_path} is a 3-D network, which segments whole volumes and does not take clicks; click with the "
            "base model, or with an adapter of it."
        )
    return _promptable(adapter, adapter_path, base, device)


def load_support_predictor(
    exemplars: Sequence[Exemplar],
    adapter: Adapter | str | None,
    base: str | None,
    device: torch.device,
    recipe: Mapping[str, Any],
    intensity: IntensitySpec | None = None,
    report: Report = silent,
) -> support.SupportPredictor:
    """A support set on a base model (default: "bundled"), or on an adapter without named structures.

    `adapter` is in memory or a file. `recipe` holds the options of `SupportRecipe` that differ from its defaults;
    `intensity` None: chosen by the kind of image.
    """
    chosen = from_dict(support.SupportRecipe, recipe)
    name = adapter if isinstance(adapter, str) else "The adapter"
    adapter = load_adapter(adapter) if isinstance(adapter, str) else adapter
    if adapter is not None and adapter.structures:
        raise InputError(
            f"{name} has learned {', '.join(adapter.structures.values())}: a support set goes with a base "
            "model alone, or with an adapter of the method gmiseg. Leave one of the two out."
        )
    network = _network(adapter, name, base, device, looks=True)
    if intensity is not None:
        intensity = replace(intensity, scale=network.scale)
    made = support.support_adapter(exemplars, network, intensity=intensity, recipe=chosen)
    return support.SupportPredictor(network, made, trained=adapter, report=report)


def _promptable(adapter: Adapter | None, adapter_path: str | None, base: str | None, device: torch.device) -> Predictor:
    network = _network(adapter, adapter_path, base, device)
    if adapter is not None and adapter.method == support.METHOD:
        return support.SupportPredictor(network, adapter)
    return predictor_of(network, adapter)


def predictor_of(
    network: PromptableNetwork, adapter: Adapter | None, *, cache: EmbeddingCache | None = None
) -> Predictor:
    """The predictor of the base model, or of an adapter of it."""
    if adapter is not None and has_maps(adapter):
        return MapPredictor(network, adapter, cache=cache)
    return Predictor(network, adapter, cache=cache)


def _network(
    adapter: Adapter | None, adapter_path: str | None, base: str | None, device: torch.device, looks: bool = False
) -> PromptableNetwork:
    """The base model of that name, or the one the adapter was made for. Without an adapter it has its default image
    size, or the one that adaptation methods would choose if it encodes a support set (`looks`).
    """
    if adapter is None:
        name = base or registry.DEFAULT
        size = affordable_size(name, device) if looks else None
        return load_base(name, image_size=size, device=str(device))
    name = base or adapter.base_name
    known = {model.name for model in registry.models()}
    if base is None and name not in known:
        raise InputError(
            f"{adapter_path} was made for the base model {name}, which is not on this computer; give its file "
            "(--base FILE; in Slicer: Settings, Add a model file)."
        )
    return load_base(name, image_size=adapter.image_size, device=str(device))
