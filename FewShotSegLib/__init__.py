"""Few-shot segmentation of medical volumes: adapt a promptable model to a few annotated slices, on your own computer.

    import FewShotSegLib as fs

    mask = fs.Segmenter(fs.load_volume("ct.nrrd")).click((210, 160, 52))

Importing this package loads neither torch nor SimpleITK: Slicer imports every module at start, and torch may be absent.
The names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .api.adapter import Adapter, load_adapter
    from .api.inputs import make_exemplar
    from .api.mask import Mask
    from .api.plotting import plot_overlay
    from .api.runs import adapt, segment, segment_folder
    from .api.scores import Evaluation, evaluate
    from .api.segmenter import Segmenter
    from .data.exemplar import Exemplar
    from .data.job import AdaptJob, EvaluateJob, ExemplarFiles, Job, SegmentJob
    from .data.prompt import Prompt
    from .data.volume import Labelmap, Volume
    from .errors import Cancelled, InputError, StopAndKeepBest
    from .io.adapters import save_adapter
    from .io.exemplars import load_exemplar
    from .io.prompts import load_prompts
    from .io.volumes import load_labelmap, load_volume, save_labelmap, save_volume
    from .jobs.run import run
    from .progress import Progress

# Public name -> module that defines it.
_HOME = {
    "Adapter": "api.adapter",
    "AdaptJob": "data.job",
    "Cancelled": "errors",
    "EvaluateJob": "data.job",
    "Evaluation": "api.scores",
    "Exemplar": "data.exemplar",
    "ExemplarFiles": "data.job",
    "InputError": "errors",
    "Job": "data.job",
    "Labelmap": "data.volume",
    "Mask": "api.mask",
    "Progress": "progress",
    "Prompt": "data.prompt",
    "SegmentJob": "data.job",
    "Segmenter": "api.segmenter",
    "StopAndKeepBest": "errors",
    "Volume": "data.volume",
    "adapt": "api.runs",
    "evaluate": "api.scores",
    "load_adapter": "api.adapter",
    "load_exemplar": "io.exemplars",
    "load_labelmap": "io.volumes",
    "load_prompts": "io.prompts",
    "load_volume": "io.volumes",
    "make_exemplar": "api.inputs",
    "plot_overlay": "api.plotting",
    "run": "jobs.run",
    "save_adapter": "io.adapters",
    "save_labelmap": "io.volumes",
    "save_volume": "io.volumes",
    "segment": "api.runs",
    "segment_folder": "api.runs",
}

__all__ = [
    "AdaptJob",
    "Adapter",
    "Cancelled",
    "EvaluateJob",
    "Evaluation",
    "Exemplar",
    "ExemplarFiles",
    "InputError",
    "Job",
    "Labelmap",
    "Mask",
    "Progress",
    "Prompt",
    "SegmentJob",
    "Segmenter",
    "StopAndKeepBest",
    "Volume",
    "__version__",
    "adapt",
    "evaluate",
    "load_adapter",
    "load_exemplar",
    "load_labelmap",
    "load_prompts",
    "load_volume",
    "make_exemplar",
    "plot_overlay",
    "run",
    "save_adapter",
    "save_labelmap",
    "save_volume",
    "segment",
    "segment_folder",
]


def __getattr__(name: str) -> object:
    """Import the module of a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
