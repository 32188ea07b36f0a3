"""The adaptation methods, one file or folder each. To add one, implement `Method` and register it here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.errors import InputError
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.training.context import AdaptInputs, RunContext

# Name -> module below this folder.
_MODULES = {"lora": "lora", "asap": "asap.method", "uda": "uda.method", "gmiseg": "gmiseg"}
METHODS = tuple(_MODULES)


class Method(Protocol):
    """The interface of a method's module; panel, jobs and tests use nothing else."""

    LABEL: str
    """Display name in the list of methods."""
    NEEDS: frozenset[str]
    """Required inputs: some of "exemplars", "auxiliary", "source", "targets"."""
    Recipe: type[Any]
    """Its options, a frozen dataclass."""

    def needs_base(self, recipe: Any) -> bool:
        """Whether a promptable base model is adapted."""

    def resolve(self, recipe: Any, family: str, device: torch.device) -> Any:
        """The recipe completed from its preset."""

    def smaller_preset(self, name: str) -> str | None:
        """The preset to try after running out of memory."""

    def preflight(self, exemplars: Sequence[Exemplar]) -> list[str]:
        """Warnings about potential problems with these exemplars."""

    def training_samples(self, inputs: AdaptInputs, recipe: Any, rng: np.random.Generator, count: int) -> list[Sample]:
        """`count` training samples for this resolved recipe; nothing is trained."""

    def adapt(self, inputs: AdaptInputs, recipe: Any, run: RunContext) -> Adapter:
        """Train an adapter."""


def method(name: str) -> Method:
    """The method of that name."""
    if name not in _MODULES:
        raise InputError(f"Unknown method {name!r}; allowed are {', '.join(METHODS)}.")
    return cast(Method, importlib.import_module(f"{__name__}.{_MODULES[name]}"))
