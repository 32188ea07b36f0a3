"""Segment images, each with a record beside its labelmap.

A segmentation that is there already, made by the same job from the same image and adapter, is not made again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from FewShotSegLib.data.digests import sha256_of_array, sha256_of_json
from FewShotSegLib.data.exemplar import preflight
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import SegmentJob
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import AXES, Volume
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.inference.load import load_any_predictor, load_support_predictor
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.quality import CUT_OFF, least_sure_slice, quality
from FewShotSegLib.inference.segment import Segmentation, SegmentOptions, segment, slice_axis
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.names import PROBABILITY
from FewShotSegLib.io.prompts import load_prompts
from FewShotSegLib.io.volumes import load_volume, save_labelmap, save_volume
from FewShotSegLib.version import __version__

from .inputs import exemplar_of, output_names
from .memory_curve import MemoryCurve, gpu_memory_of
from .notes import Notes, timed
from .record import check_writable, checksums, is_complete, read_record, record_of, result_path, write_record

AnyPredictor = Predictor | VolumePredictor


class SomeImagesFailed(InputError):  # noqa: N818 - named as what happened
    """Some images could not be segmented; `result` holds what was done with all of them."""

    def __init__(self, sentence: str, result: dict[str, Any]) -> None:
        super().__init__(sentence)
        self.result = result


def segment_job(job: SegmentJob, device: torch.device, notes: Notes, raise_failures: bool) -> dict[str, Any]:
    timings: dict[str, float] = {}
    out = Path(job.out)
    names = output_names(job.images)
    check_writable(result_path(out, names[0]))
    with timed(timings, "load"):
        predictor = _predictor(job, device, notes)
    records, failed = [], {}
    for number, (image, name) in enumerate(zip(job.images, names, strict=True)):
        part = replace(job, images=(image,))
        with timed(timings, "segment"):
            record, error = _tried(part, name, predictor, notes.part(number, len(names), name))
        records.append(record)
        if error is not None:
            failed[image] = error
            notes.warn(f"{image} failed: {error}")
        notes.warnings.extend(w for w in record["warnings"] if len(names) == 1 and w not in notes.warnings)
    result = record_of(job, device.type, timings, notes.warnings)
    result |= {"images": records, "outputs": {k: v for r in records for k, v in r.get("outputs", {}).items()}}
    if failed and raise_failures:
        _raise_failures(failed, result, len(names))
    return result


def _predictor(job: SegmentJob, device: torch.device, notes: Notes) -> AnyPredictor:
    if not job.support:
        return load_any_predictor(job.adapter, job.base, device)
    exemplars = [exemplar_of(files) for files in job.support]
    for warning in preflight(exemplars):
        notes.warn(warning)
    recipe = {"seed": job.seed, **job.support_recipe}
    intensity = IntensitySpec.from_dict(job.intensity) if job.intensity else None
    return load_support_predictor(exemplars, job.adapter, job.base, device, recipe, intensity, notes)


def _tried(
    job: SegmentJob, name: str, predictor: AnyPredictor, notes: Notes
) -> tuple[dict[str, Any], Exception | None]:
    """The record of one image, and what went wrong with it; the record of a failed image is written too."""
    try:
        return _segment_image(job, name, predictor, notes), None
    except Cancelled:
        raise
    except Exception as error:
        kind = "input" if isinstance(error, InputError) else "bug"
        record = record_of(job, predictor.device.type, {}, notes.warnings)
        record |= {"image": job.images[0], "error": {"kind": kind, "message": str(error)}}
        write_record(record, result_path(Path(job.out), name))
        return record, error


def _segment_image(job: SegmentJob, name: str, predictor: AnyPredictor, notes: Notes) -> dict[str, Any]:
    timings: dict[str, float] = {}
    out, image = Path(job.out), job.images[0]
    with timed(timings, "load"):
        volume = load_volume(image)
        prompts = load_prompts(job.prompts, volume) if job.prompts else []
    digest = _digest(job, volume, prompts, predictor)
    target = result_path(out, name)
    known = read_record(target)
    if known is not None and known.get("digest") == digest and is_complete(known, out):
        notes.say(f"{name}.seg.nrrd is there already, from the same image and adapter; not made again.")
        return {**known, "skipped": True}
    _check_not_the_input(image, out / f"{name}.seg.nrrd")
    curve = MemoryCurve(gpu_memory_of(predictor.device)) if predictor.device.type == "cuda" else None
    with timed(timings, "segment"), curve or contextlib.nullcontext():
        found = _segmentation(job, volume, prompts, predictor, notes)
    with timed(timings, "save"):
        paths = _save(found, out, name, volume)
    axis = slice_axis(volume, predictor.adapter, prompts, _options(job))
    structures = quality(found, axis)
    for structure, row in structures.items():
        # Volumes are often cut through an organ: worth a flag in the table, not a warning each time.
        notes.warnings.extend(f"{name}: {structure} {flag}." for flag in row["flags"] if flag != CUT_OFF)
    record = record_of(job, predictor.device.type, timings, notes.warnings)
    record |= {"image": image, "digest": digest, "axis": "kji"[axis], "outputs": checksums(paths)}
    record["least_sure_slice"] = least_sure_slice(found, axis)
    record["metrics"] = {"structures": structures} | ({"gpu_memory": curve.summary()} if curve else {})
    write_record(record, target)
    return record


def _segmentation(
    job: SegmentJob, volume: Volume, prompts: Sequence[Prompt], predictor: AnyPredictor, notes: Notes
) -> Segmentation:
    options = _options(job)
    if isinstance(predictor, VolumePredictor):
        if prompts:
            raise InputError("The adapter is a 3-D network, which takes no prompts; leave them out.")
        return predictor.segment(volume, options=options, report=notes)
    try:
        return segment(volume, predictor, prompts=prompts, options=options, report=notes)
    except torch.cuda.OutOfMemoryError:
        notes.warn("Out of GPU memory; going on with one slice at a time.")
    torch.cuda.empty_cache()
    try:
        return segment(volume, predictor, prompts=prompts, options=replace(options, batch_slices=1), report=notes)
    except torch.cuda.OutOfMemoryError:
        raise InputError("The GPU has too little free memory for one slice: choose --device cpu.") from None


def _options(job: SegmentJob) -> SegmentOptions:
    return SegmentOptions(
        axis=AXES[job.axis] if job.axis else None,
        probabilities=job.probabilities,
        largest_component=job.largest_component,
        min_island_ml=job.min_island_ml,
        all_pieces=job.all_pieces,
    )


def _digest(job: SegmentJob, volume: Volume, prompts: Sequence[Prompt], predictor: AnyPredictor) -> str:
    """Equal for everything that decides the output."""
    asked = [_options(job).__dict__, [prompt.to_dict() for prompt in prompts]]
    made_by = [__version__, *predictor.identity]
    return sha256_of_json((asked, made_by, sha256_of_array(volume.array), sha256_of_array(volume.affine)))


def _check_not_the_input(image: str, target: Path) -> None:
    if target.exists() and target.samefile(image):
        raise InputError(f"{target} is the image itself and would be overwritten; choose another output folder.")


def _save(found: Segmentation, out: Path, name: str, volume: Volume) -> list[Path]:
    paths = []
    for value, probability in found.probabilities.items():
        structure = re.sub(r"[^\w .+-]", "_", found.labelmap.structures[value])
        paths.append(out / f"{name}.{structure}{PROBABILITY}.nrrd")
        save_volume(volume.like(probability.astype(np.float32)), paths[-1])
    paths.append(out / f"{name}.seg.nrrd")
    save_labelmap(found.labelmap, paths[-1])
    return paths


def _raise_failures(failed: dict[str, Exception], result: dict[str, Any], count: int) -> None:
    bug = next((error for error in failed.values() if not isinstance(error, InputError)), None)
    if bug is not None:
        raise bug
    if count == 1:
        raise next(iter(failed.values()))
    sentences = "; ".join(f"{image}: {error}" for image, error in failed.items())
    raise SomeImagesFailed(f"{len(failed)} of {count} images were not segmented. {sentences}", result)
