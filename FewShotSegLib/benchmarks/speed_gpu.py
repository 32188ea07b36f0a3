"""`fewshotseg benchmark speed --device cuda`: the same measurements on a GPU.

Times are from CUDA events around a call, after warm-up, interleaved; memory is the peak of PyTorch's allocator.
"Eager" means without CUDA graphs and prefetched samples. Stock runs with PyTorch's defaults, without TF32 in matrix
products.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from FewShotSegLib.benchmarks import asap_cost, workload
from FewShotSegLib.benchmarks.pairing import Measurement, milliseconds, ratios, spread
from FewShotSegLib.benchmarks.plain import plain_copy, random_vit_b
from FewShotSegLib.demo import phantom
from FewShotSegLib.devices import encoding_precision, training_precision
from FewShotSegLib.inference.embedding_cache import EmbeddingCache
from FewShotSegLib.inference.predictor import Predictor
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.methods import lora
from FewShotSegLib.networks import build
from FewShotSegLib.progress import Progress, silent
from FewShotSegLib.sam import presets
from FewShotSegLib.sam.cuda_graphs import GraphedInference, graphed_training
from FewShotSegLib.sam.loading import load_base
from FewShotSegLib.sam.network import PADDING, POSITIVE, PromptableNetwork, PromptBatch
from FewShotSegLib.training import prompted_recipe
from FewShotSegLib.training.ahead import DrawnByThreads
from FewShotSegLib.training.context import AdaptInputs, RunContext
from FewShotSegLib.training.fit import Schedule, fit
from FewShotSegLib.training.lesson import Lesson
from FewShotSegLib.training.patches import patch_loss

WARM_STEPS, TIMED_STEPS = 20, 20  # of an adaptation
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def encoding(size: workload.Size) -> Iterator[Measurement]:
    """ViT-B's encoder: stock in float32 against ours as a CUDA graph, one image and eight."""
    image_size = size.encode_px[-1]
    network = random_vit_b(image_size).to("cuda")
    plain = plain_copy(network)
    for count in (1, 8):
        images = torch.rand(count, 3, image_size, image_size, device="cuda")
        calls: dict[str, Callable[[], object]] = {
            "stock": _without_tf32(functools.partial(workload.encoded, plain, images, False)),
            "stock bfloat16": functools.partial(workload.encoded, plain, images, True),
            "float32": functools.partial(workload.encoded, network, images, False),
            "bfloat16": functools.partial(workload.encoded, network, images, True),
        }
        peaks = {name: workload.peak_bytes_on_gpu(call) for name, call in calls.items()}
        graphs = {kind: _as_graph(network, images, kind == "bfloat16") for kind in ("float32", "bfloat16")}
        seconds = in_turns({**calls, **graphs}, size.repeats)
        for kind, wanted in (("float32", 1.0), ("bfloat16", 4.0 if count == 1 else 6.0)):
            note = f"{milliseconds(seconds['stock'])} / {milliseconds(seconds[kind])}"
            note += f"; {_gb(peaks['stock'])} / {_gb(peaks[kind])}; stock bfloat16 "
            note += milliseconds(seconds["stock bfloat16"])
            name = f"ViT-B encoding at {image_size} px, batch {count}: stock float32 / ours, {kind}"
            yield Measurement(name, ratios(seconds["stock"], seconds[kind]), wanted, note)


def _without_tf32(call: Callable[[], object]) -> Callable[[], object]:
    """The call with matrix products in float32 throughout, as PyTorch computes them unless told otherwise."""

    def called() -> object:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            return call()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return called


def _as_graph(network: PromptableNetwork, images: Tensor, bfloat16: bool) -> Callable[[], object]:
    graphs = GraphedInference()

    def encode(given: Tensor) -> tuple[Tensor, ...]:
        return (network.encode(given).features.float(),)

    def call() -> object:
        with torch.inference_mode(), encoding_precision(images.device, bfloat16=bfloat16):
            return graphs.replayed("encode", [images]) or graphs("encode", encode, [images], network)

    return call


def training(size: workload.Size) -> Iterator[Measurement]:
    """A LoRA step of ViT-B: plain against ours."""
    image_size = size.encode_px[-1]
    network = random_vit_b(image_size).to("cuda")
    plain = plain_copy(network)
    preset = replace(presets.PRESETS["8GB"], encoder_blocks=presets.ALL_BLOCKS, checkpointing=False)
    lesson = workload.lesson_of(workload.source_of(size, image_size), preset.batch_size)
    amp = training_precision(network.device)
    with (
        workload.lora_step(plain, preset, lesson, None) as plain_step,
        workload.lora_step(network, preset, lesson, amp) as ours,
    ):
        steps: dict[str, Callable[[], object]] = {"plain": _without_tf32(plain_step), "ours": ours}
        peaks = {name: workload.peak_bytes_on_gpu(step) for name, step in steps.items()}
        with graphed_training(network) as begin:

            def graphed() -> object:
                with torch.autocast("cuda", amp):  # as within `fit`
                    begin()
                return ours()

            seconds = in_turns({**steps, "ours": graphed}, size.repeats)
    note = f"{milliseconds(seconds['plain'])} / {milliseconds(seconds['ours'])}; "
    note += f"{_gb(peaks['plain'])} / {_gb(peaks['ours'])}: {peaks['ours'] / peaks['plain']:.2f}"
    name = f"LoRA step of ViT-B at {image_size} px, batch {preset.batch_size}: plain / ours"
    yield Measurement(name, ratios(seconds["plain"], seconds["ours"]), 5.0, note)


def predicting(size: workload.Size) -> Iterator[Measurement]:
    """Encoding a slice and decoding a click, eagerly and as CUDA graphs, and their number of launches."""
    for name in ("bundled-small", "bundled"):
        network = load_base(name, device="cuda")
        coords = torch.tensor([[[90.0, 70.0], [0.0, 0.0], [0.0, 0.0]]], device="cuda")
        prompts = PromptBatch(coords, torch.tensor([[POSITIVE, PADDING, PADDING]], device="cuda"))
        squares = [np.random.default_rng(n).random((network.image_size,) * 2, np.float32) for n in (0, 1)]
        contestants: dict[str, Callable[[], object]] = {}
        for kind in ("eager", "graphs"):
            predictor = Predictor(network, cache=EmbeddingCache(1))
            if kind == "eager":
                predictor.graphs = None
            embedding = predictor.encode(squares[:1])[0]
            # Two squares alternately, so that the cache, which holds one, never hits.
            contestants[f"encode {kind}"] = functools.partial(_encode_both, predictor, squares)
            contestants[f"click {kind}"] = functools.partial(predictor.decode, embedding, prompts)
        seconds = in_turns(contestants, size.repeats)
        launched = {kind: launches(call) for kind, call in contestants.items()}
        for what, items in (("encode", 2), ("click", 1)):
            before, after = f"{what} eager", f"{what} graphs"
            note = f"{milliseconds(seconds[before], items)} / {milliseconds(seconds[after], items)}; "
            note += f"launches {launched[before] // items} / {launched[after] // items}"
            yield Measurement(f"{name}, {what}: eager / graphs", ratios(seconds[before], seconds[after]), None, note)


def _encode_both(predictor: Predictor, squares: list[np.ndarray]) -> None:
    for square in squares:
        predictor.encode([square])


def adapting(size: workload.Size) -> Iterator[Measurement]:
    """Steps of an adaptation, including sample synthesis, eagerly and with CUDA graphs and prefetched samples."""
    for name, wanted in (("bundled-small", 25.0), ("bundled", 12.0)):
        runs = {kind: _steps(name, size, graphs=kind == "graphs") for kind in ("eager", "graphs")}
        eager, graphs = runs["eager"], runs["graphs"]
        note = f"eager / graphs: {milliseconds(eager.seconds)} / {milliseconds(graphs.seconds)}; "
        note += f"{_gb(eager.peak_bytes)} / {_gb(graphs.peak_bytes)}; launches {eager.launches} / {graphs.launches}"
        rates = [1 / seconds for seconds in graphs.seconds]
        yield Measurement(f"{name}, adapting with graphs, steps per second", spread(rates), wanted, note)
        seconds = _default_step_seconds(name, size)
        what = f"{name}, adapting by default, steps per second"
        yield Measurement(what, spread([1 / s for s in seconds]), wanted, milliseconds(seconds))


def _default_step_seconds(name: str, size: workload.Size) -> list[float]:
    """Seconds of the steps of `lora` with its defaults, estimate and comparison with the base left out."""
    ended: list[float] = []

    def report(progress: Progress) -> None:
        if progress.message == "adapting":
            ended.append(time.perf_counter())

    recipe = lora.Recipe(steps=WARM_STEPS + TIMED_STEPS, estimate_folds=0, guard="off", validate_every=0)
    inputs = AdaptInputs(load_base(name, device="cuda"), [workload.an_exemplar(size)])
    lora.adapt(inputs, recipe, RunContext(np.random.default_rng(0), report, torch.device("cuda")))
    return list(np.diff(ended[-TIMED_STEPS:]))


@dataclass(frozen=True)
class _Steps:
    """Seconds of each step, peak memory, and launches of one."""

    seconds: list[float]
    peak_bytes: int
    launches: int


def _steps(name: str, size: workload.Size, *, graphs: bool) -> _Steps:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    network = load_base(name, device="cuda")
    recipe = replace(lora.Recipe(), structure_maps=False, encoder_blocks=presets.ALL_BLOCKS, batch_size=4)
    recipe = prompted_recipe.resolve(recipe, network.family, network.device)
    structures = phantom.STRUCTURES
    spec = prompted_recipe.adaptation_spec(recipe, network)
    adaptation = Adaptation(network, spec, sorted(structures), generator=torch.Generator().manual_seed(0))
    lesson = Lesson(network, adaptation, workload.source_of(size, network.image_size), recipe, network.scale, 0)
    ended: list[float] = []

    def report(progress: Progress) -> None:
        ended.append(time.perf_counter())

    with (
        adaptation.applied(network) as parameters,
        graphed_training(network, wanted=graphs) as begin,
        DrawnByThreads(lesson.draw, network.device if graphs else torch.device("cpu")) as drawn,
    ):
        lesson.begin, lesson.drawn = begin, drawn
        learn = functools.partial(fit, parameters, lesson.loss_at, amp=training_precision(network.device))
        learn(Schedule(WARM_STEPS + TIMED_STEPS), report=report)
        peak = torch.cuda.max_memory_reserved()  # allocated bytes leave out what graphs keep between replays
        one = launches(lambda: learn(Schedule(2), report=silent)) - launches(lambda: learn(Schedule(1), report=silent))
    return _Steps(list(np.diff(ended[WARM_STEPS:])), peak, one)


def patch_networks(size: workload.Size) -> Iterator[Measurement]:
    """A training step of each 3-D network on patches of 32 x 96 x 96, against the U-Net's."""
    patch = (32, 96, 96)
    image = torch.rand(2, 1, *patch, device="cuda")
    mask = image[:, 0] > 0.8
    steps = {name: _patch_step(name, patch, image, mask) for name in ("unet", "swinunet", "mambaunet")}
    seconds = in_turns(steps, size.repeats)
    for name in ("swinunet", "mambaunet"):
        note = f"{milliseconds(seconds[name])} / {milliseconds(seconds['unet'])}"
        most = 3.0 if name == "mambaunet" else None
        yield Measurement(f"a step of {name} / of unet", ratios(seconds[name], seconds["unet"]), note=note, most=most)


def choosing(size: workload.Size) -> Iterator[Measurement]:
    """A step that chooses its auxiliary data among 15 against one with fixed auxiliary data."""
    ratio = asap_cost.step_ratio("unet", 15, 10, size.repeats, device=torch.device("cuda"))
    yield Measurement("a step of asap with unet, 15 auxiliary data sets / a fixed one", ratio, most=1.05)


def _patch_step(name: str, patch: tuple[int, int, int], image: Tensor, mask: Tensor) -> Callable[[], None]:
    network = build(name, patch=patch, spacing=(3.0, 1.0, 1.0)).to("cuda")
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = patch_loss(network(image), mask).mean()
        loss.backward()
        optimizer.step()

    return step


def in_turns(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds per turn of each contestant by CUDA events, interleaved, after three warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(-3, repeats):
        for name, call in contestants.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            end.synchronize()
            if turn >= 0:
                seconds[name].append(start.elapsed_time(end) / 1000)
    return seconds


def launches(call: Callable[[], object]) -> int:
    """Number of GPU launches of a call: kernels, and CUDA graphs."""
    torch.cuda.synchronize()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if event.key in LAUNCHES)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def head(size: workload.Size) -> str:
    """Description of the hardware and software."""
    card = torch.cuda.get_device_name()
    return f"{card}, PyTorch {torch.__version__}; CUDA events, medians and quartiles of {size.repeats} turns.\n\n"


MEASUREMENTS: dict[str, Callable[[workload.Size], Iterator[Measurement]]] = {
    "predicting": predicting,
    "adapting": adapting,
    "encoding": encoding,
    "training": training,
    "networks": patch_networks,
    "choosing": choosing,
}
