"""`fewshotseg benchmark accuracy`: base model, adapted model and U-Net on real cases, with and without clicks.

For each data set: the base model with one centre click, one random click, one box, and with up to five corrective
clicks per structure and slice. For each number of exemplar slices: the same model adapted with and without synthesis,
with our defaults and with the Cheap Lunch paper's settings, with and without clicks; with a SAMed-like head of K + 1
classes; a U-Net and an Attention U-Net from scratch on the same slices for the same time. `--shots all` uses every
annotated slice of the training cases: an upper bound. The last tables have the layout of the paper, its numbers next to
ours. Every cell is stored as one line of JSON, so an interrupted run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from FewShotSegLib.benchmarks import cheap_lunch
from FewShotSegLib.benchmarks.cheap_lunch import (
    ADAPTED,
    ALL,
    ATTENTION,
    BASE,
    CLICK,
    FREE,
    PAPER,
    PAPER_PLAIN,
    PLAIN,
    RANDOM,
    SAMED,
    UNET,
    shown,
)
from FewShotSegLib.benchmarks.datasets import (
    DATASETS,
    PublicDataSet,
    exemplars,
    random_exemplars,
    unseen_cases,
    with_empty_slices,
)
from FewShotSegLib.benchmarks.records import add_result, markdown, results_in
from FewShotSegLib.benchmarks.samed import train_samed
from FewShotSegLib.benchmarks.unet import segment_unet, train_unet
from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import with_overrides
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.scoring import Row, evaluate_case
from FewShotSegLib.imaging.slice_frame import SliceFrame
from FewShotSegLib.imaging.slice_reader import SliceReader
from FewShotSegLib.inference.embedding_cache import EmbeddingCache
from FewShotSegLib.inference.load import predictor_of
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.segment import SegmentOptions, segment
from FewShotSegLib.io.files import write_text_whole
from FewShotSegLib.methods import lora
from FewShotSegLib.sam.clicks import centre_click, random_click, tight_box
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import Embedding, PromptableNetwork
from FewShotSegLib.sam.presets import affordable_size
from FewShotSegLib.training.context import AdaptInputs, RunContext

logger = logging.getLogger(__name__)

BOX, CORRECTED = "one box", "corrective clicks"
CLICKS = 5
COLUMNS = (
    (BASE, CLICK, "oracle_slices"),
    (ADAPTED, CLICK, "oracle_slices"),
    (BASE, BOX, "oracle_slices"),
    (ADAPTED, BOX, "oracle_slices"),
    (PLAIN, CLICK, "oracle_slices"),
    (ADAPTED, FREE, "all_slices"),
    (PLAIN, FREE, "all_slices"),
    (UNET, FREE, "all_slices"),
    (UNET, FREE, "oracle_slices"),
)
WAYS: dict[str, tuple[str, ...]] = {
    ADAPTED: (CLICK, RANDOM, BOX, FREE, CORRECTED),
    PLAIN: (CLICK, FREE),
    PAPER: (CLICK, RANDOM),
    PAPER_PLAIN: (CLICK, RANDOM),
    SAMED: (FREE,),
    UNET: (FREE,),
    ATTENTION: (FREE,),
}
OF_BASE = (CLICK, RANDOM, BOX, CORRECTED)
TRAINED = list(WAYS)
MEASURED = [BASE, ADAPTED, PLAIN, UNET]
MODELS = [(ADAPTED, FREE), (ADAPTED, CLICK), (UNET, FREE)]
MINMAX = IntensitySpec("minmax", 0.0, 1.0)
PROMPTS = (CLICK, RANDOM, BOX, FREE, CORRECTED)
SMALLEST_CLICKED = 3  # pixels: the smallest target a user would click on


@dataclass(frozen=True)
class Setting:
    """Settings shared by all models."""

    data: Path
    base: str
    seconds: float
    seed: int
    cases: int
    slices: int
    recipe: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    image_size: int | None = None
    prompts: tuple[str, ...] = PROMPTS
    drawn: bool = False


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the table is written to stdout and to `<out>.md`."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if not chosen.data.is_dir():
        raise InputError(f"There is no data folder {chosen.data}; give one with --data.")
    unknown = sorted(set(chosen.datasets) - set(DATASETS))
    if unknown:
        raise InputError(f"Unknown data set {unknown[0]}; allowed are {', '.join(DATASETS)}.")
    if chosen.quick:
        chosen.seconds, chosen.cases, chosen.slices, chosen.shots = min(chosen.seconds, 10), 1, 8, [3]
    setting = Setting(
        chosen.data,
        chosen.base,
        chosen.seconds,
        chosen.seed,
        chosen.cases,
        chosen.slices,
        tuple(chosen.recipe),
        tuple(chosen.models),
        chosen.image_size or affordable_size(chosen.base, torch.device("cpu")),
        tuple(chosen.prompts),
        chosen.random,
    )
    record = Path(f"{chosen.out}.jsonl")
    for name in chosen.datasets:
        for shots in [0, *chosen.shots]:
            for cell in _cells(DATASETS[name], shots, setting, _done(record, drawn=setting.drawn)):
                add_result(record, cell)
    cells = _done(record, drawn=setting.drawn)
    parts = (_base_table(cells), _table(cells), _curves(cells), _paper_tables(cells))
    table = "\n".join([_head(setting), *parts])
    write_text_whole(Path(f"{chosen.out}.md"), table)
    sys.stdout.write(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewshotseg benchmark accuracy", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--out", default="accuracy", help="prefix of the result files")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument(
        "--shots", nargs="+", type=_shots, default=[1, 3, 9, 18], help="numbers of exemplar slices, or all"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=MEASURED,
        choices=[BASE, *TRAINED],
        help="what to measure",
    )
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, choices=PROMPTS, metavar="WAY", help="ways to ask")
    parser.add_argument("--seconds", type=float, default=60.0, help="training time of each model")
    parser.add_argument("--cases", type=int, default=4, help="most test cases per data set")
    parser.add_argument("--slices", type=int, default=40, help="slices per test case, evenly spread")
    parser.add_argument("--base", default="bundled-small")
    parser.add_argument("--image-size", type=int, metavar="PX", help="of base and adapted model; default: their own")
    parser.add_argument("--recipe", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", action="store_true", help="exemplars by lot, as the paper's of BraTS")
    parser.add_argument("--quick", action="store_true", help="a few minutes, to see that it runs")
    return parser


def _shots(word: str) -> int:
    return ALL if word == "all" else int(word)


def _done(record: Path, *, drawn: bool = False) -> dict[tuple[str, int, str, str], dict[str, Any]]:
    """Results whose exemplars were selected in this way; the base model has none."""
    found = [c for c in results_in(record) if not c["shots"] or c.get("drawn", False) == drawn]
    return {(c["dataset"], c["shots"], c["model"], c["prompt"]): c for c in found}


def _cells(dataset: PublicDataSet, shots: int, setting: Setting, done: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """One result per model and prompting mode, skipping those already done; 0 shots is the base model."""
    chosen = []
    if shots and setting.drawn:
        chosen = random_exemplars(dataset, setting.data, shots, np.random.default_rng([setting.seed, shots]))
    elif shots:
        chosen = exemplars(dataset, setting.data, shots)
    network = load_base(setting.base, image_size=setting.image_size)
    for model, prompts in (WAYS if shots else {BASE: OF_BASE}).items():
        prompts = tuple(prompt for prompt in prompts if prompt in setting.prompts)
        if model not in setting.models or not prompts:
            continue
        if all((dataset.name, shots, model, prompt) in done for prompt in prompts):
            continue
        scorers, facts = _scorers(model, prompts, network, chosen, dataset, setting)
        names = set(chosen[0].structures.values()) if chosen else set(dataset.structures.values())
        for prompt, score in scorers.items():
            rows = [row for row in score() if row["structure"] in names]
            cell = {"dataset": dataset.name, "shots": shots, "model": model, "prompt": prompt, **facts}
            cell |= {"drawn": setting.drawn, "scores": rows}
            logger.info("%s %d %s %s %s", dataset.name, shots, model, prompt, _means(cell))
            yield cell


Segmenter = Callable[[Volume, Labelmap], Labelmap]
Scorer = Callable[[], list[dict[str, Any]]]


def _scorers(
    model: str,
    prompts: Sequence[str],
    network: PromptableNetwork,
    chosen: Any,
    dataset: PublicDataSet,
    setting: Setting,
) -> tuple[dict[str, Scorer], dict[str, Any]]:
    """Scoring functions of the model per prompting mode, and training metadata."""
    if model in (PAPER, SAMED):
        chosen = with_empty_slices(chosen)
    if model in (UNET, ATTENTION, SAMED):
        if model == SAMED:
            segmenter, facts = _samed(network, chosen, dataset, setting)
        else:
            segmenter, facts = _unet(chosen, dataset, setting, attention=model == ATTENTION)
        return {FREE: lambda: _scored(segmenter, dataset, setting)}, facts
    adapter, facts = None, {}
    if model != BASE:
        adapter, facts = _adapted(network, chosen, dataset, setting, model)
    predictor = predictor_of(network, adapter, cache=EmbeddingCache(2**30))
    intensity = _intensity(model, dataset)

    def prompted(make: Callable[..., dict[str, Any]]) -> Scorer:
        return lambda: _scored(_prompting(predictor, dataset, intensity, make), dataset, setting)

    ways: dict[str, Scorer] = {
        CLICK: prompted(_click),
        RANDOM: prompted(_random),
        BOX: prompted(_box),
        FREE: lambda: _scored(_free(predictor), dataset, setting),
        CORRECTED: lambda: _corrected(predictor, dataset, setting),
    }
    return {prompt: ways[prompt] for prompt in prompts}, facts


def _adapted(
    network: PromptableNetwork, chosen: list[Any], dataset: PublicDataSet, setting: Setting, model: str
) -> tuple[Adapter, dict[str, Any]]:
    recipe = lora.Recipe(synthesis=model not in (PLAIN, PAPER_PLAIN), estimate_folds=0, guard="off")
    if model in (PAPER, PAPER_PLAIN):
        recipe = replace(recipe, preset=_paper_preset(dataset))
    recipe = _overridden(recipe, setting)
    started = time.monotonic()
    inputs = AdaptInputs(network, chosen, intensity=replace(_intensity(model, dataset), scale=network.scale))
    run = RunContext(np.random.default_rng(setting.seed), max_seconds=setting.seconds)
    adapter = lora.adapt(inputs, recipe, run)
    return adapter, {"seconds": round(time.monotonic() - started, 1), "steps": adapter.metrics["steps"]}


def _intensity(model: str, dataset: PublicDataSet) -> IntensitySpec:
    """Intensity scaling of a row: the paper's rows use the min-max range of each slice for tumours."""
    return MINMAX if dataset.merged and model in (PAPER, PAPER_PLAIN, SAMED) else dataset.intensity


def _paper_preset(dataset: PublicDataSet) -> str:
    return "paper tumour" if dataset.merged else "paper"


def _overridden(recipe: lora.Recipe, setting: Setting) -> lora.Recipe:
    size = () if setting.image_size is None else (f"image_size={setting.image_size}",)
    return with_overrides(recipe, (*size, *setting.recipe))


def _samed(
    network: PromptableNetwork, chosen: list[Any], dataset: PublicDataSet, setting: Setting
) -> tuple[Segmenter, dict[str, Any]]:
    """The K + 1 head, trained on the samples of the paper's preset."""
    recipe = _overridden(lora.Recipe(preset=_paper_preset(dataset)), setting)
    intensity = replace(_intensity(SAMED, dataset), scale=network.scale)
    steps = [0]
    trained, structures = train_samed(
        network,
        chosen,
        intensity,
        recipe,
        seed=setting.seed,
        seconds=setting.seconds,
        report=lambda progress: steps.__setitem__(0, progress.step),
    )
    size = network.image_size
    return lambda volume, _: segment_unet(trained, structures, volume, intensity, size), {"steps": steps[0]}


def _unet(
    chosen: list[Any], dataset: PublicDataSet, setting: Setting, *, attention: bool
) -> tuple[Segmenter, dict[str, Any]]:
    steps = [0]
    network, structures = train_unet(
        chosen,
        dataset.intensity,
        seed=setting.seed,
        seconds=setting.seconds,
        report=lambda progress: steps.__setitem__(0, progress.step),
        attention=attention,
    )
    return lambda volume, _: segment_unet(network, structures, volume, dataset.intensity), {"steps": steps[0]}


def _free(predictor: Predictor) -> Segmenter:
    return lambda volume, _: segment(volume, predictor, options=SegmentOptions(axis=0)).labelmap


def _bodies(mask: NDArray[np.bool_], dataset: PublicDataSet) -> list[NDArray[np.bool_]]:
    """Masks to prompt separately: the whole mask, or each connected component of a scattered structure."""
    if not dataset.scattered:
        return [mask] if mask.sum() >= SMALLEST_CLICKED else []
    parts, count = ndimage.label(mask)
    bodies = [parts == number for number in range(1, count + 1)]
    return [body for body in bodies if body.sum() >= SMALLEST_CLICKED]


def _click(mask: NDArray[np.bool_], index: int) -> dict[str, Any]:
    """A click at the innermost pixel, as in the papers."""
    column, row = centre_click(mask)
    return {"points_ijk": np.array([[column, row, index]], float), "point_labels": np.array([1])}


def _random(mask: NDArray[np.bool_], index: int) -> dict[str, Any]:
    """A click at a random pixel of it, with a fixed seed (the paper's Tables 5 and 6)."""
    column, row = random_click(mask, np.random.default_rng([index, int(mask.sum())]))
    return {"points_ijk": np.array([[column, row, index]], float), "point_labels": np.array([1])}


def _box(mask: NDArray[np.bool_], index: int) -> dict[str, Any]:
    """The tight box; where the mask is one pixel wide, extended by half a pixel on each available side."""
    corners = tight_box(mask).astype(float)
    flat = corners[0] == corners[1]
    corners = np.clip(corners + np.where(flat, [[-0.5], [0.5]], 0), 0, np.array(mask.shape[::-1]) - 1)
    return {"box_ijk": np.pad(corners, ((0, 0), (0, 1)), constant_values=index)}


def _prompting(
    predictor: Predictor, dataset: PublicDataSet, intensity: IntensitySpec, make: Callable[..., dict[str, Any]]
) -> Segmenter:
    """One prompt per structure and slice that contains it."""

    def run(volume: Volume, reference: Labelmap) -> Labelmap:
        prompts = [
            Prompt(0, index, structure=name, **make(body, index))
            for index, labels in enumerate(reference.volume.array)
            for value, name in reference.structures.items()
            for body in _bodies(labels == value, dataset)
        ]
        options = SegmentOptions(axis=0, propagate=False)
        return segment(volume, predictor, intensity=intensity, prompts=prompts, options=options).labelmap

    return run


def _corrected(predictor: Predictor, dataset: PublicDataSet, setting: Setting) -> list[dict[str, Any]]:
    """DSC of each structure after 1 to 5 clicks per body and slice, each further one at the innermost pixel of the
    largest error.

    Slices that contain the structure, each structure separately.
    """
    rows = []
    for case, volume, reference in unseen_cases(dataset, setting.data, setting.cases, setting.slices):
        counts: dict[str, NDArray[np.int64]] = {}
        reader = SliceReader(volume, dataset.intensity, predictor.image_size)
        for index, labels in enumerate(reference.volume.array):
            frame, embedding = reader.frame(index), predictor.encode([reader.square(index)])[0]
            for value, name in reference.structures.items():
                learned = [value] if predictor.knows(value) else []
                for body in _bodies(labels == value, dataset):
                    for turn, mask in enumerate(_clicked(predictor, embedding, frame, body, learned)):
                        sums = counts.setdefault(name, np.zeros((CLICKS, 3), np.int64))
                        sums[turn] += [(mask & body).sum(), mask.sum(), body.sum()]
        rows += [
            {"case": case, "structure": name, "clicks": turn + 1, "dsc": 2 * both / (found + there)}
            for name, sums in counts.items()
            for turn, (both, found, there) in enumerate(sums.tolist())
        ]
    return rows


def _clicked(
    predictor: Predictor, embedding: Embedding, frame: SliceFrame, body: NDArray[np.bool_], learned: list[int]
) -> Iterator[NDArray[np.bool_]]:
    """The masks after 1 to 5 clicks; once there is no error the last one is repeated."""
    points, labels = [centre_click(body)], [1]
    for _ in range(CLICKS):
        coords = np.array([[x, y, frame.index] for x, y in points], float)
        prompt = Prompt(0, frame.index, points_ijk=coords, point_labels=np.array(labels))
        mask = predictor.on_voxels(predictor.answer(embedding, prompt, frame, learned), frame)[0] > 0
        yield mask
        parts, count = ndimage.label(mask != body)
        if count:
            largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
            points.append(centre_click(largest))
            labels.append(int(body[points[-1][1], points[-1][0]]))


def _scored(segmenter: Segmenter, dataset: PublicDataSet, setting: Setting) -> list[dict[str, Any]]:
    rows: list[Row] = []
    for case, volume, reference in unseen_cases(dataset, setting.data, setting.cases, setting.slices):
        prediction = segmenter(volume, reference)
        rows += evaluate_case(prediction, reference, dataset.structures, axis=0, case=case)
    keep = ("case", "structure", "scope", "dsc", "iou", "hd95_mm", "nsd", "volume_pred_ml", "volume_ref_ml")
    return [{key: getattr(row, key) for key in keep} for row in rows]


def _means(cell: dict[str, Any]) -> dict[str, float]:
    if cell["prompt"] == CORRECTED:
        return {str(clicks): round(_mean(cell, clicks=clicks), 3) for clicks in range(1, CLICKS + 1)}
    return {scope: round(_mean(cell, scope=scope), 3) for scope in ("all_slices", "oracle_slices")}


def _mean(cell: dict[str, Any], structures: Sequence[str] | None = None, **chosen: Any) -> float:
    """Mean DSC over structures of the mean over cases, of the rows with the selected values."""
    names = sorted({row["structure"] for row in cell["scores"]} if structures is None else structures)
    per_structure = [
        [r["dsc"] for r in cell["scores"] if r["structure"] == n and all(r[k] == v for k, v in chosen.items())]
        for n in names
    ]
    return float(np.mean([np.mean(values) for values in per_structure if values]))


Cells = dict[tuple[str, int, str, str], dict[str, Any]]


def _head(setting: Setting) -> str:
    return (
        f"Mean DSC over structures. {setting.seconds:g} s of training on {torch.get_num_threads()} threads of "
        f"{platform.machine()}; up to {setting.cases} test cases with about {setting.slices} slices each; "
        f"seed {setting.seed}; base {setting.base}.\n"
    )


def _base_table(cells: Cells) -> str:
    """The base model as shipped: one click, one box, 2 to 5 clicks."""
    turns = range(2, CLICKS + 1)
    head = ["data set", CLICK, BOX, *(f"{turn} clicks" for turn in turns)]
    rows = []
    for name in (name for name in DATASETS if (name, 0, BASE, CORRECTED) in cells):
        click, box, corrected = (cells[name, 0, BASE, prompt] for prompt in (CLICK, BOX, CORRECTED))
        values = [_mean(click, scope="oracle_slices"), _mean(box, scope="oracle_slices")]
        rows.append([name, *(f"{v:.3f}" for v in [*values, *(_mean(corrected, clicks=turn) for turn in turns)])])
    return markdown(head, rows)


def _table(cells: Cells) -> str:
    """Base, adapted and U-Net, per data set and number of exemplar slices, over the structures in the exemplars."""
    head = [
        "data set",
        "exemplar slices",
        *(f"{model}, {prompt}, {scope.split('_')[0]}" for model, prompt, scope in COLUMNS),
    ]
    rows = []
    for name, shots in sorted({(d, s) for d, s, _, _ in cells if s}, key=lambda k: (list(DATASETS).index(k[0]), k[1])):
        names = sorted({r["structure"] for m in MODELS for r in cells.get((name, shots, *m), {"scores": []})["scores"]})
        values = []
        for model, prompt, scope in COLUMNS:
            cell = cells.get((name, 0 if model == BASE else shots, model, prompt))
            values.append(f"{_mean(cell, names, scope=scope):.3f}" if cell else "")
        rows.append([name, shown(shots), *values])
    return markdown(head, rows)


def _paper_tables(cells: Cells) -> str:
    """For each data set, tables in the paper's layout, its numbers next to ours."""
    names = [name for name in DATASETS if any(key[0] == name for key in cells)]
    own = {name: {key[1:]: cell for key, cell in cells.items() if key[0] == name} for name in names}
    return "\n".join(f"{name}\n\n{cheap_lunch.tables(name, own[name])}" for name in names)


def _curves(cells: Cells) -> str:
    """Per structure, DSC against the number of corrective clicks."""
    head = ["data set", "exemplar slices", "structure", *(f"{n} click{'s' * (n > 1)}" for n in range(1, CLICKS + 1))]
    rows = []
    for (name, shots, _, prompt), cell in sorted(
        cells.items(), key=lambda item: (list(DATASETS).index(item[0][0]), item[0][1:])
    ):
        if prompt != CORRECTED:
            continue
        for structure in sorted({row["structure"] for row in cell["scores"]}):
            values = [_mean(cell, [structure], clicks=n) for n in range(1, CLICKS + 1)]
            rows.append([name, shown(shots) if shots else "base", structure, *(f"{value:.3f}" for value in values)])
    return markdown(head, rows)
