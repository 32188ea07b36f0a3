"""The methods of adaptation, a file or a folder each. Adding one: write it as `Method` says, and name it here."""

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
    """What the module of a method offers; panel, jobs and tests use nothing else of it."""

    LABEL: str
    """A line for the list of methods."""
    NEEDS: frozenset[str]
    """What it learns from: some of "exemplars", "auxiliary", "source", "targets"."""
    Recipe: type[Any]
    """Its options, a frozen dataclass."""

    def needs_base(self, recipe: Any) -> bool:
        """Whether a promptable base model is adapted."""

    def resolve(self, recipe: Any, family: str, device: torch.device) -> Any:
        """The recipe with everything filled in that its preset decides."""

    def smaller_preset(self, name: str) -> str | None:
        """The preset to try when memory ran out."""

    def preflight(self, exemplars: Sequence[Exemplar]) -> list[str]:
        """Sentences on what may go wrong with these exemplars."""

    def training_samples(self, inputs: AdaptInputs, recipe: Any, rng: np.random.Generator, count: int) -> list[Sample]:
        """`count` samples of what would be trained on with this resolved recipe; nothing is trained."""

    def adapt(self, inputs: AdaptInputs, recipe: Any, run: RunContext) -> Adapter:
        """Train an adapter."""


def method(name: str) -> Method:
    """The method of that name."""
    if name not in _MODULES:
        raise InputError(f"Unknown method {name!r}; allowed are {', '.join(METHODS)}.")
    return cast(Method, importlib.import_module(f"{__name__}.{_MODULES[name]}"))
