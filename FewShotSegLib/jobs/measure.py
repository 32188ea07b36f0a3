"""Time and memory estimate of an adaptation on this computer, from its own first steps."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.devices import choose_device
from FewShotSegLib.errors import Cancelled
from FewShotSegLib.methods import method
from FewShotSegLib.progress import Progress, Report, note, silent

from .adapt import family_of, recipe_of
from .run import run


def measure(job: AdaptJob, report: Report = silent, steps: int = 3) -> dict[str, Any]:
    """Train the first `steps` steps of the job, discard the result, and return an estimate for all of it.

    `seconds` is for the whole job, including reading files; `seconds_per_step`; `memory_bytes` is the peak usage so
    far, of the GPU if one is used, of this process otherwise; `free_bytes` is what is currently free there; `device`;
    `preset`, if the method has presets. None for values that the system does not provide.
    """
    device = choose_device(job.device, lambda sentence: report(note(sentence)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    watch = _Stopwatch(report, steps)
    with tempfile.TemporaryDirectory(prefix="fewshotseg-") as folder:
        try:
            run(replace(job, out=str(Path(folder) / "measured.safetensors")), watch)
        except Cancelled:
            if not watch.has_seen_enough:
                raise
    seconds = watch.seconds_of_all()
    return {
        "seconds": seconds if job.max_seconds is None else min(seconds, watch.start_s + job.max_seconds),
        "seconds_per_step": watch.seconds_per_step(),
        "memory_bytes": used_bytes(device),
        "free_bytes": _free_bytes(device),
        "device": device.type,
        "preset": _preset(job, device),
    }


class _Stopwatch:
    """A progress callback that records the time of each step, and ends the work after enough of them."""

    def __init__(self, report: Report, steps: int) -> None:
        self._report, self._steps = report, steps
        self._started = time.perf_counter()
        self._seen: list[tuple[float, float]] = []  # seconds since the start, fraction of all steps done

    def __call__(self, progress: Progress) -> None:
        self._report(progress)
        share = progress.metrics.get("done", progress.fraction if progress.metrics else None)
        if share:
            self._seen.append((time.perf_counter() - self._started, share))
        if self.has_seen_enough:
            raise Cancelled("Measured.")

    @property
    def has_seen_enough(self) -> bool:
        return len(self._seen) > self._steps  # one more: the first step is slow

    @property
    def start_s(self) -> float:
        return self._seen[0][0]

    def seconds_per_step(self) -> float:
        (first, _), (last, _) = self._seen[0], self._seen[-1]
        return (last - first) / max(len(self._seen) - 1, 1)

    def seconds_of_all(self) -> float:
        (first, before), (last, share) = self._seen[0], self._seen[-1]
        return last if share == before else last + (last - first) * (1 - share) / (share - before)


def _preset(job: AdaptJob, device: torch.device) -> str | None:
    module = method(job.method)
    recipe = recipe_of(job)
    if not module.needs_base(recipe):
        return None
    return getattr(module.resolve(recipe, family_of(job, recipe), device), "preset", None)


def used_bytes(device: torch.device) -> int | None:
    """Peak bytes in use so far: on a GPU PyTorch's, on a CPU the process's; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if "SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
