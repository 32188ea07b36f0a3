"""What a method learned, as one file: tensors, and a card that says where they belong."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.errors import InputError
from FewShotSegLib.files import written_whole

from .digests import sha256_of_array
from .intensity import IntensitySpec
from .volume import checked_structures

Array = np.ndarray[Any, np.dtype[Any]]

FORMAT = 1
# One key for the whole card: safetensors keeps its metadata in a hash map, several keys would come in any order.
_HEADER_KEY = "fewshotseg"
_LONGEST_HEADER = 100_000_000  # bytes; what safetensors itself allows
_OTHER_VERSION = "{} was written by another version of this program; update, or adapt again."
_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, eq=False)
class Adapter:
    """Trained weights and all that is needed to use them: the base model they belong to, the structures, the intensity
    rule, the image size and slice axis (array axis), and how they were made.

    A network trained from nothing has `architecture` instead of a base model (`base_model` and `base_sha256` empty).
    """

    tensors: Mapping[str, Array]
    method: str
    recipe: Mapping[str, Any]
    base_model: str
    base_sha256: str
    structures: Mapping[int, str]
    intensity: IntensitySpec
    image_size: int
    seed: int
    axis: int
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", _checked_tensors(self.tensors))
        object.__setattr__(self, "structures", checked_structures(self.structures))
        for name in ("recipe", "provenance", "metrics", "architecture"):
            object.__setattr__(self, name, _as_json(name, getattr(self, name)))
        if not self.base_model and self.architecture is None:
            raise InputError("An adapter needs the name of its base model, or an architecture of its own.")
        if self.axis not in (0, 1, 2):
            raise InputError(f"An adapter's slice axis is 0 (k), 1 (j) or 2 (i), got {self.axis!r}.")

    @property
    def digest(self) -> str:
        """SHA-256 over the card and every tensor: equal for equal content, on every computer."""
        return _digest(_plain_card(self), self.tensors)


def card(adapter: Adapter) -> dict[str, Any]:
    """Return everything but the weights as JSON types, with the digest."""
    return _plain_card(adapter) | {"digest": adapter.digest}


def save_adapter(adapter: Adapter, path: str | os.PathLike[str]) -> None:
    """Write one `.safetensors` file, whole or not at all; equal content gives equal bytes."""
    from safetensors.numpy import save

    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f'An adapter file ends with ".safetensors", got {path}.')
    content = save(dict(adapter.tensors), metadata={_HEADER_KEY: _dump(card(adapter))})
    with written_whole(path) as part:
        part.write_bytes(content)


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Load an adapter; a truncated, changed or foreign file is refused."""
    path = Path(path)
    values, tensors = _read(path)
    given = values.pop("digest", None)
    if given != _digest(values, tensors):
        raise InputError(f"{path} was changed or damaged after it was written (its checksum differs); copy it again.")
    return _from_card(values, tensors, path)


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `card` returns, from the first kilobytes of the file and with the standard library alone.

    For lists of adapters: whether the weights behind the card are whole is not looked at; `load_adapter` does that.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The adapter file {path} does not exist; check the path.")
    try:
        header = _header_of(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable adapter file, or only a part of one ({error}).") from None
    values = _card_in(header.get("__metadata__"), path)
    if values.get("format") != FORMAT:
        raise InputError(_OTHER_VERSION.format(path))
    return values


def check_base(adapter: Adapter, base_name: str, base_sha256: str) -> None:
    """Raise `InputError` naming both base models when the adapter was made for another one."""
    if adapter.architecture is not None and not adapter.base_model:
        return
    if adapter.base_sha256 == base_sha256:
        return
    made_for = f"{adapter.base_model} (sha256 {adapter.base_sha256[:12]})"
    raise InputError(
        f"The adapter was made for the base model {made_for}, got {base_name} (sha256 {base_sha256[:12]}); choose "
        f"{adapter.base_model} or adapt again."
    )


def _plain_card(adapter: Adapter) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "method": adapter.method,
        "recipe": adapter.recipe,
        "base_model": adapter.base_model,
        "base_sha256": adapter.base_sha256,
        "structures": {str(value): name for value, name in adapter.structures.items()},
        "intensity": adapter.intensity.to_dict(),
        "image_size": int(adapter.image_size),
        "seed": int(adapter.seed),
        "axis": int(adapter.axis),
        "provenance": adapter.provenance,
        "metrics": adapter.metrics,
        "architecture": adapter.architecture,
    }


def _from_card(values: dict[str, Any], tensors: dict[str, Array], path: Path) -> Adapter:
    if values.pop("format", None) != FORMAT:
        raise InputError(_OTHER_VERSION.format(path))
    try:
        structures = {int(value): name for value, name in values.pop("structures").items()}
        intensity = IntensitySpec.from_dict(values.pop("intensity"))
        return Adapter(tensors, structures=structures, intensity=intensity, **values)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no complete adapter file ({error}).") from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return card and tensors as they stand in the file, in order of name."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"The adapter file {path} does not exist; check the path.")
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a readable adapter file, or only a part of one ({error}).") from None
    return _card_in(metadata, path), tensors


def _header_of(path: Path) -> dict[str, Any]:
    """The JSON at the beginning of a safetensors file: eight bytes say how long it is."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if 0 < length < _LONGEST_HEADER else None
    if not isinstance(header, dict):
        raise ValueError("it does not begin like one")
    return header


def _card_in(metadata: Any, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(metadata[_HEADER_KEY])
    except (KeyError, TypeError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path} is a safetensors file, but no adapter of this program.")
    return values


def _checked_tensors(tensors: Mapping[str, Any]) -> dict[str, Array]:
    result = {}
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        if array.dtype.name not in _DTYPES:
            raise InputError(f'Tensor "{name}" has the type {array.dtype}; adapters hold {", ".join(_DTYPES)}.')
        result[name] = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return result


def _as_json(name: str, value: Any) -> Any:
    """Return a copy in JSON types, so that an adapter equals itself after it went through a file."""
    try:
        return json.loads(_dump(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"An adapter's {name} must be texts, finite numbers, lists and tables ({error}).") from None


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _digest(plain_card: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(_dump(plain_card).encode())
    for name in sorted(tensors):  # a checksum of each tensor covers its type, shape and values
        digest.update(f"\n{json.dumps(name)} {sha256_of_array(tensors[name])}".encode())
    return digest.hexdigest()
