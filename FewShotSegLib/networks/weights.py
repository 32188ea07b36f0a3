"""Network weights: exporting them for an adapter, loading them from a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from FewShotSegLib.errors import InputError

Array = np.ndarray[Any, Any]

# Keys of the state dict in training checkpoints (MONAI, nnU-Net, Lightning).
_CONTAINERS = ("state_dict", "model", "network_weights", "network", "net", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # added to every name by DataParallel and torch.compile
# And by wrappers of promptable models.
WRAPPERS = (*_PREFIXES, "sam_model.", "sam.", "model.", "net.", "network.")


def weights_of(network: nn.Module) -> dict[str, Array]:
    """Return parameters and running statistics by name, as float32 arrays: what an `Adapter` holds.

    Each tensor once, under its first name (`DynUNet` lists its blocks twice). Integer buffers are left out: they follow
    from the architecture, or count batches.
    """
    return {name: value.detach().float().cpu().numpy().copy() for name, value in _tensors(network).items()}


def load_weights(
    network: nn.Module, source: str | os.PathLike[str] | Mapping[str, Array | Tensor], *, head: bool = True
) -> None:
    """Load weights of the same architecture into the network: all of them or, if they do not match, none.

    `source` is a `.safetensors` file, a `.pt` or `.pth` checkpoint (loaded without executing code from it), or tensors
    by name. Without `head` the last layer keeps its values: for weights that were trained on other structures.
    """
    where, given = ("The weights", dict(source)) if isinstance(source, Mapping) else _read(Path(source))
    last: tuple[str, ...] = () if head else network.HEAD  # type: ignore[assignment]
    own = _tensors(network)
    wanted = {name: value for name, value in own.items() if not name.startswith(last)}
    not_needed = set(network.state_dict()) - set(wanted)  # aliases, integer buffers, the last layer
    values = {_plain(name): torch.as_tensor(value) for name, value in given.items()}
    # The last layer for other structures may have a different number of tensors.
    values = {name: value for name, value in values.items() if name not in not_needed and not name.startswith(last)}
    kind = f"{type(network).__name__} of this size"
    missing, unknown = sorted(set(wanted) - set(values)), sorted(set(values) - set(wanted))
    if missing or unknown:
        what = f"{len(missing)} are missing" if missing else f"{len(unknown)} are not known to it"
        raise InputError(
            f"{where} does not hold the weights of a {kind}: of {len(wanted)} parameters {what}, first "
            f"{(missing or unknown)[0]}. Choose the file of the same network, or build the network it was made for."
        )
    for name, value in wanted.items():
        if values[name].shape != value.shape:
            raise InputError(
                f"{where}: {name} has the shape {tuple(values[name].shape)}, a {kind} needs {tuple(value.shape)}. "
                "Build the network with the patch, size and channels of the file; if only the last layer differs, "
                "leave that out."
            )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(values[name])


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and floating-point buffers by their first name."""
    buffers = {name: value for name, value in network.named_buffers() if value.is_floating_point()}
    return dict(network.named_parameters()) | buffers


def plain_weights(content: Any, path: Path, prefixes: Sequence[str] = _PREFIXES) -> dict[str, Tensor]:
    """Return the tensors by name from the content of a checkpoint file: unnested from a training checkpoint, and
    without the prefixes of data parallelism, compilation or wrappers."""
    inner: Any = content
    while isinstance(inner, dict):
        content, inner = inner, next((inner[key] for key in _CONTAINERS if isinstance(inner.get(key), dict)), None)
    given = content if isinstance(content, dict) else {}
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise InputError(f"{path} holds no table of weights by name; save the network's state_dict().")
    for prefix in _shared_prefixes(tensors, prefixes):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _shared_prefixes(tensors: Mapping[str, Tensor], prefixes: Sequence[str]) -> list[str]:
    """The known prefixes common to all names, outermost first."""
    found: list[str] = []
    names = list(tensors)
    while prefix := next((p for p in prefixes if all(name.startswith(p) for name in names)), None):
        found.append(prefix)
        names = [name.removeprefix(prefix) for name in names]
    return found


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return a display name of the file, and its tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"The file of weights {path} does not exist; check the path.")
    unreadable = f"{path} is not a readable file of weights, or holds more than weights; get it again"
    if path.suffix.lower() == ".safetensors":
        try:
            return str(path), load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{unreadable} ({error}).") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # many types, with PyTorch's advice to load the file without safeguards
        raise InputError(f"{unreadable}.") from error
    return str(path), plain_weights(content, path)
