"""What has to be in place before slices can be answered for: a device, a base model on it, and an adapter on that."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import base_models
from .adapter import Adapter, load_adapter
from .errors import InputError
from .sam.loading import load_base
from .sam.predictor import Predictor
from .volume_networks import VolumePredictor, is_volume_network


def choose_device(wanted: str, say: Callable[[str], None]) -> torch.device:
    """The device for "auto", "cpu" or "cuda"; what "auto" came to is said through `say`."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InputError("No GPU that PyTorch can use was found; choose --device auto or cpu.")
    if wanted == "auto" and not available:
        say("Working on the CPU: no GPU that PyTorch can use was found.")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def load_any_predictor(adapter_path: str | None, base: str | None, device: torch.device) -> Predictor | VolumePredictor:
    """What `load_predictor` loads, or an adapter that is a 3-D network of its own; a base model means nothing to it."""
    adapter = load_adapter(adapter_path) if adapter_path else None
    if adapter is not None and is_volume_network(adapter):
        return VolumePredictor(adapter, device)
    return _promptable(adapter, adapter_path, base, device)


def load_predictor(adapter_path: str | None, base: str | None, device: torch.device) -> Predictor:
    """An adapter on the base model it was made for (or on `base`), or a base model alone (default: the bundled one)."""
    adapter = load_adapter(adapter_path) if adapter_path else None
    if adapter is not None and is_volume_network(adapter):
        raise InputError(
            f"{adapter_path} is a 3-D network, which segments whole volumes and answers no clicks; click with the base "
            "model, or with an adapter of it."
        )
    return _promptable(adapter, adapter_path, base, device)


def _promptable(adapter: Adapter | None, adapter_path: str | None, base: str | None, device: torch.device) -> Predictor:
    if adapter is None:
        return Predictor(load_base(base or "bundled", device=str(device)))
    name = base or adapter.base_model
    known = {model.name for model in base_models.models()}
    if base is None and name not in known:
        raise InputError(f"{adapter_path} was made for the base model {name}, which is not registered; give its file.")
    return Predictor(load_base(name, image_size=adapter.image_size, device=str(device)), adapter)
