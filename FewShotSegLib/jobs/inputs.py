"""Loading the inputs of a job: exemplars, labelled data sets, target volumes; and naming its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.data.volume import AXES, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter
from FewShotSegLib.io.datasets import DataSet, data_set_of, data_sets_in
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.folders import images_in
from FewShotSegLib.io.names import stem
from FewShotSegLib.io.volumes import load_volume
from FewShotSegLib.methods import Method
from FewShotSegLib.training.context import AdaptInputs

_CALLED = {
    "exemplars": "exemplars (images with at least one annotated slice)",
    "auxiliary": "auxiliary data",
    "source": "a folder with annotated source images",
    "targets": "unlabelled target images, or a folder of them",
}


def inputs_of(job: AdaptJob, chosen: Method, exemplars: Sequence[Exemplar] = ()) -> AdaptInputs:
    """Load the job's inputs for its method, except the base model; inputs that the method does not use are rejected.

    `exemplars` are already in memory and come before those of the job.
    """
    _check_use(job, chosen, exemplars)
    auxiliary = [data_set_of(files) for files in job.auxiliary]
    auxiliary += data_sets_in(Path(job.auxiliary_folder)) if job.auxiliary_folder else []
    start = load_adapter(job.warm_start) if job.warm_start else None
    intensity = IntensitySpec.from_dict(job.intensity) if job.intensity is not None else None
    return AdaptInputs(
        exemplars=[*exemplars, *(exemplar_of(files) for files in job.exemplars)],
        auxiliary=auxiliary,
        source=_source(job.source_folder) if job.source_folder else None,
        targets=_targets(job),
        intensity=intensity or (start.intensity if start else None),
        start=start,
    )


def _check_use(job: AdaptJob, chosen: Method, exemplars: Sequence[Exemplar]) -> None:
    given = {
        "exemplars": job.exemplars or exemplars,
        "auxiliary": job.auxiliary or job.auxiliary_folder,
        "source": job.source_folder,
        "targets": job.targets or job.target_folder,
    }
    for what, value in given.items():
        if value and what not in chosen.NEEDS:
            raise InputError(
                f"The method {job.method} does not use {_CALLED[what]}; leave them out, or choose another method."
            )
        if not value and what in chosen.NEEDS & {"source", "targets"}:
            raise InputError(f"The method {job.method} needs {_CALLED[what]}; choose them.")


def _source(folder: str) -> DataSet:
    """The one labelled data set in a folder."""
    found = data_sets_in(Path(folder))
    if len(found) != 1:
        names = ", ".join(data_set.name for data_set in found) or "none"
        raise InputError(
            f"The folder of annotated images holds {len(found)} data sets ({names}); choose the folder of one of them."
        )
    return found[0]


def _targets(job: AdaptJob) -> dict[str, Volume]:
    """The unlabelled target volumes of a job by name."""
    paths = [*job.targets, *(images_in(job.target_folder, job.channel) if job.target_folder else ())]
    volumes = (load_volume(path, channel=job.channel, time_index=job.time_index) for path in paths)
    return dict(zip(output_names(paths), volumes, strict=True))


def exemplar_of(files: ExemplarFiles) -> Exemplar:
    axis = AXES[files.axis] if files.axis else None
    return load_exemplar(
        files.image,
        files.labelmap,
        axis=axis,
        slices=files.slices,
        structures=files.structures,
        resample=files.resample,
        same_voxels=files.same_voxels,
        ignore=files.ignore,
        channel=files.channel,
        time_index=files.time_index,
    )


def files_read(job: Any) -> list[str]:
    """Every path in a job, except its output."""
    found: list[str] = []
    for entry in fields(job):
        value = getattr(job, entry.name)
        values = value if isinstance(value, tuple) else (value,)
        for one in values:
            if is_dataclass(one):
                found += files_read(one)
            elif entry.metadata.get("path") and entry.name != "out" and isinstance(one, str):
                found.append(one)
    return found


def output_names(images: Sequence[str]) -> list[str]:
    """The name of each image without its format suffix, from which output names are derived."""
    seen: dict[str, str] = {}
    for image in images:
        path = Path(image)
        name = stem(path)
        if name in seen:
            raise InputError(
                f"{seen[name]} and {image} have the same name, so their results cannot be distinguished; "
                "rename one of them, or do them in two runs with different output folders."
            )
        seen[name] = image
    return list(seen)
