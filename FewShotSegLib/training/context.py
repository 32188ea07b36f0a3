"""Arguments of a method: the training inputs, and the context of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.io.datasets import DataSet
from FewShotSegLib.progress import Report, silent
from FewShotSegLib.sam.network import PromptableNetwork


@dataclass(frozen=True, eq=False)
class AdaptInputs:
    """Training inputs. A method uses the parts that its `NEEDS` name and ignores none that it is given.

    `base` is the promptable network to adapt; it is bit-identical afterwards; None where a 3-D network is trained.
    `auxiliary` are labelled data sets of other structures or images, `source` is the labelled data set of the source
    domain, `targets` {name: volume} are unlabelled. `intensity` None: chosen from the first exemplar, or the first
    target. `start` is an adapter to continue training from.
    """

    base: PromptableNetwork | None = None
    exemplars: Sequence[Exemplar] = ()
    auxiliary: Sequence[DataSet] = ()
    source: DataSet | None = None
    targets: Mapping[str, Volume] = field(default_factory=dict)
    intensity: IntensitySpec | None = None
    start: Adapter | None = None

    @property
    def promptable_base(self) -> PromptableNetwork:
        """The base, for methods that always have one."""
        if self.base is None:
            raise TypeError("This method adapts a promptable network, and none was given.")
        return self.base

    def intensity_of_exemplars(self) -> IntensitySpec:
        """How exemplars and images like them are scaled."""
        return self.intensity or IntensitySpec.auto(self.exemplars[0].volume)


@dataclass(frozen=True, eq=False)
class RunContext:
    """The run: its random generator, progress callback, device and time limit.

    `report` is called at every step and may raise `Cancelled` (nothing is kept) or, while told that it can stop,
    `StopAndKeepBest`. `checkpoint` makes the run resumable; the caller removes it once the adapter is saved.
    """

    rng: np.random.Generator
    report: Report = silent
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_seconds: float | None = None
    checkpoint: Path | None = None

    def new_seed(self) -> int:
        """A seed for a part of the run, drawn from its generator."""
        return int(self.rng.integers(2**31))
