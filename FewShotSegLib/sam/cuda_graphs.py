"""A promptable network on a GPU as CUDA graphs: one launch instead of hundreds of small kernels.

Kernels of small networks finish before the CPU has launched the next one, so the GPU is idle most of the time. A graph
is captured once per call signature (the shapes of the arguments) and replayed for every later call. The first call of a
signature runs eagerly, so that one-time initialization is never captured. Where capture fails, the network runs eagerly
from then on, which is logged once.

`GraphedInference` is for inference; `graphed_training` captures the forward and backward pass of training steps.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from FewShotSegLib.sam.network import Embedding, PromptableNetwork, PromptBatch

logger = logging.getLogger(__name__)

MOST_GRAPHS = 24  # per network; each keeps its inputs and outputs in memory

Call = Callable[..., tuple[Tensor, ...]]


class GraphedInference:
    """Replays known calls and captures those that occur a second time.

    The weights that a call uses must not be replaced or freed; they are kept alive.
    """

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()
        self._replays: dict[Hashable, Call] = {}
        self._pool: Any = None
        self._broken = False

    def __len__(self) -> int:
        """Number of captured call signatures."""
        return len(self._replays)

    def replayed(self, kind: str, arguments: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """The outputs of this kind of call if it was captured, as copies that the caller owns."""
        replay = self._replays.get((kind, _signature(arguments)))
        return replay(*arguments) if replay else None

    def __call__(self, kind: str, call: Call, arguments: Sequence[Tensor], network: nn.Module) -> tuple[Tensor, ...]:
        """The outputs of `call(*arguments)`, which is captured the second time. `kind` distinguishes calls whose
        arguments have equal shapes; `network` has the weights.
        """
        key = kind, _signature(arguments)
        if key not in self._seen or self._broken or len(self._replays) >= MOST_GRAPHS:
            self._seen.add(key)
            return call(*arguments)
        try:
            with _same_stream():
                self._replays[key] = self._recorded(call, arguments, network)
        except RuntimeError as error:  # including out of memory: graphs hold on to theirs
            self._broken = True
            logger.warning("Predicting without CUDA graphs, which takes longer: %s", error)
        if self._broken:
            self._replays.clear()
            self._pool = None
            _give_memory_back()
            return call(*arguments)
        return self._replays[key](*arguments)

    def _recorded(self, call: Call, arguments: Sequence[Tensor], network: nn.Module) -> Call:
        own = [argument.clone() for argument in arguments]
        kept_alive: list[Any] = [*network.modules(), *network.parameters(), *network.buffers()]
        with _without_cast_cache():
            with _nothing_may_wait():
                call(*own)
            _warmed_up(lambda: call(*own))
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                results = call(*own)

        def replay(*arguments: Tensor, _kept_alive: list[Any] = kept_alive) -> tuple[Tensor, ...]:
            for mine, given in zip(own, arguments, strict=True):
                mine.copy_(given)
            graph.replay()
            return tuple(result.clone() for result in results)

        return replay


@contextlib.contextmanager
def graphed_training(network: PromptableNetwork, wanted: bool = True) -> Iterator[Callable[[], None]]:
    """Within the block, `network.encode` and `network.decode` are CUDA graphs where gradients are required.

    Yields a function to call at the start of every loss: a graph can serve one call between two of these, because its
    backward pass needs the saved activations of its forward pass. Modules of the network must not be replaced
    meanwhile.
    """
    if not wanted or network.device.type != "cuda":
        yield lambda: None
        return
    graphs = TrainingGraphs(network)
    with graphs.in_place():
        yield graphs.begin


class TrainingGraphs:
    """Forward and backward passes of a network as graphs. A call of a new kind runs as it is; its graph is captured at
    the next `begin`, because a capture fails while an autograd graph of the same parameters is alive: their gradient
    accumulators belong to the stream of that graph.
    """

    def __init__(self, network: PromptableNetwork) -> None:
        self.network = network
        self._plain = network.encode, network.decode
        self._wanted: dict[tuple[Any, ...], tuple[nn.Module, tuple[Tensor, ...]]] = {}
        self._used: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, Callable[..., tuple[Tensor, ...]]] = {}
        self._broken = False

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network's `encode` and `decode` are these."""
        self.network.encode, self.network.decode = self.encode, self.decode  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.network.encode, self.network.decode
            self.clear()

    def __len__(self) -> int:
        """How many kinds of calls are captured."""
        return len(self._graphs)

    def begin(self) -> None:
        """Begin a training step, when no autograd graph of the parameters is alive."""
        self._used.clear()
        # Accumulated gradients live in the buffers that the graph's next backward pass will overwrite.
        for parameter in self.network.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        for key, (module, samples) in list(self._wanted.items()):
            if key[2] == _signature(samples) and not self._broken:  # in the same precision
                del self._wanted[key]
                self._capture(key, module, samples)
        if self._broken and self._graphs:
            self.clear()

    def clear(self) -> None:
        """Free the memory of all graphs; none may have a pending backward pass."""
        self._graphs.clear()
        self._wanted.clear()
        _give_memory_back()

    def encode(self, images: Tensor) -> Embedding:
        if not torch.is_grad_enabled() or not any(p.requires_grad for p in self.network.image_encoder.parameters()):
            return self._plain[0](images)
        features, *skips = self.run(_Encoding(self.network.image_encoder, self._plain[0]), [images])
        return Embedding(features, tuple(skips))

    def decode(self, embedding: Embedding, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return self._plain[1](embedding, prompts)
        form = Form.of(embedding, prompts)
        parts = nn.ModuleList([self.network.prompt_encoder, self.network.mask_decoder])
        logits, iou = self.run(_Decoding(parts, self._plain[1], form), form.flat(embedding, prompts))
        return logits, iou

    def run(self, module: nn.Module, arguments: list[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of a call: by its graph, or as it is while there is none."""
        kind = type(module).__name__, getattr(module, "form", None), _signature(arguments)
        key = *kind, self._used[kind]
        self._used[kind] += 1
        if key in self._graphs:
            return self._graphs[key](*arguments)
        if not self._broken and len(self._graphs) + len(self._wanted) < MOST_GRAPHS:
            samples = tuple(a.detach().clone().requires_grad_(a.requires_grad) for a in arguments)
            self._wanted.setdefault(key, (module, samples))
        return module(*arguments)

    def _capture(self, key: Hashable, module: nn.Module, samples: tuple[Tensor, ...]) -> None:
        try:
            self._graphs[key] = self._captured(module, samples)
        except RuntimeError as error:  # too little memory among them: graphs keep theirs
            self._broken = True
            logger.warning("Training without CUDA graphs, which takes longer: %s", error)

    def _captured(self, module: nn.Module, samples: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        with _same_stream(), _without_cast_cache():
            with _nothing_may_wait():
                _pass(module, samples)
            graphed: Any = torch.cuda.make_graphed_callables(module, samples, allow_unused_input=True)
        return graphed


class Form(NamedTuple):
    """Which tensors an embedding and its prompts consist of."""

    skips: int
    masks: bool
    has_mask: bool
    tokens: bool

    @classmethod
    def of(cls, embedding: Embedding, prompts: PromptBatch) -> Form:
        return cls(len(embedding.skips), *(part is not None for part in _optional(prompts)))

    @staticmethod
    def flat(embedding: Embedding, prompts: PromptBatch) -> list[Tensor]:
        """Features, skips, coords, labels, and those of the optional tensors that are present."""
        optional = [part for part in _optional(prompts) if part is not None]
        return [embedding.features, *embedding.skips, prompts.coords, prompts.labels, *optional]

    def unflat(self, arguments: Sequence[Tensor]) -> tuple[Embedding, PromptBatch]:
        """The inverse of `flat`."""
        coords, labels, *optional = arguments[1 + self.skips :]
        parts = [optional.pop(0) if there else None for there in self[1:]]
        return Embedding(arguments[0], tuple(arguments[1 : 1 + self.skips])), PromptBatch(coords, labels, *parts)


def _optional(prompts: PromptBatch) -> tuple[Tensor | None, ...]:
    return prompts.masks, prompts.has_mask, prompts.tokens


class _Encoding(nn.Module):
    """`PromptableNetwork.encode` as a module with the encoder's parameters, taking and returning tensors."""

    def __init__(self, encoder: nn.Module, encode: Callable[[Tensor], Embedding]) -> None:
        super().__init__()
        self.encoder = encoder
        self._encode = encode

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        embedding = self._encode(images)
        return embedding.features, *embedding.skips


class _Decoding(nn.Module):
    """`PromptableNetwork.decode` as a module with the parameters of prompt encoder and decoder."""

    def __init__(self, parts: nn.ModuleList, decode: Callable[..., tuple[Tensor, Tensor]], form: Form) -> None:
        super().__init__()
        self.parts, self.form = parts, form
        self._decode = decode

    def forward(self, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        return self._decode(*self.form.unflat(arguments))


def _signature(arguments: Sequence[Tensor]) -> Hashable:
    kind = arguments[0].device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return cast, *((tuple(a.shape), a.dtype, a.requires_grad) for a in arguments)


@contextlib.contextmanager
def _without_cast_cache() -> Iterator[None]:
    """Autocast without its cast cache, whose tensors a graph would read after they have been freed."""
    enabled = torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=enabled, cache_enabled=False):
        yield


def _pass(module: nn.Module, arguments: Sequence[Tensor]) -> None:
    """Forward and backward pass; the gradients are discarded."""
    total = torch.stack([result.float().sum() for result in module(*arguments)]).sum()
    learning = [tensor for tensor in (*module.parameters(), *arguments) if tensor.requires_grad]
    torch.autograd.grad(total, learning, allow_unused=True)


@contextlib.contextmanager
def _same_stream() -> Iterator[None]:
    """Restore the current stream, which a failed capture would leave set to its own."""
    stream = torch.cuda.current_stream() if torch.cuda.is_available() else None
    try:
        yield
    except RuntimeError:
        if stream is not None:
            torch.cuda.set_stream(stream)
        raise


def _give_memory_back() -> None:
    gc.collect()  # graphs and their callables form reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _nothing_may_wait() -> Iterator[None]:
    """Raises RuntimeError on any GPU synchronization. A capture that fails at such a point leaves PyTorch's random
    number generator unusable, so it is not started.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _warmed_up(call: Callable[[], object]) -> None:
    """Warm-up calls for library initialization and autotuning, on a side stream as capture requires."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
