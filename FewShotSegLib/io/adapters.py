"""Adapters as safetensors files whose header is the card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from FewShotSegLib.data.adapter import FORMAT, Adapter, Array, card, current_name, digest_of_adapter, dumped
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.json_text import MOST_BYTES, parsed_table
from FewShotSegLib.errors import InputError

from .files import written_whole

# One key for the whole card: safetensors stores metadata in a hash map, so several keys would have no fixed order.
_HEADER_KEY = "fewshotseg"


_OTHER_VERSION = "{} was written by another version of this program; update, or adapt again."


def save_adapter(adapter: Adapter, path: str | os.PathLike[str]) -> None:
    """Write one `.safetensors` file atomically; equal content gives equal bytes."""
    from safetensors.numpy import save

    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f'An adapter file ends with ".safetensors", got {path}.')
    content = save(dict(adapter.tensors), metadata={_HEADER_KEY: dumped(card(adapter))})
    with written_whole(path) as part:
        part.write_bytes(content)


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Load an adapter; a truncated, modified or foreign file is rejected."""
    path = Path(path)
    values, tensors = _read(path)
    given = values.pop("digest", None)
    if given != _digest_of(values, tensors, path):
        raise InputError(f"{path} was changed or damaged after it was written (its checksum differs); copy it again.")
    return _from_card(values, tensors, path)


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the output of `card`, from the first kilobytes of the file and with the standard library alone.

    For lists of adapters: the integrity of the weights is not verified; `load_adapter` does that.
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
    name, digest = values.get("base_model"), values.get("base_sha256")
    if isinstance(name, str) and isinstance(digest, str):
        values["base_model"] = current_name(name, digest)
    return values


def _digest_of(values: dict[str, Any], tensors: dict[str, Array], path: Path) -> str:
    try:
        return digest_of_adapter(values, tensors)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is no complete adapter file ({error}).") from None


def _from_card(values: dict[str, Any], tensors: dict[str, Array], path: Path) -> Adapter:
    if values.pop("format", None) != FORMAT:
        raise InputError(_OTHER_VERSION.format(path))
    try:
        structures = {int(value): name for value, name in values.pop("structures").items()}
        intensity = IntensitySpec.from_dict(values.pop("intensity"))
        return Adapter(tensors, structures=structures, intensity=intensity, **values)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from None
        raise InputError(f"{path} is no complete adapter file ({error}).") from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return card and tensors as stored in the file, sorted by name."""
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
    """The JSON header of a safetensors file, preceded by its length in eight bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < MOST_BYTES:
            raise ValueError("it does not begin like one")
        return parsed_table(file.read(length), "The header")


def _card_in(metadata: Any, path: Path) -> dict[str, Any]:
    text = metadata.get(_HEADER_KEY) if isinstance(metadata, dict) else None
    none = f"{path} is a safetensors file, but no adapter of this program"
    if not isinstance(text, str):
        raise InputError(f"{none}.")
    try:
        return parsed_table(text, "Its card")
    except InputError as error:
        raise InputError(f"{none}. {error}") from None
