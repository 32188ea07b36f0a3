"""The result of a method, stored as one file: tensors, and a card with their metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from FewShotSegLib.errors import InputError

from .digests import sha256_of_array
from .intensity import IntensitySpec
from .volume import checked_structures

Array = np.ndarray[Any, np.dtype[Any]]

FORMAT = 1
# The compact model was called "bundled", and at 384 pixels "bundled-384", until a better one replaced it.
_COMPACT = "ad0b5bde1943e820aeee7185230327e3383b747af1efadca25c8752ed9360d39"
_RENAMED = {("bundled", _COMPACT): "bundled-small", ("bundled-384", _COMPACT): "bundled-small-384"}
_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, eq=False)
class Adapter:
    """Trained weights and all metadata needed to use them: their base model, the structures, the intensity rule, the
    image size and slice axis (array axis), and how they were made.

    A network trained from scratch has `architecture` instead of a base model (`base_model` and `base_sha256` empty).
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
            raise InputError("An adapter needs the name of its base model, or its own architecture.")
        self._check_kinds()

    def _check_kinds(self) -> None:
        """A card from a file may contain anything: each entry must have its declared type, or the file is rejected."""
        if isinstance(self.axis, bool) or self.axis not in (0, 1, 2):
            raise InputError(f"An adapter's slice axis is 0 (k), 1 (j) or 2 (i), got {self.axis!r}.")
        for name in ("method", "base_model", "base_sha256"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"An adapter's {name} is a text, got {getattr(self, name)!r}.")
        for name in ("recipe", "provenance", "metrics"):
            if not isinstance(getattr(self, name), Mapping):
                raise InputError(f"An adapter's {name} is a table of names and values, got {getattr(self, name)!r}.")
        if self.architecture is not None and not isinstance(self.architecture, Mapping):
            raise InputError(f"An adapter's architecture is a table or none, got {self.architecture!r}.")
        for name, most in (("image_size", 65536), ("seed", 2**63)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < most:
                raise InputError(f"An adapter's {name} is a whole number from 0 to {most - 1}, got {value!r}.")

    @property
    def base_name(self) -> str:
        """The current name of the base model."""
        return current_name(self.base_model, self.base_sha256)

    @property
    def digest(self) -> str:
        """SHA-256 over the card and every tensor: equal for equal content, on every computer."""
        return digest_of_adapter(_plain_card(self), self.tensors)


def card(adapter: Adapter) -> dict[str, Any]:
    """Return everything but the weights as JSON types, with the digest."""
    return _plain_card(adapter) | {"digest": adapter.digest}


def current_name(base_model: str, base_sha256: str) -> str:
    """The current name of a card's base model: names have changed, files have not."""
    return _RENAMED.get((base_model, base_sha256), base_model)


def best_step_of(metrics: Mapping[str, Any]) -> int | None:
    """The step with the best validation, from the metrics of a card; None without validation (in version 0.1.0: -1)."""
    best = metrics.get("best_step")
    return best if isinstance(best, int) and best >= 0 else None


def check_base(adapter: Adapter, base_name: str, base_sha256: str) -> None:
    """Raise `InputError` naming both base models if the adapter was made for a different one."""
    if adapter.architecture is not None and not adapter.base_model:
        return
    if adapter.base_sha256 == base_sha256:
        return
    made_for = f"{adapter.base_name} (sha256 {adapter.base_sha256[:12]})"
    raise InputError(
        f"The adapter was made for the base model {made_for}, got {base_name} (sha256 {base_sha256[:12]}); choose "
        f"{adapter.base_name} or adapt again."
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


def _checked_tensors(tensors: Mapping[str, Any]) -> dict[str, Array]:
    result = {}
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        if array.dtype.name not in _DTYPES:
            raise InputError(f'Tensor "{name}" has the type {array.dtype}; adapters hold {", ".join(_DTYPES)}.')
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f'Tensor "{name}" holds numbers that are not finite (NaN or Inf); adapt again.')
        result[name] = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return result


def _as_json(name: str, value: Any) -> Any:
    """Return a copy in JSON types, so that an adapter compares equal after a round trip through a file."""
    try:
        return json.loads(dumped(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"An adapter's {name} must be texts, finite numbers, lists and tables ({error}).") from None


def dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def digest_of_adapter(plain_card: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(dumped(plain_card).encode())
    for name in sorted(tensors):  # the checksum of each tensor covers dtype, shape and values
        digest.update(f"\n{json.dumps(name)} {sha256_of_array(tensors[name])}".encode())
    return digest.hexdigest()
