"""What the prompt worker is asked for a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .Prompts import Place, SlicePrompt


@dataclass(frozen=True)
class Model:
    """What answers: an adapter file, a base model by name or file (None: the adapter's, or the default one)."""

    adapter: str | None = None
    base: str | None = None
    choice: int = 0
    """Counts the choices made, since a file may be written anew under its old name."""

    def toDict(self) -> dict[str, Any]:
        """Return the entries of a request that name the model."""
        return {"adapter": self.adapter, "base": self.base}


@dataclass(frozen=True)
class Question:
    """Everything that a mask depends on. An answer counts only while the same question would be asked again."""

    volume: str
    model: Model
    segmentation: str
    segmentId: str
    structure: str
    axis: int
    index: int
    prompt: SlicePrompt

    @property
    def place(self) -> Place:
        return self.segmentId, self.axis, self.index

    def request(self) -> dict[str, Any]:
        """Return it as the worker takes it."""
        prompt = self.prompt.toDict(self.axis, self.index) | {"structure": self.structure}
        return {"op": "predict", "volume": self.volume, "view": "live", "prompt": prompt, **self.model.toDict()}
