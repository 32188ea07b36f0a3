"""Adapt: load the inputs of the job, train with the largest preset that fits, save the adapter and its record.

A killed adaptation resumes from `<out>.checkpoint.pt` when the same job is run again, and gives the same bytes on a
CPU; cancelling abandons it and removes the checkpoint.

In distributed training (`training.data_parallel`), each process does all of this except writing, which is left to
rank 0.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from FewShotSegLib.data.adapter import Adapter, card, check_base
from FewShotSegLib.data.job import AdaptJob, to_dict
from FewShotSegLib.data.recipe import from_dict
from FewShotSegLib.data.recipe import to_dict as recipe_to_dict
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.io.adapters import read_card, save_adapter
from FewShotSegLib.io.files import check_writable, written_whole
from FewShotSegLib.methods import Method, method
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training import data_parallel
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.visualization.charts import choices_chart, gallery_chart
from FewShotSegLib.visualization.contact_sheet import contact_sheet, is_contact_sheet

from .inputs import files_read, inputs_of
from .notes import Notes, timed
from .outputs import Outputs
from .privacy import without_names
from .record import inputs_digest, is_complete, read_record, record_of, result_path
from .seeding import stage_rng

_TOO_LITTLE_HERE = (
    "A GPU has too little free memory for its share of this run: close other programs that use it, or choose a smaller "
    "preset or batch_size in the recipe. Where several processes train together, the next smaller preset is not taken "
    "by itself."
)


def adapt_job(job: AdaptJob, device: torch.device, notes: Notes) -> dict[str, Any]:
    """Run the job and return its record."""
    if not data_parallel.is_first():
        return _helped(job, device, notes)
    out = Path(job.out)
    with Outputs(result_path(out.parent, out.stem), inputs=_files_read(job), overwrite=job.overwrite) as outputs:
        outputs.check(out.name, _picture_name(out))
        return _adapted(job, device, notes, outputs)


def _adapted(job: AdaptJob, device: torch.device, notes: Notes, outputs: Outputs) -> dict[str, Any]:
    timings: dict[str, float] = {}
    out = Path(job.out)
    adapter = _trained(job, device, notes, timings)
    metrics = dict(adapter.metrics)  # the record may contain file names
    if not job.keep_names:
        adapter = without_names(adapter, job)
    save_adapter(adapter, outputs.place(out.name))
    report = _picture(adapter, out, notes, outputs)
    record = record_of(job, device.type, timings, notes.warnings)
    record |= {"adapter": card(adapter), "metrics": metrics, "inputs": inputs_digest(_files_read(job))}
    record |= report
    record = outputs.finish(record)
    _remove_checkpoints(job)
    return record


def _helped(job: AdaptJob, device: torch.device, notes: Notes) -> dict[str, Any]:
    """Train alongside rank 0, which writes the adapter; the record is of this process."""
    timings: dict[str, float] = {}
    adapter = _trained(job, device, notes, timings)
    record = record_of(job, device.type, timings, notes.warnings)
    return record | {"adapter": card(adapter), "metrics": dict(adapter.metrics)}


def _trained(job: AdaptJob, device: torch.device, notes: Notes, timings: dict[str, float]) -> Adapter:
    chosen, recipe = method(job.method), recipe_of(job)
    with timed(timings, "load"):
        inputs = inputs_of(job, chosen)
    with timed(timings, "adapt"):
        return fitting_adapter(job, inputs, recipe, device, notes)


def made_before(job: AdaptJob) -> dict[str, Any] | None:
    """The record of an adapter that this same job has made from files that are unchanged."""
    out = Path(job.out)
    record = read_record(result_path(out.parent, out.stem))
    if record is None or not isinstance(record.get("job"), dict):
        return None
    # The cheap comparison first: the others read entire files.
    if {**record["job"], "overwrite": job.overwrite} != to_dict(job) or not is_complete(record, out.parent):
        return None
    digest = inputs_digest(_files_read(job))
    return record if digest is not None and record.get("inputs") == digest else None


def _files_read(job: AdaptJob) -> list[str | Path]:
    """Inputs of the adapter: the files that the job and its recipe name, and the base model."""
    base = [registry.find(base_of(job))[1]] if method(job.method).needs_base(recipe_of(job)) else []
    named = [*files_read(job), *(value for value in job.recipe.values() if isinstance(value, str))]
    return [*(path for path in named if os.path.exists(path)), *base]  # noqa: PTH110 - false for non-paths


def preview(job: AdaptJob, sheet: Path, count: int = 12) -> None:
    """Draw `count` training samples of the job's method and network into a PNG, without training.

    A user who sees halos, misplaced organs or mirrored patients changes the recipe (`synthesizer.*`) or the exemplars.
    """
    check_writable(sheet)
    if sheet.is_file() and not job.overwrite and not is_contact_sheet(sheet):
        raise InputError(f"{sheet} already exists and is not a sample sheet; choose another name.")
    chosen = method(job.method)
    recipe = recipe_of(job)
    recipe = chosen.resolve(recipe, family_of(job, recipe), torch.device("cpu"))
    samples = chosen.training_samples(inputs_of(job, chosen), recipe, stage_rng(job.seed, "adapt"), count)
    contact_sheet(samples, sheet)


def recipe_of(job: AdaptJob) -> Any:
    """The job's recipe; a base model made for one image size is adapted at that size by default."""
    module = method(job.method)
    recipe = from_dict(module.Recipe, job.recipe)
    if module.needs_base(recipe) and recipe.image_size is None:
        recipe = replace(recipe, image_size=registry.find(base_of(job))[0].image_size)
    return recipe


def base_of(job: AdaptJob) -> str:
    """The name or file of the base model that is adapted."""
    if job.base != registry.AUTO:
        return job.base
    card = read_card(job.warm_start) if job.warm_start else {}  # the card suffices for the name
    return card.get("base_model") or registry.base_for(job.method)


def family_of(job: AdaptJob, recipe: Any) -> str:
    """The key by which methods resolve their presets: the family of the base model, if any."""
    return registry.find(base_of(job))[0].family if method(job.method).needs_base(recipe) else "compact"


def _picture(adapter: Adapter, out: Path, notes: Notes, outputs: Outputs) -> dict[str, str]:
    """A chart of the training, saved next to the adapter, for its record; none for methods without one."""
    # Where auxiliary data are pulled in pre-training only, its choices are the ones to show.
    auxiliary = [adapter.metrics.get("auxiliary"), *(adapter.metrics.get("pretraining_of") or {}).values()]
    chosen = [part for part in auxiliary if part and any(row["turn"] for row in part["turns"])]
    if chosen:
        chart = choices_chart(chosen[0])
    elif notes.pictures:
        chart = gallery_chart(notes.pictures)
    else:
        return {}
    with written_whole(outputs.place(_picture_name(out))) as part:
        part.write_bytes(chart.light)
    return {"report": _picture_name(out)}


def _picture_name(out: Path) -> str:
    return f"{out.stem}.report.png"


def fitting_adapter(job: AdaptJob, inputs: AdaptInputs, recipe: Any, device: torch.device, notes: Notes) -> Adapter:
    """Adapt, with the next smaller preset each time the GPU runs out of memory. Checkpoints are next to `job.out`."""
    chosen, family = method(job.method), family_of(job, recipe)
    for sentence in chosen.preflight(inputs.exemplars) if "exemplars" in chosen.NEEDS else ():
        notes.warn(sentence)
    while True:
        resolved = _same_everywhere(chosen.resolve(recipe, family, device))
        adapter = _attempt(job, inputs, resolved, device, notes)
        if adapter is not None:
            return _with_processes(adapter)
        # Here, not in the handler: the exception keeps all tensors of the failed attempt alive.
        if device.type == "cuda":
            torch.cuda.empty_cache()
        recipe = _smaller(chosen, recipe, resolved, family, device)
        notes.warn(
            f"Out of GPU memory with the preset {resolved.preset}; starting again with the preset {recipe.preset}."
        )


def _same_everywhere(recipe: Any) -> Any:
    """The resolved recipe of rank 0: presets depend on free memory."""
    if data_parallel.count() == 1:
        return recipe
    return from_dict(type(recipe), json.loads(data_parallel.text_of_first(json.dumps(recipe_to_dict(recipe)))))


def _with_processes(adapter: Adapter) -> Adapter:
    """The adapter with the number of processes on its card, if several: the batch size is per process."""
    count = data_parallel.count()
    return adapter if count == 1 else replace(adapter, metrics={**adapter.metrics, "processes": count})


def _attempt(job: AdaptJob, inputs: AdaptInputs, recipe: Any, device: torch.device, notes: Notes) -> Adapter | None:
    """Adapt with a resolved recipe; None if the GPU ran out of memory."""
    chosen = method(job.method)
    checkpoint = _checkpoint(Path(job.out), recipe, device)
    try:
        if chosen.needs_base(recipe):
            inputs = _with_base(inputs, load_base(base_of(job), image_size=recipe.image_size, device=str(device)))
        if checkpoint.exists():
            notes.say(f"Going on from {checkpoint.name}.")
        run = RunContext(stage_rng(job.seed, "adapt"), notes, device, job.max_seconds, checkpoint)
        return chosen.adapt(inputs, recipe, run)
    except torch.cuda.OutOfMemoryError:
        if data_parallel.count() > 1:
            raise InputError(_TOO_LITTLE_HERE) from None
        _remove_checkpoints(job)
        return None
    except Cancelled:
        _remove_checkpoints(job)
        raise


def _with_base(inputs: AdaptInputs, base: PromptableNetwork) -> AdaptInputs:
    if inputs.start is not None:
        check_base(inputs.start, base.name, base.sha256)
    intensity = replace(inputs.intensity, scale=base.scale) if inputs.intensity is not None else None
    return replace(inputs, base=base, intensity=intensity)


def _smaller(chosen: Method, recipe: Any, resolved: Any, family: str, device: torch.device) -> Any:
    """The recipe with the next preset that needs less memory than the resolved one."""
    name = chosen.smaller_preset(resolved.preset)
    while name is not None:
        smaller = replace(recipe, preset=name)
        if replace(chosen.resolve(smaller, family, device), preset=resolved.preset) != resolved:
            return smaller
        name = chosen.smaller_preset(name)
    raise InputError(
        "The GPU has too little free memory for this run, also with the smallest preset: close other programs that use "
        "it, lower batch_size or image_size in the recipe, or compute on the processor (in Slicer: Settings, Compute "
        "on; else --device cpu)."
    )


def _checkpoint(out: Path, recipe: Any, device: torch.device) -> Path:
    # On a GPU the preset may differ between runs, with free memory; each resumes from its own checkpoint.
    preset = f".{recipe.preset}" if device.type == "cuda" else ""
    return out.with_name(f"{out.stem}{preset}.checkpoint.pt")


def _remove_checkpoints(job: AdaptJob) -> None:
    if not data_parallel.is_first():
        return
    out = Path(job.out)
    pattern = re.compile(rf"{re.escape(out.stem)}(\.(cpu|\d+GB))?\.checkpoint(\.\d+)?\.pt")
    for path in list(out.parent.iterdir()):
        if pattern.fullmatch(path.name):
            path.unlink(missing_ok=True)
