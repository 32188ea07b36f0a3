"""Adapters with methods for saving and loading."""

from __future__ import annotations

import dataclasses
import os

from FewShotSegLib.data import adapter as data
from FewShotSegLib.io.adapters import load_adapter as load_data
from FewShotSegLib.io.adapters import save_adapter


class Adapter(data.Adapter):
    """A trained adapter: a few megabytes of weights, and a card with their metadata.

    `structures` {label: name}, `metrics` and `provenance` describe what was learned and how; `adapt` trains adapters,
    `segment`, `segment_folder` and `Segmenter` use them.

    Examples
    --------
    >>> import FewShotSegLib as fs
    >>> adapter = fs.Adapter.load("organs.safetensors")  # doctest: +SKIP
    >>> adapter.structures  # doctest: +SKIP
    {1: 'liver', 4: 'spleen'}
    """

    @classmethod
    def of(cls, adapter: data.Adapter) -> Adapter:
        """Return the same content as an adapter of the API."""
        return cls(**{field.name: getattr(adapter, field.name) for field in dataclasses.fields(adapter)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Adapter:
        """Load a `.safetensors` file; a truncated, changed or foreign one is an `InputError`."""
        return cls.of(load_data(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.safetensors` file atomically; equal content gives equal bytes."""
        save_adapter(self, path)

    def __repr__(self) -> str:
        learned = ", ".join(self.structures.values()) or "no named structures"
        return f"Adapter({self.method} on {self.base_name or 'a stand-alone 3-D network'}: {learned})"


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Load an adapter; the same as `Adapter.load`."""
    return Adapter.load(path)
