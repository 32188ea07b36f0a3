"""Segment images, each with a record next to its labelmap.

An existing segmentation that was made by the same job from the same image and adapter is not recomputed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.digests import sha256_of_array, sha256_of_json
from FewShotSegLib.data.exemplar import preflight
from FewShotSegLib.data.intensity import IntensitySpec, unlike
from FewShotSegLib.data.job import SegmentJob
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import AXES, Volume
from FewShotSegLib.errors import Cancelled, InputError, of_the_system
from FewShotSegLib.inference.load import load_any_predictor, load_support_predictor
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.quality import CUT_OFF, least_sure_slice, quality
from FewShotSegLib.inference.segment import Segmentation, SegmentOptions, segment, slice_axis
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.dicom_rtstruct import SUFFIX as RTSTRUCT_SUFFIX
from FewShotSegLib.io.dicom_rtstruct import save_rtstruct
from FewShotSegLib.io.dicom_seg import SUFFIX as DICOM_SEG_SUFFIX
from FewShotSegLib.io.dicom_seg import check_available, save_dicom_seg
from FewShotSegLib.io.dicom_source import check_source
from FewShotSegLib.io.files import check_writable, known_suffix
from FewShotSegLib.io.names import PROBABILITY
from FewShotSegLib.io.probe import check_reading
from FewShotSegLib.io.prompts import load_prompts
from FewShotSegLib.io.volumes import load_volume, save_labelmap, save_volume
from FewShotSegLib.version import __version__

from .inputs import exemplar_of, files_read, output_names
from .kept import KeptPredictor
from .memory_curve import MemoryCurve, memory_of
from .notes import Notes, timed
from .outputs import Outputs
from .record import is_complete, own_part, read_record, record_of, result_path

AnyPredictor = Predictor | VolumePredictor
_SUFFIXES: Mapping[str, str] = {
    "seg.nrrd": ".seg.nrrd",
    "dicom-seg": DICOM_SEG_SUFFIX,
    "dicom-rtstruct": RTSTRUCT_SUFFIX,
}
_REFERRING: Mapping[str, str] = {"dicom-seg": "a DICOM segmentation", "dicom-rtstruct": "an RT structure set"}
RecordTaken = Callable[[dict[str, Any]], None]


class SomeImagesFailed(InputError):  # noqa: N818 - named as what happened
    """Some images could not be segmented; `result` is the record of all of them."""

    def __init__(self, sentence: str, result: dict[str, Any]) -> None:
        super().__init__(sentence)
        self.result = result


def segment_job(
    job: SegmentJob,
    device: torch.device,
    notes: Notes,
    raise_failures: bool,
    ended: RecordTaken,
    kept: KeptPredictor[AnyPredictor],
) -> dict[str, Any]:
    """Run the job and return its record; `ended` gets the record of each image when it is done."""
    timings: dict[str, float] = {}
    out = Path(job.out)
    names = output_names(job.images)
    check_writable(result_path(out, names[0]))
    if job.format == "dicom-seg":
        check_available()
    with timed(timings, "load"):
        predictor = kept.get(job, str(device), lambda: _predictor(job, device, notes))
    records, failed = [], {}
    for number, (image, name) in enumerate(zip(job.images, names, strict=True)):
        part = replace(job, images=(image,))
        with timed(timings, "segment"):
            record, error = _tried(part, name, predictor, notes.part(number, len(names), name), len(names) > 1)
        predictor.forget_images()  # the next image is different: 512 MB would be kept for nothing, in each process
        records.append(own_part(record))
        if not number and predictor.advice:
            notes.say(predictor.advice)
        ended(record)
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
    job: SegmentJob, name: str, predictor: AnyPredictor, notes: Notes, is_one_of_many: bool
) -> tuple[dict[str, Any], Exception | None]:
    """The record of one image, and its error if any; the record of a failed image is written too."""
    path = result_path(Path(job.out), name)
    try:
        with Outputs(path, inputs=files_read(job), overwrite=job.overwrite) as outputs:
            try:
                if is_one_of_many:
                    check_reading(job.images[0])
                with notes.hearing():
                    return _segment_image(job, name, predictor, notes, outputs), None
            except OSError as error:
                refused = InputError(of_the_system(error))
                outputs.fail(_record_of_failure(job, predictor, notes, refused))
                raise refused from error
            except Exception as error:
                if not isinstance(error, Cancelled):
                    outputs.fail(_record_of_failure(job, predictor, notes, error))
                raise
    except Cancelled:
        raise
    except Exception as error:
        return _record_of_failure(job, predictor, notes, error), error


def _record_of_failure(job: SegmentJob, predictor: AnyPredictor, notes: Notes, error: Exception) -> dict[str, Any]:
    kind = "input" if isinstance(error, InputError) else "bug"
    record = record_of(job, predictor.device.type, {}, notes.warnings)
    return record | {"image": job.images[0], "error": {"kind": kind, "message": str(error)}}


def _segment_image(
    job: SegmentJob, name: str, predictor: AnyPredictor, notes: Notes, outputs: Outputs
) -> dict[str, Any]:
    timings: dict[str, float] = {}
    image = job.images[0]
    series = check_source(image, _REFERRING[job.format]) if job.format in _REFERRING else ()
    with timed(timings, "load"):
        volume = load_volume(image, channel=job.channel, time_index=job.time_index)
        prompts = load_prompts(job.prompts, volume) if job.prompts else []
    digest = _digest(job, volume, prompts, predictor)
    made = _made_before(job, name, digest, outputs, notes)
    if made is not None:
        return made
    outputs.check(_file_of(name, job))
    if predictor.adapter is not None and not job.intensity and not job.support:
        notes.warn_if(_unlike(predictor.adapter, volume, name))
        notes.warn_if(_other_channel(predictor.adapter, job.channel, name))
    curve = MemoryCurve(memory_of(predictor.device)) if predictor.device.type == "cuda" else None
    with timed(timings, "segment"), curve or contextlib.nullcontext():
        found = segmentation_of(volume, prompts, predictor, _options(job), notes, _intensity(job))
    with timed(timings, "save"):
        _save(found, _file_of(name, job), volume, series, outputs)
    axis = slice_axis(volume, predictor.adapter, prompts, _options(job))
    structures = quality(found, axis)
    for structure, row in structures.items():
        # Volumes are often cropped through an organ: worth a flag in the table, not a warning each time.
        notes.warnings.extend(f"{name}: {structure} {flag}." for flag in row["flags"] if flag != CUT_OFF)
    record = record_of(job, predictor.device.type, timings, notes.warnings)
    record |= {"image": image, "digest": digest, "axis": "kji"[axis]}
    record["least_sure_slice"] = least_sure_slice(found, axis)
    record["metrics"] = {"structures": structures} | ({"gpu_memory": curve.summary()} if curve else {})
    return outputs.finish(record)


def _unlike(adapter: Adapter, volume: Volume, name: str) -> str:
    """A warning if an image does not look like those that the adapter was made from, else ""."""
    known = [one.get("is_ct") for one in adapter.provenance.get("exemplars", [])]
    is_ct = any(known) if any(isinstance(one, bool) for one in known) else None
    return unlike(adapter.intensity, volume.array, name, is_ct)


def _other_channel(adapter: Adapter, channel: int | None, name: str) -> str:
    """A warning if a different channel was selected than for the exemplars; "" if either is unknown."""
    known = {one["channel"] for one in adapter.provenance.get("exemplars", []) if "channel" in one}
    if channel is None or not known or channel in known:
        return ""
    learned = " and ".join(map(str, sorted(known)))
    return f"{name}: channel {channel} is segmented with an adapter that was made from channel {learned}."


def _made_before(job: SegmentJob, name: str, digest: str, outputs: Outputs, notes: Notes) -> dict[str, Any] | None:
    """The record of the same segmentation if it exists already, unchanged or corrected by a user since."""
    known = read_record(outputs.record_path)
    if known is None or known.get("digest") != digest:
        return None
    if is_complete(known, outputs.folder):
        notes.say(f"{_file_of(name, job)} is there already, from the same image and adapter; not made again.")
        return {**known, "skipped": True}
    changed = outputs.changed(known.get("outputs") or {})
    if not changed or job.overwrite:
        return None
    notes.warn(
        f"{', '.join(changed)} was made from the same image and adapter and has been changed since; the changed file "
        "is kept. To make it again, move it away or ask for overwriting (--overwrite)."
    )
    return {**known, "skipped": True, "changed": changed, "warnings": notes.warnings}


def _intensity(job: SegmentJob) -> IntensitySpec | None:
    """The intensity chosen for the images; with a support set, that of the set, known by then."""
    return IntensitySpec.from_dict(job.intensity) if job.intensity and not job.support else None


def segmentation_of(
    volume: Volume,
    prompts: Sequence[Prompt],
    predictor: AnyPredictor,
    options: SegmentOptions,
    notes: Notes,
    intensity: IntensitySpec | None = None,
) -> Segmentation:
    """Segment a volume, one slice at a time if the GPU has too little memory for batches."""
    if isinstance(predictor, VolumePredictor):
        if prompts:
            raise InputError("The adapter is a 3-D network, which takes no prompts; leave them out.")
        if intensity is not None:
            raise InputError("The adapter is a 3-D network, which has its own intensity setting; leave it out.")
        return predictor.segment(volume, options=options, report=notes)
    given: dict[str, Any] = {"intensity": intensity, "prompts": prompts, "report": notes}
    try:
        return segment(volume, predictor, options=options, **given)
    except torch.cuda.OutOfMemoryError:
        notes.warn("Out of GPU memory; going on with one slice at a time.")
    torch.cuda.empty_cache()
    try:
        return segment(volume, predictor, options=replace(options, batch_slices=1), **given)
    except torch.cuda.OutOfMemoryError:
        raise InputError(
            "The GPU has too little free memory for one slice: compute on the processor (in Slicer: Settings, "
            "Compute on; else --device cpu)."
        ) from None


def _options(job: SegmentJob) -> SegmentOptions:
    return SegmentOptions(
        axis=AXES[job.axis] if job.axis else None,
        probabilities=job.probabilities,
        largest_component=job.largest_component,
        min_island_ml=job.min_island_ml,
        all_pieces=job.all_pieces,
        smoothing_mm=job.smoothing_mm,
    )


def _digest(job: SegmentJob, volume: Volume, prompts: Sequence[Prompt], predictor: AnyPredictor) -> str:
    """Digest of everything that determines the output."""
    options = dict(_options(job).__dict__)
    if not job.smoothing_mm:
        del options["smoothing_mm"]
    asked: list[Any] = [options, [prompt.to_dict() for prompt in prompts], job.intensity]
    asked += [job.format] if job.format != "seg.nrrd" else []  # keeps earlier results valid
    made_by = [__version__, *predictor.identity]
    return sha256_of_json((asked, made_by, sha256_of_array(volume.array), sha256_of_array(volume.affine)))


def _file_of(name: str, job: SegmentJob) -> str:
    return name + _SUFFIXES[job.format]


def _save(found: Segmentation, file: str, volume: Volume, series: Sequence[Path], outputs: Outputs) -> None:
    names, name = _file_names(found.labelmap.structures), file.removesuffix(known_suffix(Path(file)))
    for value, probability in found.probabilities.items():
        path = outputs.place(f"{name}.{names[value]}{PROBABILITY}.nrrd")
        save_volume(volume.like(probability.astype(np.float32)), path)
    if file.endswith(DICOM_SEG_SUFFIX):
        save_dicom_seg(found.labelmap, outputs.place(file), series)
    elif file.endswith(RTSTRUCT_SUFFIX):
        save_rtstruct(found.labelmap, outputs.place(file), series)
    else:
        save_labelmap(found.labelmap, outputs.place(file))


_LONGEST_NAME = 60  # characters of a structure name in a file name


def _file_names(structures: Mapping[int, str]) -> dict[int, str]:
    """{label: name for files}, unique even on case-insensitive file systems: duplicates use the label."""
    plain = {value: re.sub(r"[^\w .+-]", "_", name)[:_LONGEST_NAME].strip() for value, name in structures.items()}
    folded = [name.casefold() for name in plain.values()]
    return {
        value: name if folded.count(name.casefold()) == 1 and plain[value] else f"{name} {value}"
        for value, name in plain.items()
    }


def _raise_failures(failed: dict[str, Exception], result: dict[str, Any], count: int) -> None:
    bug = next((error for error in failed.values() if not isinstance(error, InputError)), None)
    if bug is not None:
        raise bug
    if count == 1:
        raise next(iter(failed.values()))
    sentences = "; ".join(f"{image}: {error}" for image, error in failed.items())
    raise SomeImagesFailed(f"{len(failed)} of {count} images were not segmented. {sentences}", result)
