"""Workload of `speed`: a phantom on the grid of a clinical CT, and a training step on it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.demo import phantom
from FewShotSegLib.devices import encoding_precision
from FewShotSegLib.imaging.slice_reader import SliceReader
from FewShotSegLib.lora.adaptation import Adaptation
from FewShotSegLib.methods import lora
from FewShotSegLib.progress import silent
from FewShotSegLib.sam import presets
from FewShotSegLib.sam.cuda_graphs import TrainingGraphs
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.synthesis.plan import Sample
from FewShotSegLib.synthesis.synthesizer import Synthesizer
from FewShotSegLib.training import prompted_recipe
from FewShotSegLib.training.fit import FitResult, LossAt, Schedule, fit
from FewShotSegLib.training.lesson import checkpointing, weights_of
from FewShotSegLib.training.prompted import synthesizer_of
from FewShotSegLib.training.queries import Query, click_query, images_of, on_device, query_loss, token_query

ANNOTATED = 3  # slices of the phantom that serve as exemplars


@dataclass(frozen=True)
class Size:
    """Size of the workload. `encode_px`: image sizes for encoding, the last also the reference for the small model."""

    repeats: int = 7
    encode_px: tuple[int, ...] = (512, 1024)
    step_px: int = 512
    slices: int = 24  # of the phantom


QUICK = Size(2, (256, 512), 256, 8)


@functools.lru_cache(maxsize=1)
def a_patient(slices: int) -> tuple[Volume, Labelmap]:
    """A phantom on the grid of a clinical CT."""
    return phantom.patient(np.random.default_rng(0), shape=(slices, 512, 512), spacing_mm=(0.625, 0.625, 200 / slices))


def an_exemplar(size: Size) -> Exemplar:
    """The slices with the most structures."""
    volume, labelmap = a_patient(size.slices)
    labels = labelmap.volume.array
    order = sorted(range(len(labels)), key=lambda k: len(np.unique(labels[k])), reverse=True)
    return Exemplar(volume, labels, phantom.STRUCTURES, 0, tuple(order[:ANNOTATED]), name="phantom")


def intensity_of(size: Size) -> IntensitySpec:
    return IntensitySpec.auto(a_patient(size.slices)[0])


def a_square(size: Size, index: int, image_size: int) -> NDArray[np.float32]:
    volume, _ = a_patient(size.slices)
    return SliceReader(volume, intensity_of(size), image_size).square(index)


def source_of(size: Size, image_size: int) -> Synthesizer:
    return synthesizer_of([an_exemplar(size)], intensity_of(size), image_size, lora.Recipe(), phantom.STRUCTURES)


def encoded(network: PromptableNetwork, images: Tensor, bfloat16: bool) -> Tensor:
    with torch.inference_mode(), encoding_precision(images.device, bfloat16=bfloat16):
        return network.encode(images).features.float()


# PyTorch operators that only create views, allocate memory, or dispatch to another operator.
_NO_WORK = (
    "alias _reshape_alias as_strided as_strided_ broadcast_to chunk contiguous detach detach_ diagonal empty "
    "empty_like empty_strided expand expand_as flatten item linear _local_scalar_dense lift_fresh matmul moveaxis "
    "movedim narrow new_empty numpy_T permute reshape resize_ resize_as_ resolve_conj resolve_neg result_type "
    "select set_ slice split split_with_sizes squeeze t to transpose type_as unbind unflatten unfold unsafe_split "
    "_unsafe_view unsqueeze view view_as _nnpack_available _is_mkldnn_bf16_supported"
)
_IDLE = frozenset(_NO_WORK.split())


def operators(call: Callable[[], object]) -> int:
    """Number of PyTorch operators of a call on the CPU that compute or copy: about the number of kernels that would be
    launched on a GPU.
    """
    call()  # warm-up: one-time work is not counted
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    return sum(_at_work(event) for event in profiler.events() if event.cpu_parent is None)


def _at_work(event: Any) -> int:
    """Number of working operators in a profiled one: itself, or those that it calls."""
    below = sum(_at_work(child) for child in event.cpu_children)
    library, _, name = event.name.partition("::")
    return below or int(library in ("aten", "mkldnn") and name not in _IDLE)


def peak_bytes_on_gpu(call: Callable[[], object]) -> int:
    """Peak bytes allocated by PyTorch on the GPU during a call, above its previous level."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


Lesson = tuple[list[Sample], list[Query]]


def lesson_of(source: Synthesizer, batch_size: int) -> Lesson:
    """One batch with the prompts of the default recipe."""
    recipe, rng = lora.Recipe(), np.random.default_rng(0)
    samples = [source.draw(rng) for _ in range(batch_size)]
    structures = sorted(source.structures)
    count = min(recipe.token_prompts, max(2, len(structures)))
    clicks = click_query(samples, recipe.click_prompts, rng)
    return samples, [clicks, token_query(samples, structures, count, rng, recipe.token_click_probability)]


@contextlib.contextmanager
def lora_step(
    network: PromptableNetwork, preset: presets.Preset, lesson: Lesson, amp: torch.dtype | None
) -> Iterator[Callable[[], FitResult]]:
    """A training step: encode, decode the queries, backward pass, update. Samples are precomputed."""
    with _lora_loss(network, preset, lesson) as (parameters, loss_at):
        yield lambda: fit(parameters, loss_at, Schedule(1), report=silent, amp=amp)


@contextlib.contextmanager
def lora_gradient(
    network: PromptableNetwork, preset: presets.Preset, lesson: Lesson, amp: torch.dtype | None
) -> Iterator[Callable[[], None]]:
    """The forward and backward pass of a training step, without the update."""
    with _lora_loss(network, preset, lesson) as (parameters, loss_at):

        def gradient() -> None:
            with torch.autocast(network.device.type, amp, enabled=amp is not None):
                loss, _ = loss_at(0)
            loss.backward()
            for parameter in parameters.values():
                parameter.grad = None

        yield gradient


@contextlib.contextmanager
def _lora_loss(
    network: PromptableNetwork, preset: presets.Preset, lesson: Lesson
) -> Iterator[tuple[Mapping[str, Tensor], LossAt]]:
    recipe = lora.Recipe(encoder_blocks=preset.encoder_blocks)
    samples, queries = lesson[0], [on_device(query, network.device) for query in lesson[1]]
    images = images_of(samples, network, "sam")
    weights = weights_of(recipe)
    generator = torch.Generator().manual_seed(0)
    spec = prompted_recipe.adaptation_spec(recipe, network)
    adaptation = Adaptation(network, spec, sorted(phantom.STRUCTURES), generator=generator)

    def loss_at(_: int) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        embedding = network.encode(images)
        losses = [query_loss(network, adaptation, embedding, query, weights) for query in queries]
        return torch.stack(losses).mean(), {}

    with adaptation.applied(network) as parameters, checkpointing(network, preset.checkpointing):
        yield parameters, loss_at


@contextlib.contextmanager
def as_if_replayed(network: PromptableNetwork) -> Iterator[None]:
    """`encode` and `decode` of training do what replaying a CUDA graph does, apart from the launch itself: inputs and
    gradients are copied, outputs are those of the first call. To count what is left to launch, on any computer.
    """
    with _SimulatedGraphs(network).in_place():
        yield


class _SimulatedGraphs(TrainingGraphs):
    def __init__(self, network: PromptableNetwork) -> None:
        super().__init__(network)
        self._outputs: dict[Hashable, tuple[Tensor, ...]] = {}

    def run(self, module: nn.Module, arguments: list[Tensor]) -> tuple[Tensor, ...]:
        key = type(module), getattr(module, "form", None), *(argument.shape for argument in arguments)
        if key not in self._outputs:
            self._outputs[key] = tuple(output.detach() for output in module(*arguments))
        learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return _Replayed.apply(self._outputs[key], *arguments, *learned)


class _Replayed(torch.autograd.Function):
    """One copy for each input, and in the backward pass one for the gradient of each output."""

    @staticmethod
    def forward(ctx: Any, outputs: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes = [(value.shape, value.dtype) for value in inputs]
        for value in inputs:
            if not isinstance(value, nn.Parameter):
                torch.empty_like(value).copy_(value)
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        for gradient in gradients:
            torch.empty_like(gradient).copy_(gradient)
        wanted = zip(ctx.shapes, ctx.needs_input_grad[1:], strict=True)
        return None, *(torch.empty(shape, dtype=dtype) if needed else None for (shape, dtype), needed in wanted)
