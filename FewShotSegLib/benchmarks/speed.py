"""`fewshotseg benchmark speed`: speed-up over stock segment_anything with the same weights.

Only ratios are meaningful, from interleaved runs on one machine; milliseconds are for orientation. Weights are random
where they do not affect time, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from FewShotSegLib.benchmarks import speed_gpu
from FewShotSegLib.benchmarks.pairing import Measurement, interleaved, measurement_table, milliseconds, ratios, spread
from FewShotSegLib.benchmarks.plain import plain_copy, random_vit_b
from FewShotSegLib.benchmarks.workload import (
    QUICK,
    Size,
    a_patient,
    a_square,
    as_if_replayed,
    encoded,
    intensity_of,
    lesson_of,
    lora_gradient,
    lora_step,
    operators,
    source_of,
)
from FewShotSegLib.data.adapter import Adapter
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import to_dict
from FewShotSegLib.demo import phantom
from FewShotSegLib.devices import bfloat16_pays, choose_device, training_precision
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_frame import frame_of
from FewShotSegLib.inference.embedding_cache import EmbeddingCache
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.inference.segment import segment
from FewShotSegLib.io.files import write_text_whole
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.methods import lora
from FewShotSegLib.sam import presets
from FewShotSegLib.sam.clicks import centre_click
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PADDING, POSITIVE, Embedding, PromptableNetwork, PromptBatch
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.training import prompted_recipe
from FewShotSegLib.training.fit import step_rng

logger = logging.getLogger(__name__)

CLICKS, READ_OUTS = 64, 64  # masks for comparing stock and ours


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; the table is written to stdout and to `<out>.md`."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    measurements = MEASUREMENTS if chosen.device == "cpu" else speed_gpu.MEASUREMENTS
    names = chosen.only or list(measurements)
    unknown = sorted(set(names) - set(measurements))
    if unknown:
        raise InputError(f"Unknown measurement {unknown[0]}; allowed are {', '.join(measurements)}.")
    if chosen.threads is not None and chosen.threads < 1:
        raise InputError(f"--threads must be 1 or more, got {chosen.threads}.")
    size = QUICK if chosen.quick else Size()
    with _threads(chosen.threads or torch.get_num_threads()):
        choose_device(chosen.device, logger.info)
        head = _head(size) if chosen.device == "cpu" else speed_gpu.head(size)
        text = head + measurement_table(list(_logged(names, measurements, size)))
    write_text_whole(Path(f"{chosen.out}.md"), text)
    sys.stdout.write(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewshotseg benchmark speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small images and two repeats, to see that it runs")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: as many as it takes by itself")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="what is measured (cpu)")
    parser.add_argument("--out", default="speed", help="prefix of the result file")
    named = f"{', '.join(MEASUREMENTS)}; with --device cuda {', '.join(speed_gpu.MEASUREMENTS)}"
    parser.add_argument("--only", nargs="+", metavar="NAME", help=named)
    return parser


def _head(size: Size) -> str:
    return (
        f"Ratios of times, paired turn by turn: median and quartiles of {size.repeats}. {torch.get_num_threads()} "
        f"threads of {platform.machine()}, PyTorch {torch.__version__}, bfloat16 "
        f"{'pays' if bfloat16_pays() else 'does not pay'} here, random weights for ViT-B. Stock is segment_anything's "
        "own code in float32 on the same weights.\n\n"
    )


def _logged(
    names: Iterable[str], measurements: Mapping[str, Callable[[Size], Iterator[Measurement]]], size: Size
) -> Iterator[Measurement]:
    for name in names:
        for row in measurements[name](size):
            logger.info("%s: %.3g; %s", row.name, row.value.median, row.note)
            yield row


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------- encoding


def _encoding(size: Size) -> Iterator[Measurement]:
    """Stock image encoder against ours, in float32 and in the faster precision; then whether masks agree."""
    for image_size in size.encode_px:
        network = random_vit_b(image_size)
        images = network.normalize(torch.from_numpy(a_square(size, size.slices // 2, image_size))[None])
        encoders = {
            "stock": functools.partial(encoded, plain_copy(network), images, False),
            "float32": functools.partial(encoded, network, images, False),
            "bfloat16": functools.partial(encoded, network, images, bfloat16_pays()),
        }
        seconds = interleaved(encoders, size.repeats)
        name = f"ViT-B encoding at {image_size} px: stock / ours"
        for kind, wanted in (("float32", None), ("bfloat16", 1.5)):
            note = f"{milliseconds(seconds['stock'])} / {milliseconds(seconds[kind])}"
            shown = f"{kind} where it pays" if kind == "bfloat16" else kind
            yield Measurement(f"{name}, {shown}", ratios(seconds["stock"], seconds[kind]), wanted, note)
        stock = encoders["stock"]()
        for kind in ("float32", "bfloat16"):
            yield from _agreement(network, stock, encoders[kind](), f"at {image_size} px, {kind}")


def _agreement(network: PromptableNetwork, stock: Tensor, ours: Tensor, where: str) -> Iterator[Measurement]:
    """IoU of masks from two sets of features (1, C, h, w) through the same decoder, and through linear read-outs.

    With random weights the zero of the logits is arbitrary, so maps are thresholded at the mean of stock's. (More than
    half of the slice is air: the median would be within the air and separate its noise.)
    """
    rng = np.random.default_rng(0)
    clicks = rng.uniform(0, network.image_size, (CLICKS, 2)).astype(np.float32)
    directions = torch.from_numpy(rng.normal(size=(READ_OUTS, stock.shape[1])).astype(np.float32))
    with torch.inference_mode():
        maps = {
            f"masks of {CLICKS} random clicks": [_clicked(network, features, clicks) for features in (stock, ours)],
            f"{READ_OUTS} random linear read-outs": [
                torch.einsum("nc,chw->nhw", directions, features[0]) for features in (stock, ours)
            ],
        }
    for name, (theirs, our) in maps.items():
        values = iou_at_mean(theirs.flatten(1).numpy(), our.flatten(1).numpy())
        yield Measurement(f"IoU of {name} {where}: stock and ours", spread(values), 0.99, f"smallest {min(values):.4f}")


def _clicked(network: PromptableNetwork, features: Tensor, clicks: NDArray[np.float32]) -> Tensor:
    """Logits (N, h', w') for one click each."""
    answers = []
    for some in np.array_split(clicks, max(len(clicks) // 8, 1)):
        coords = torch.zeros(len(some), 2, 2)
        coords[:, 0] = torch.from_numpy(some)
        labels = torch.tensor([POSITIVE, PADDING]).expand(len(some), -1)
        answers.append(network.decode(Embedding(features), PromptBatch(coords, labels))[0][:, 0])
    return torch.cat(answers)


def iou_at_mean(first: NDArray[np.float32], second: NDArray[np.float32]) -> list[float]:
    """IoU of the rows of two arrays (N, pixels), both thresholded at the means (N,) of the first."""
    cut = first.mean(axis=1, keepdims=True)
    a, b = first > cut, second > cut
    union = (a | b).sum(1)
    return [float(v) for v in np.where(union > 0, (a & b).sum(1) / np.maximum(union, 1), 1.0)]


# ------------------------------------------------------------------------------------------------------------- training


def _training(size: Size) -> Iterator[Measurement]:
    """A LoRA step of ViT-B: plain against ours with the same losses, and against the preset for small GPUs."""
    network = random_vit_b(size.step_px)
    plain = plain_copy(network)
    preset = presets.PRESETS["8GB"]
    every_block = replace(preset, encoder_blocks=presets.ALL_BLOCKS, checkpointing=False)
    lesson = lesson_of(source_of(size, size.step_px), preset.batch_size)
    name = f"LoRA step of ViT-B at {size.step_px} px, batch {preset.batch_size}: plain / ours"
    blocks = f"last {preset.encoder_blocks} blocks"
    for chosen, shown, wanted in ((every_block, "all blocks", 1.5), (preset, f"{blocks}, as preset 8GB", None)):
        with (
            lora_step(plain, every_block, lesson, None) as plain_step,
            lora_step(network, chosen, lesson, training_precision(torch.device("cpu"))) as our_step,
        ):
            losses = [step().history[0]["loss"] for step in (plain_step, our_step)]
            seconds = interleaved({"plain": plain_step, "ours": our_step}, size.repeats)
        note = (
            f"{milliseconds(seconds['plain'])} / {milliseconds(seconds['ours'])}; "
            f"first losses {losses[0]:.4f} / {losses[1]:.4f}; plain: all blocks, float32, prompt after prompt"
        )
        yield Measurement(f"{name}, {shown}", ratios(seconds["plain"], seconds["ours"]), wanted, note)


def _synthesis(size: Size) -> Iterator[Measurement]:
    """Time in which a training step of the small bundled model consumes a batch against the time to synthesize one.

    Corrective clicks, validation and drawing prompts slow training further; without them the comparison is stricter.
    """
    network = load_base("bundled-small")
    batch_size = presets.COMPACT.batch_size
    source = source_of(size, network.image_size)
    numbers = itertools.count()

    def draw() -> list[Sample]:
        return [source.draw(step_rng(0, next(numbers))) for _ in range(batch_size)]

    amp = training_precision(torch.device("cpu"))
    with _threads(1), lora_step(network, presets.COMPACT, lesson_of(source, batch_size), amp) as step:
        seconds = interleaved({"step": step, "draw": draw}, 10 * size.repeats)
    note = f"{milliseconds(seconds['step'], batch_size)} / {milliseconds(seconds['draw'], batch_size)} per sample"
    name = f"synthesized / used up by training bundled-small, samples per second, batch {batch_size}, 1 thread"
    yield Measurement(name, ratios(seconds["step"], seconds["draw"]), 3.0, note)


# ---------------------------------------------------------------------------------------------------- bundled models


def _small(size: Size) -> Iterator[Measurement]:
    """Encoding a slice and decoding a click, with our own ViT-B encoding as the reference."""
    predictor = Predictor(load_base("bundled-small"), cache=EmbeddingCache(1))
    volume, labelmap = a_patient(size.slices)
    middle = size.slices // 2
    column, row = centre_click(labelmap.volume.array[middle] > 0)
    prompt = Prompt(0, middle, points_ijk=np.array([[column, row, middle]], float), point_labels=np.array([1]))
    frame = frame_of(volume, 0, middle, predictor.image_size)
    # Two alternately, so that the cache, which holds one, never hits.
    squares = itertools.cycle([a_square(size, k, predictor.image_size) for k in (middle - 1, middle)])
    embedding = predictor.encode([next(squares)])[0]

    def click() -> None:
        predictor.on_voxels(predictor.decode(embedding, predictor.user_prompt(prompt, frame)), frame)

    yardstick, shown = _yardstick(size)
    encode = functools.partial(_repeated, lambda: predictor.encode([next(squares)]))
    contestants: dict[str, Callable[[], object]] = {
        "ViT-B": yardstick,
        "encode": encode,
        "click": functools.partial(_repeated, click),
    }
    seconds = interleaved(contestants, size.repeats)
    titles = {
        "encode": "encoding a slice",
        "click": "answering a click, with the mask on the voxels of a 512 x 512 slice",
    }
    for kind, what in titles.items():
        note = f"{milliseconds(seconds['ViT-B'])} / {milliseconds(seconds[kind], CALLS)}"
        yield Measurement(f"{shown} / bundled-small {what}", ratios(seconds["ViT-B"], seconds[kind], CALLS), None, note)


CALLS = 10  # of millisecond operations, per turn


def _repeated(run: Callable[[], Any]) -> None:
    for _ in range(CALLS):
        run()


def _yardstick(size: Size) -> tuple[Callable[[], Any], str]:
    image_size = size.encode_px[-1]
    network = random_vit_b(image_size)
    images = network.normalize(torch.from_numpy(a_square(size, size.slices // 2, image_size))[None])
    return functools.partial(encoded, network, images, bfloat16_pays()), f"our ViT-B encoding at {image_size} px"


def _bundled(size: Size) -> Iterator[Measurement]:
    """TinyViT's encoder against unfused layers, decoding a click against SAM's decoder, a fifth click against answering
    all five again.
    """
    network = load_base("bundled")
    images = network.normalize(torch.from_numpy(a_square(size, size.slices // 2, network.image_size))[None], "unit")

    def layer_by_layer() -> Tensor:
        with torch.enable_grad():  # the weights are frozen: no autograd graph, and nothing is fused
            return network.encode(images).features

    contestants: dict[str, Callable[[], Any]] = {
        "plain": layer_by_layer,
        "float32": functools.partial(encoded, network, images, False),
        "bfloat16": functools.partial(encoded, network, images, bfloat16_pays()),
    }
    seconds = interleaved(contestants, size.repeats)
    for kind, shown, wanted in (("float32", "float32", 1.6), ("bfloat16", "bfloat16 where it pays", 4.0)):
        note = f"{milliseconds(seconds['plain'])} / {milliseconds(seconds[kind])}"
        name = f"TinyViT encoding at {network.image_size} px: plain / ours, {shown}"
        yield Measurement(name, ratios(seconds["plain"], seconds[kind]), wanted, note)
    features = contestants["float32"]()
    side = float(network.image_size)
    prompts = PromptBatch(torch.tensor([[[side / 2, side / 3], [0.0, 0.0]]]), torch.tensor([[POSITIVE, PADDING]]))
    clicks = {
        "plain": functools.partial(_decoded_by_sam, network, features, prompts),
        "ours": functools.partial(_decoded, network, features, prompts),
    }
    seconds = interleaved(clicks, size.repeats)
    off = float((clicks["plain"]() - clicks["ours"]()).abs().max())
    note = f"{milliseconds(seconds['plain'])} / {milliseconds(seconds['ours'])}; logits differ by up to {off:.1e}"
    name = "decoding one click: SAM's decoder / ours, float32"
    yield Measurement(name, ratios(seconds["plain"], seconds["ours"]), 2.0, note)
    yield _fifth_click(network, size)


def _fifth_click(network: PromptableNetwork, size: Size) -> Measurement:
    """One more click on a slice with four: point by point from the first, against only the last step."""
    predictor = Predictor(network)
    frame = frame_of(a_patient(size.slices)[0], 0, 0, predictor.image_size)
    embedding = predictor.encode([a_square(size, 0, predictor.image_size)])[0]
    points = np.array([[100 + 60 * number, 300 - 40 * number, 0] for number in range(5)], float)
    four, five = (Prompt(0, 0, points_ijk=points[:n], point_labels=np.arange(n) % 2 == 0) for n in (4, 5))

    def from_the_first() -> None:
        predictor.forget_images()
        predictor.answer(embedding, five, frame)

    def one_more() -> None:
        predictor.answer(embedding, four, frame)  # the fifth undone: takes no step
        predictor.answer(embedding, five, frame)

    seconds = interleaved({"plain": from_the_first, "ours": one_more}, size.repeats)
    note = f"{milliseconds(seconds['plain'])} / {milliseconds(seconds['ours'])}"
    name = "fifth click on a slice: all five again / one step more"
    return Measurement(name, ratios(seconds["plain"], seconds["ours"]), 3.0, note)


def _decoded(network: PromptableNetwork, features: Tensor, prompts: PromptBatch) -> Tensor:
    with torch.inference_mode():
        return network.decode(Embedding(features), prompts)[0]


def _decoded_by_sam(network: PromptableNetwork, features: Tensor, prompts: PromptBatch) -> Tensor:
    encoder = network.prompt_encoder
    with torch.inference_mode():
        sparse = network.sparse_embedding(prompts)
        dense = encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(1, -1, *features.shape[-2:])
        return network.mask_decoder.predict_masks(features, encoder.get_dense_pe(), sparse, dense)[0]


def _operators(size: Size) -> Iterator[Measurement]:
    """Number of operators of encoding a slice, decoding a click, and loss and gradients of a LoRA step: launches of a
    GPU without graphs.
    """
    networks = {name: functools.partial(load_base, name) for name in ("bundled-small", "bundled")}
    networks["ViT-B"] = functools.partial(random_vit_b, size.encode_px[0])
    for name, made in networks.items():
        network = made()
        predictor = Predictor(network, cache=EmbeddingCache(1))
        # Two alternately, so that the cache, which holds one, never hits.
        squares = itertools.cycle([a_square(size, k, network.image_size) for k in range(2)])
        embedding = predictor.encode([next(squares)])[0]
        points = 1 + network.padding_points
        coords, labels = torch.zeros(1, points, 2), torch.full((1, points), PADDING)
        coords[:, 0], labels[:, 0] = network.image_size / 2, POSITIVE
        single = {
            "encoding a slice": operators(lambda: predictor.encode([next(squares)])),  # noqa: B023 - called at once
            "answering a click": operators(lambda: predictor.decode(embedding, PromptBatch(coords, labels))),  # noqa: B023
        }
        preset = presets.COMPACT if network.family == "compact" else presets.PRESETS["12GB"]  # no checkpointing: graphs
        lesson = lesson_of(source_of(size, network.image_size), preset.batch_size)
        amp = training_precision(torch.device("cpu"))
        with lora_gradient(network, preset, lesson, amp) as gradient:
            eager = operators(gradient)
            with as_if_replayed(network):
                left = operators(gradient)
        for what, count in single.items():
            note = "on a GPU one graph, once recorded"
            yield Measurement(f"{name}, {what}: operators", spread([count]), note=note)
        what = f"loss and gradients of LoRA, batch {preset.batch_size}"
        yield Measurement(f"{name}, {what}: operators", spread([eager]))
        yield Measurement(f"{name}, the same on a GPU beside six graphs: launches", spread([left]), most=eager / 4)


def _segment(size: Size) -> Iterator[Measurement]:
    """A volume with an adapter of five structures and no prompts."""
    network = load_base("bundled-small")
    predictor = Predictor(network, _untrained_adapter(network, intensity_of(size)), cache=EmbeddingCache(1))
    volume, _ = a_patient(size.slices)
    yardstick, shown = _yardstick(size)
    seconds = interleaved({"ViT-B": yardstick, "segment": lambda: segment(volume, predictor)}, size.repeats)
    per_second = size.slices / spread(seconds["segment"]).median
    name = f"{shown} / segmenting a slice of 512 x 512, {len(phantom.STRUCTURES)} structures, no prompts"
    note = f"{milliseconds(seconds['ViT-B'])} / {milliseconds(seconds['segment'], size.slices)}; "
    note += f"{per_second:.3g} slices per second"
    yield Measurement(name, ratios(seconds["ViT-B"], seconds["segment"], size.slices), None, note)


def _untrained_adapter(network: PromptableNetwork, intensity: IntensitySpec) -> Adapter:
    recipe = prompted_recipe.resolve(lora.Recipe(), network.family, network.device)
    spec = prompted_recipe.adaptation_spec(recipe, network)
    adaptation = Adaptation(network, spec, sorted(phantom.STRUCTURES), generator=torch.Generator().manual_seed(0))
    return Adapter(
        tensors=adaptation.tensors(network),
        method="lora",
        recipe=to_dict(recipe),
        base_model=network.name,
        base_sha256=network.sha256,
        structures=phantom.STRUCTURES,
        intensity=intensity,
        image_size=network.image_size,
        seed=0,
        axis=0,
        architecture={"lora": to_dict(spec.lora), "tokens": recipe.tokens, "full_decoder": False},
    )


MEASUREMENTS: dict[str, Callable[[Size], Iterator[Measurement]]] = {
    "encoding": _encoding,
    "training": _training,
    "synthesis": _synthesis,
    "bundled-small": _small,
    "bundled": _bundled,
    "segment": _segment,
    "operators": _operators,
}
