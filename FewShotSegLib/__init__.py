"""Few-shot segmentation of medical volumes: adapt a promptable model to a few annotated slices, on your own computer.

    from FewShotSegLib import load_volume, load_exemplar, load_adapter

Importing this package loads neither torch nor SimpleITK: Slicer imports every module at start, and torch may be absent.
The names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .data.adapter import Adapter
    from .data.exemplar import Exemplar
    from .data.job import Job
    from .data.prompt import Prompt
    from .data.volume import Labelmap, Volume
    from .errors import Cancelled, InputError
    from .io.adapters import load_adapter, save_adapter
    from .io.exemplars import load_exemplar
    from .io.prompts import load_prompts
    from .io.volumes import load_labelmap, load_volume, save_labelmap, save_volume
    from .jobs.run import run
    from .progress import Progress

# Public name -> module that defines it.
_HOME = {
    "Adapter": "data.adapter",
    "Cancelled": "errors",
    "Exemplar": "data.exemplar",
    "InputError": "errors",
    "Job": "data.job",
    "Labelmap": "data.volume",
    "Progress": "progress",
    "Prompt": "data.prompt",
    "Volume": "data.volume",
    "load_adapter": "io.adapters",
    "load_exemplar": "io.exemplars",
    "load_labelmap": "io.volumes",
    "load_prompts": "io.prompts",
    "load_volume": "io.volumes",
    "run": "jobs.run",
    "save_adapter": "io.adapters",
    "save_labelmap": "io.volumes",
    "save_volume": "io.volumes",
}

__all__ = [
    "Adapter",
    "Cancelled",
    "Exemplar",
    "InputError",
    "Job",
    "Labelmap",
    "Progress",
    "Prompt",
    "Volume",
    "__version__",
    "load_adapter",
    "load_exemplar",
    "load_labelmap",
    "load_prompts",
    "load_volume",
    "run",
    "save_adapter",
    "save_labelmap",
    "save_volume",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
