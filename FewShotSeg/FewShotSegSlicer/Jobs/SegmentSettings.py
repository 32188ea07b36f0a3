"""What the user asks of a segmentation, in nodes of the scene and options of the module, as a job knows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from FewShotSegLib.data.volume import AXIS_LETTERS
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.folders import images_in
from FewShotSegSlicer.Prompting import PromptTags
from FewShotSegSlicer.Scene import Volumes
from FewShotSegSlicer.Workers.JobFiles import JobFiles


def windowAsIntensity(window: tuple[float, float] | None) -> dict[str, Any] | None:
    """Return lowest and highest intensity as the `intensity` of a job."""
    return {"kind": "window", "low": window[0], "high": window[1]} if window else None


def segmentOptions(
    *,
    axis: int | None = None,
    largestComponent: bool = False,
    minIslandMl: float = 0.0,
    allPieces: bool = False,
    smoothingMm: float = 0.0,
    device: str = "auto",
    seed: int = 0,
    window: tuple[float, float] | None = None,
    format: str = "seg.nrrd",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Return the options of `Logic.segment` and `Logic.processBatch` under the names they have in a SegmentJob."""
    return {
        "axis": None if axis is None else AXIS_LETTERS[axis],
        "largest_component": largestComponent,
        "min_island_ml": minIslandMl,
        "all_pieces": allPieces,
        "smoothing_mm": smoothingMm,
        "device": device,
        "seed": seed,
        "intensity": windowAsIntensity(window),
        "format": format,
        "overwrite": overwrite,
    }


def promptEntries(prompts: Any, segmentationNode: Any) -> list[dict[str, Any]]:
    """Return entries of a prompt file for the prompts of `Logic.segment`."""
    if prompts is None or prompts is False:
        return []
    if prompts is True:
        entries = PromptTags.entries(segmentationNode) if segmentationNode is not None else []
    else:
        entries = [dict(one) if isinstance(one, Mapping) else one.to_dict() for one in prompts]
    if not entries:
        raise InputError("There are no prompts to segment with; click on a structure first, or leave them out.")
    return entries


def volumeFiles(volumes: Any, files: JobFiles, channel: int | None = None) -> dict[str, str]:
    """Return {file: how a table calls it} for the volumes of `Logic.processBatch`; those of the scene are written.

    Of a folder with a file for each channel those of `channel` are taken.
    """
    if isinstance(volumes, str | Path):
        one = Path(volumes).expanduser()
        return _asTheyAre([one] if one.is_file() else images_in(one, channel))
    if not hasattr(volumes, "IsA"):
        return {file: name for one in volumes for file, name in volumeFiles(one, files, channel).items()}
    if volumes.IsA("vtkMRMLVolumeNode"):
        name, volume = volumes.GetName(), Volumes.volumeFromNode(volumes)
        return {str(files.volume(volumes.GetID(), volume, name)): name}
    if not volumes.IsA("vtkMRMLSequenceNode") and not volumes.IsA("vtkMRMLSequenceBrowserNode"):
        raise InputError(f'"{volumes.GetName()}" is neither a volume nor a sequence; choose one of these.')
    items = [(f"{volumes.GetName()} {number + 1}", volume) for number, volume in Volumes.volumesInSequence(volumes)]
    return {str(files.volume(name, volume, name)): name for name, volume in items}


def _asTheyAre(paths: Iterable[str | Path]) -> dict[str, str]:
    absolute = [str(Path(path).absolute()) for path in paths]
    return dict(zip(absolute, absolute, strict=True))
