"""What a job names, loaded: exemplars, labelled data sets, target volumes; and what its outputs are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.data.volume import AXES, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.datasets import DataSet, data_set_of, data_sets_in
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.files import known_suffix
from FewShotSegLib.io.folders import images_in
from FewShotSegLib.io.volumes import load_volume

_CALLED = {
    "exemplars": "exemplar: an image with one annotated slice at least",
    "auxiliary": "auxiliary data",
    "source": "folder with labelled source images",
    "targets": "folder with unlabelled target images",
}


def labelled_sets(job: AdaptJob, module: ModuleType) -> list[DataSet]:
    """The auxiliary data sets of a job, or its labelled source; what a method has no use for is refused."""
    given = {
        "exemplars": job.exemplars, "auxiliary": job.auxiliary or job.auxiliary_folder, "source": job.source_folder,
        "targets": job.targets or job.target_folder,
    }  # fmt: skip
    for what, value in given.items():
        if value and what not in module.NEEDS:
            raise InputError(
                f"The method {job.method} uses no {_CALLED[what]}; leave it out, or choose another method."
            )
        if not value and what in module.NEEDS & {"source", "targets"}:
            raise InputError(f"The method {job.method} needs {_CALLED[what]}; give it.")
    found = [data_set_of(files) for files in job.auxiliary]
    for folder in (job.auxiliary_folder, job.source_folder):
        found += data_sets_in(Path(folder)) if folder else []
    return found


def target_volumes(job: AdaptJob) -> dict[str, Volume]:
    """The unlabelled target volumes of a job by name."""
    paths = [*job.targets, *(images_in(job.target_folder) if job.target_folder else ())]
    return dict(zip(output_names(paths), map(load_volume, paths), strict=True))


def exemplar_of(files: ExemplarFiles) -> Exemplar:
    axis = AXES[files.axis] if files.axis else None
    return load_exemplar(
        files.image,
        files.labelmap,
        axis=axis,
        slices=files.slices,
        structures=files.structures,
        resample=files.resample,
    )


def output_names(images: Sequence[str]) -> list[str]:
    """The name of each image without its format; outputs are called after it."""
    seen: dict[str, str] = {}
    for image in images:
        path = Path(image)
        name = path.name if path.is_dir() else path.name[: len(path.name) - len(known_suffix(path))]
        if name in seen:
            raise InputError(f"{seen[name]} and {image} would both be written as {name}.seg.nrrd; use two jobs.")
        seen[name] = image
    return list(seen)
