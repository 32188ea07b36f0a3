"""`run(job)`: the only place where loading, seeding, adapting, segmenting, evaluating and saving are put in order.

Randomness has one origin: `SeedSequence(job.seed)` is spawned once per stage, in the order of `STAGES`, so a stage
draws the same numbers whatever the others do. PyTorch's and numpy's global generators are left as they were.

Outputs are whole or absent. A killed adaptation goes on from `<out>.checkpoint.pt` when the same job is run again, and
gives the same bytes on a CPU; cancelling is giving up and removes the checkpoint. A segmentation that is there already,
made by the same job from the same image and adapter, is not made again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from FewShotSegLib.data.adapter import Adapter, card, check_base
from FewShotSegLib.data.digests import digest_of, sha256_of_array
from FewShotSegLib.data.exemplar import Exemplar, check_exemplars, preflight
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import AdaptJob, EvaluateJob, ExemplarFiles, Job, SegmentJob
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import from_dict
from FewShotSegLib.data.volume import AXES, Volume
from FewShotSegLib.evaluation.scoring import evaluate_case, evaluate_folder, summarize, write_plot
from FewShotSegLib.evaluation.tables import write_rows, write_summary
from FewShotSegLib.inference.load import load_any_predictor, load_support_predictor
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.quality import CUT_OFF, quality
from FewShotSegLib.inference.segment import Segmentation, SegmentOptions, segment, slice_axis
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.io.datasets import DataSet, data_set_of, data_sets_in
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.files import known_suffix, written_whole
from FewShotSegLib.io.folders import images_in
from FewShotSegLib.io.prompts import load_prompts
from FewShotSegLib.io.volumes import load_labelmap, load_volume, save_labelmap, save_volume
from FewShotSegLib.visualization.charts import choices_chart, gallery_chart
from FewShotSegLib.visualization.contact_sheet import contact_sheet

from .devices import choose_device
from .errors import Cancelled, InputError
from .memory_curve import MemoryCurve, gpu_memory_of
from .methods import method
from .progress import Progress, Report, silent
from .record import (
    Notes,
    check_writable,
    checksums,
    is_complete,
    read_record,
    record_of,
    result_path,
    timed,
    write_record,
)
from .sam import registry
from .sam.loading import load_base
from .sam.network import PromptableNetwork
from .version import __version__

AnyPredictor = Predictor | VolumePredictor
STAGES = ("adapt", "segment", "evaluate")


class SomeImagesFailed(InputError):  # noqa: N818 - named as what happened
    """Some images could not be segmented; `result` holds what was done with all of them."""

    def __init__(self, sentence: str, result: dict[str, Any]) -> None:
        super().__init__(sentence)
        self.result = result


def run(job: Job, report: Report = silent, *, raise_failures: bool = True) -> dict[str, Any]:
    """Do the job and return its record, which also lies beside the outputs as `<name>.result.json`.

    `report` may raise `Cancelled` or, in training, `StopAndKeepBest`. An image that cannot be segmented does not stop
    the others; at the end it is raised, or, without `raise_failures`, only named in its record.
    """
    notes = Notes(report)
    if isinstance(job, EvaluateJob):
        return _evaluate(job, notes)
    device = choose_device(job.device, notes.say)
    with _own_randomness(job.seed, device):
        if isinstance(job, AdaptJob):
            return _adapt(job, device, notes)
        return _segment(job, device, notes, raise_failures)


def stage_rng(seed: int, stage: str) -> np.random.Generator:
    """The generator of one stage of a job."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(len(STAGES))[STAGES.index(stage)])


@contextlib.contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Whatever draws from PyTorch's global generator gets the job's seed, and the caller's state comes back."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield


# -------------------------------------------------------------------------------------------------------------- adapt


def _adapt(job: AdaptJob, device: torch.device, notes: Notes) -> dict[str, Any]:
    timings: dict[str, float] = {}
    out = Path(job.out)
    check_writable(out)
    module = method(job.method)
    recipe = recipe_of(job)
    with timed(timings, "load"):
        exemplars = [_exemplar(files) for files in job.exemplars]
        auxiliary = _labelled_sets(job, module)
        start = load_adapter(job.warm_start) if job.warm_start else None
    look = getattr(module, "preflight", preflight)
    for warning in look(exemplars) if "exemplars" in module.NEEDS else ():
        notes.warn(warning)
    with timed(timings, "adapt"):
        given = _Given(module, recipe, exemplars, auxiliary, start)
        adapter = _fitting_adapter(job, given, device, notes)
    save_adapter(adapter, out)
    outputs = [out, *_pictures(adapter, out, notes)]
    _remove_checkpoints(job)
    record = record_of(job, device.type, timings, notes.warnings)
    record |= {"adapter": card(adapter), "metrics": dict(adapter.metrics), "outputs": checksums(outputs)}
    if len(outputs) > 1:
        record["report"] = outputs[1].name
    write_record(record, result_path(out.parent, out.stem))
    return record


def preview(job: AdaptJob, sheet: Path, count: int = 12) -> None:
    """Draw `count` samples of the kind that the job would train on into a PNG, and train nothing.

    A user who sees halos, organs in odd places or mirrored patients changes the recipe (`synthesizer.*`) or the
    exemplars.
    """
    check_writable(sheet)
    model, _ = registry.find(job.base)
    module = method(job.method)
    architecture = architecture_of(model)
    recipe = module.resolve(recipe_of(job), architecture, torch.device("cpu"))
    exemplars = [_exemplar(files) for files in job.exemplars]
    structures = check_exemplars(exemplars)
    intensity = IntensitySpec.from_dict(job.intensity) if job.intensity else IntensitySpec.auto(exemplars[0].volume)
    source = module.synthesizer_of(exemplars, intensity, recipe.image_size, recipe, structures)
    rng = stage_rng(job.seed, "adapt")
    contact_sheet([source.draw(rng) for _ in range(count)], sheet)


def recipe_of(job: AdaptJob) -> Any:
    """The job's recipe; a base model that is meant for one image size is adapted at that size unless told otherwise."""
    module = method(job.method)
    recipe = from_dict(module.Recipe, job.recipe)
    if module.needs_base(recipe) and recipe.image_size is None:
        recipe = replace(recipe, image_size=registry.find(job.base)[0].image_size)
    return recipe


def architecture_of(model: registry.BaseModel) -> str:
    """The word that methods resolve their presets by."""
    return "compact" if model.architecture == "compact" else "sam"


@dataclass(frozen=True, eq=False)
class _Given:
    """What a method is given, apart from the job's own numbers."""

    method: ModuleType
    recipe: Any
    exemplars: Sequence[Exemplar]
    auxiliary: Sequence[DataSet]
    start: Adapter | None


def _labelled_sets(job: AdaptJob, module: ModuleType) -> list[DataSet]:
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


_CALLED = {
    "exemplars": "exemplar: an image with one annotated slice at least",
    "auxiliary": "auxiliary data",
    "source": "folder with labelled source images",
    "targets": "folder with unlabelled target images",
}


def _targets(job: AdaptJob) -> dict[str, Volume]:
    """The unlabelled target volumes of a job by name."""
    paths = [*job.targets, *(images_in(job.target_folder) if job.target_folder else ())]
    return dict(zip(output_names(paths), map(load_volume, paths), strict=True))


def _pictures(adapter: Adapter, out: Path, notes: Notes) -> list[Path]:
    """How an adapter came to be, as a picture beside it; methods that have nothing to show get none."""
    auxiliary = adapter.metrics.get("auxiliary") or {"turns": []}
    if any(row["turn"] for row in auxiliary["turns"]):
        chart = choices_chart(auxiliary)
    elif notes.pictures:
        chart = gallery_chart(notes.pictures)
    else:
        return []
    path = out.with_name(f"{out.stem}.report.png")
    with written_whole(path) as part:
        part.write_bytes(chart.light)
    return [path]


def _exemplar(files: ExemplarFiles) -> Exemplar:
    axis = AXES[files.axis] if files.axis else None
    return load_exemplar(
        files.image,
        files.labelmap,
        axis=axis,
        slices=files.slices,
        structures=files.structures,
        resample=files.resample,
    )


def _fitting_adapter(job: AdaptJob, given: _Given, device: torch.device, notes: Notes) -> Adapter:
    """Adapt, with the next smaller preset each time the GPU runs out of memory."""
    module, recipe = given.method, given.recipe
    architecture = architecture_of(registry.find(job.base)[0]) if module.needs_base(recipe) else "compact"
    while True:
        chosen = module.resolve(recipe, architecture, device)
        adapter = _attempt(job, replace(given, recipe=chosen), device, notes)
        if adapter is not None:
            return adapter
        # Here, not in the handler: the exception holds every tensor of the failed attempt.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        recipe = _smaller(module, recipe, chosen, architecture, device)
        notes.warn(
            f"Out of GPU memory with the preset {chosen.preset}; starting again with the preset {recipe.preset}."
        )


def _attempt(job: AdaptJob, given: _Given, device: torch.device, notes: Notes) -> Adapter | None:
    """Adapt with a resolved recipe; None when the GPU ran out of memory."""
    module, recipe, start = given.method, given.recipe, given.start
    checkpoint = _checkpoint(Path(job.out), recipe, device)
    try:
        network = None
        if module.needs_base(recipe):
            network = load_base(job.base, image_size=recipe.image_size, device=str(device))
            if start is not None:
                check_base(start, network.name, network.sha256)
        if checkpoint.exists():
            notes.say(f"Going on from {checkpoint.name}.")
        return module.adapt(
            network,
            given.exemplars,
            _targets(job) if "targets" in module.NEEDS else (),
            given.auxiliary,
            recipe,
            rng=stage_rng(job.seed, "adapt"),
            report=notes,
            intensity=_chosen_intensity(job, start, network),
            max_seconds=job.max_seconds,
            checkpoint=checkpoint,
            start=start,
            **({} if network is not None else {"device": device}),
        )
    except torch.cuda.OutOfMemoryError:
        _remove_checkpoints(job)
        return None
    except Cancelled:
        _remove_checkpoints(job)
        raise


def _chosen_intensity(job: AdaptJob, start: Adapter | None, network: PromptableNetwork | None) -> IntensitySpec | None:
    if job.intensity is not None:
        chosen = IntensitySpec.from_dict(job.intensity)
        return replace(chosen, scale=network.scale) if network is not None else chosen
    return start.intensity if start else None


def _smaller(module: ModuleType, recipe: Any, chosen: Any, architecture: str, device: torch.device) -> Any:
    """The recipe with the next preset that asks for less than `chosen`."""
    name = module.smaller_preset(chosen.preset)
    while name is not None:
        smaller = replace(recipe, preset=name)
        if replace(module.resolve(smaller, architecture, device), preset=chosen.preset) != chosen:
            return smaller
        name = module.smaller_preset(name)
    raise InputError(
        "The GPU has too little free memory for this run, also with the smallest preset: close other programs, lower "
        "batch_size or image_size in the recipe, or choose --device cpu."
    )


def _checkpoint(out: Path, recipe: Any, device: torch.device) -> Path:
    # On a GPU the preset may differ from run to run, with the memory that is free; each goes on from its own.
    preset = f".{recipe.preset}" if device.type == "cuda" else ""
    return out.with_name(f"{out.stem}{preset}.checkpoint.pt")


def _remove_checkpoints(job: AdaptJob) -> None:
    out = Path(job.out)
    pattern = re.compile(rf"{re.escape(out.stem)}(\.(cpu|\d+GB))?\.checkpoint(\.\d+)?(\.part)?\.pt")
    for path in list(out.parent.iterdir()):
        if pattern.fullmatch(path.name):
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ segment


def _segment(job: SegmentJob, device: torch.device, notes: Notes, raise_failures: bool) -> dict[str, Any]:
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
    exemplars = [_exemplar(files) for files in job.support]
    for warning in preflight(exemplars):
        notes.warn(warning)
    recipe = {"seed": job.seed, **job.support_recipe}
    intensity = IntensitySpec.from_dict(job.intensity) if job.intensity else None
    return load_support_predictor(exemplars, job.adapter, job.base, device, recipe, intensity, notes)


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
    )


def _digest(job: SegmentJob, volume: Volume, prompts: Sequence[Prompt], predictor: AnyPredictor) -> str:
    """Equal for everything that decides the output."""
    asked = [_options(job).__dict__, [prompt.to_dict() for prompt in prompts]]
    made_by = [__version__, *predictor.identity]
    return digest_of(asked, made_by, sha256_of_array(volume.array), sha256_of_array(volume.affine))


def _check_not_the_input(image: str, target: Path) -> None:
    if target.exists() and target.samefile(image):
        raise InputError(f"{target} is the image itself and would be overwritten; choose another output folder.")


def _save(found: Segmentation, out: Path, name: str, volume: Volume) -> list[Path]:
    paths = []
    for value, probability in found.probabilities.items():
        structure = re.sub(r"[^\w .+-]", "_", found.labelmap.structures[value])
        paths.append(out / f"{name}.{structure}.probability.nrrd")
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


# ----------------------------------------------------------------------------------------------------------- evaluate


def _evaluate(job: EvaluateJob, notes: Notes) -> dict[str, Any]:
    timings: dict[str, float] = {}
    pred, ref, out = Path(job.pred), Path(job.ref), Path(job.out)
    check_writable(out)
    with timed(timings, "evaluate"):
        if pred.is_dir() and ref.is_dir():
            rows = evaluate_folder(pred, ref, job.structures, tolerance_mm=job.tolerance_mm, report=notes)
        elif pred.is_dir() or ref.is_dir():
            raise InputError(f"{pred} and {ref} must both be folders, or both be files.")
        else:
            pair = load_labelmap(pred), load_labelmap(ref)
            rows = evaluate_case(*pair, job.structures, tolerance_mm=job.tolerance_mm, case=pred.name)
            notes(Progress(1, 1, pred.name))
    write_rows(rows, out)
    write_summary(rows, out.with_suffix(".json"))
    write_plot(rows, out.with_suffix(".png"))
    record = record_of(job, "cpu", timings, notes.warnings)
    files = [out, out.with_suffix(".json"), out.with_suffix(".png")]
    metrics = {"summary": summarize(rows), "rows": [asdict(row) for row in rows]}
    record |= {"metrics": metrics, "outputs": checksums(files)}
    write_record(record, result_path(out.parent, out.stem))
    return record
