"""What the user asks of an adaptation, in nodes of the scene, and the job that it means, in files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.data.exemplar import Slices
from FewShotSegLib.data.job import AdaptJob, AuxiliaryFiles, ExemplarFiles
from FewShotSegLib.data.volume import Labelmap, label_values
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.datasets import data_sets_in, files_of
from FewShotSegLib.io.folders import images_in
from FewShotSegSlicer.Exemplars.ExemplarStore import ExemplarStore
from FewShotSegSlicer.Scene import Segmentations, Volumes
from FewShotSegSlicer.Workers.JobFiles import JobFiles, labelledSlices, numbered

from .AdapterFolder import AdapterFolder
from .SegmentSettings import windowAsIntensity

_SPARSE = 4  # times fewer labelled slices along another axis: these were the ones drawn


@dataclass(frozen=True, eq=False)
class AdaptSettings:
    """The arguments of `Logic.adapt`, which explains them."""

    exemplars: Sequence[tuple[Any, ...]] | None = None
    method: str = "lora"
    recipe: Mapping[str, Any] | None = None
    base: str = "auto"
    warmStart: Any = None
    targets: Sequence[Any] = ()
    auxiliary: Sequence[Any] = ()
    auxiliaryFolder: str | Path | None = None
    sourceFolder: str | Path | None = None
    targetFolder: str | Path | None = None
    seed: int = 0
    device: str = "auto"
    maxSeconds: float | None = None
    window: tuple[float, float] | None = None
    taught: list[TaughtSlices] = field(default_factory=list, init=False)
    """Filled by `job`: the slices of `exemplars`."""

    def job(self, store: ExemplarStore, adapters: AdapterFolder, files: JobFiles, out: Path) -> AdaptJob:
        """Write what is needed into `files` and return the job whose adapter becomes `out`."""
        start = adapters.card(self.warmStart) if self.warmStart else None
        known = {int(value): name for value, name in start["structures"].items()} if start else None
        exemplars = self.exemplarFiles(store, files, known)
        if known is not None and exemplars:
            _checkSameStructures(exemplars, known)
        return AdaptJob(
            out=str(out),
            method=self.method,
            exemplars=exemplars,
            targets=tuple(path for target in self.targets for path in _images(target, files)),
            auxiliary=tuple(dataSet for given in self.auxiliary for dataSet in _dataSets(given)),
            auxiliary_folder=_absolute(self.auxiliaryFolder),
            source_folder=_absolute(self.sourceFolder),
            target_folder=_absolute(self.targetFolder),
            base=start["base_model"] if start and self.base == "auto" else self.base,
            recipe=dict(self.recipe or {}),
            warm_start=start["path"] if start else None,
            max_seconds=self.maxSeconds,
            intensity=windowAsIntensity(self.window),
            seed=self.seed,
            device=self.device,  # type: ignore[arg-type]
        )

    def exemplarFiles(
        self, store: ExemplarStore, files: JobFiles, known: Mapping[int, str] | None = None
    ) -> tuple[ExemplarFiles, ...]:
        """Write the exemplars into `files`; `known` {value: name} numbers their structures."""
        return store.files(files, known) if self.exemplars is None else self._written(files, known)

    def _written(self, files: JobFiles, known: Mapping[int, str] | None) -> tuple[ExemplarFiles, ...]:
        drawn = [_Drawn.of(*_checkedTuple(given)) for given in self.exemplars or ()]
        if not drawn and self.sourceFolder is None:  # there everything is
            raise InputError("At least one exemplar is needed: a volume node with its segmentation node.")
        self.taught.extend(one.taught for one in drawn)
        names = known or numbered(name for one in drawn for name in one.labelmap.structures.values())
        return tuple(one.written(files, names) for one in drawn)


@dataclass(frozen=True, eq=False)
class TaughtSlices:
    """Slices along an array axis that were learned from, and the nodes (volume, segmentation) they were given in."""

    nodes: tuple[Any, Any]
    axis: int
    slices: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Drawn:
    """An exemplar given by its nodes: the segments that hold a voxel, on the grid of the volume."""

    volumeNode: Any
    segmentationNode: Any
    labelmap: Labelmap
    axis: int
    slices: Slices

    @classmethod
    def of(cls, volumeNode: Any, segmentationNode: Any, slices: Slices = None, axis: int | None = None) -> _Drawn:
        labelmap = Segmentations.labelmapFromSegmentation(segmentationNode, volumeNode)
        array = labelmap.volume.array
        names = {value: labelmap.structures[value] for value in label_values(array)}
        if not names:
            raise InputError(f'Nothing is drawn in "{segmentationNode.GetName()}"; annotate at least one slice.')
        axis = _drawnAxis(labelmap) if axis is None else axis
        slices = slices if slices is None or slices == "all" else tuple(int(index) for index in slices)
        return cls(volumeNode, segmentationNode, Labelmap(labelmap.volume, names), axis, slices)

    @property
    def taught(self) -> TaughtSlices:
        array = self.labelmap.volume.array
        known = self.slices if isinstance(self.slices, tuple) else tuple(labelledSlices(array, self.axis))
        return TaughtSlices((self.volumeNode, self.segmentationNode), self.axis, known)

    def written(self, files: JobFiles, names: Mapping[int, str]) -> ExemplarFiles:
        node = self.volumeNode
        image = files.volume(node.GetID(), Volumes.volumeFromNode(node), node.GetName())
        own = set(self.labelmap.structures.values())
        structures = {value: name for value, name in names.items() if name in own}
        return files.exemplar(image, self.labelmap, self.axis, self.slices, structures)


def _checkedTuple(given: Any) -> tuple[Any, ...]:
    if not isinstance(given, tuple | list) or not 2 <= len(given) <= 4:
        raise InputError(
            "An exemplar is given as (volumeNode, segmentationNode), with slices and axis behind them where needed, "
            f"got {given!r}."
        )
    return tuple(given)


def _drawnAxis(labelmap: Labelmap) -> int:
    """The array axis across the slices that were drawn: the one across those acquired, unless far fewer slices along
    another one hold labels, as when a sagittal slice of an axial series was drawn.
    """
    acquired = labelmap.volume.acquisition_axis
    counts = [len(labelledSlices(labelmap.volume.array, axis)) for axis in range(3)]
    fewest = int(np.argmin(counts))
    return fewest if counts[fewest] * _SPARSE <= counts[acquired] else acquired


def _images(target: Any, files: JobFiles) -> Iterable[str]:
    """The files of an unlabelled target: a volume node, a file, or all volumes of a folder."""
    if not isinstance(target, str | Path):
        return [str(files.volume(target.GetID(), Volumes.volumeFromNode(target), target.GetName()))]
    return images_in(target) if Path(target).is_dir() else [str(target)]


def _absolute(folder: str | Path | None) -> str | None:
    return str(Path(folder).expanduser().absolute()) if folder else None


def _dataSets(given: Any) -> Iterable[AuxiliaryFiles]:
    """Auxiliary data: a folder that is a data set or holds some, or a data set named file by file."""
    if not isinstance(given, str | Path):
        return [given]
    return [files_of(found) for found in data_sets_in(Path(given))]


def _checkSameStructures(exemplars: Sequence[ExemplarFiles], known: Mapping[int, str]) -> None:
    shown = {name for files in exemplars for name in (files.structures or {}).values()}
    if shown != set(known.values()):
        raise InputError(
            f"The adapter to continue from was trained on {', '.join(known.values())}; the exemplars show "
            f"{', '.join(sorted(shown)) or 'none of them'}. Use exemplars of the same structures, "
            "or start from scratch."
        )
