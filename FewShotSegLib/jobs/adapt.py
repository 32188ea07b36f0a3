"""Adapt: load what the job names, train with the largest preset that fits, save the adapter and its record.

A killed adaptation goes on from `<out>.checkpoint.pt` when the same job is run again, and gives the same bytes on a
CPU; cancelling is giving up and removes the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from FewShotSegLib.data.adapter import Adapter, card, check_base
from FewShotSegLib.data.exemplar import Exemplar, check_exemplars, preflight
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.data.recipe import from_dict
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.io.adapters import load_adapter, save_adapter
from FewShotSegLib.io.datasets import DataSet
from FewShotSegLib.io.files import written_whole
from FewShotSegLib.methods import method
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.visualization.charts import choices_chart, gallery_chart
from FewShotSegLib.visualization.contact_sheet import contact_sheet

from .inputs import exemplar_of, labelled_sets, target_volumes
from .notes import Notes, timed
from .record import check_writable, checksums, record_of, result_path, write_record
from .seeding import stage_rng


def adapt_job(job: AdaptJob, device: torch.device, notes: Notes) -> dict[str, Any]:
    timings: dict[str, float] = {}
    out = Path(job.out)
    check_writable(out)
    module = method(job.method)
    recipe = recipe_of(job)
    with timed(timings, "load"):
        exemplars = [exemplar_of(files) for files in job.exemplars]
        auxiliary = labelled_sets(job, module)
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
    exemplars = [exemplar_of(files) for files in job.exemplars]
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
            target_volumes(job) if "targets" in module.NEEDS else (),
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
