"""From slices and prompts to masks: encode once (cached), decode often."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from FewShotSegLib.data.adapter import Adapter, check_base
from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.recipe import from_dict
from FewShotSegLib.devices import encoding_precision
from FewShotSegLib.errors import InputError
from FewShotSegLib.imaging.slice_frame import SliceFrame, mask_from_network, to_network, xy_from_ijk
from FewShotSegLib.imaging.slice_reader import check_square
from FewShotSegLib.lora.adaptation import Adaptation, AdaptationSpec
from FewShotSegLib.lora.heads import target_of
from FewShotSegLib.lora.layers import LoraSpec
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.clicks import FIRST_PROMPT
from FewShotSegLib.sam.cuda_graphs import Form, GraphedInference
from FewShotSegLib.sam.network import (
    BOX_CORNER_HIGH,
    BOX_CORNER_LOW,
    NEGATIVE,
    PADDING,
    POSITIVE,
    Embedding,
    PromptableNetwork,
    PromptBatch,
    mask_prompts,
)

from .embedding_cache import EmbeddingCache

MAPS = "maps."  # name prefix of tensors that belong to structure maps, not to the network
SLOW_SLICE = 2.0  # seconds
MASK_LOGIT = 8.0  # logit inside a user-given mask prompt


@dataclass(frozen=True, eq=False)
class Masks:
    """Logits (N, h, w) float32 over the padded network square, and predicted IoU (N,)."""

    logits: NDArray[np.float32]
    iou: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Steps:
    """The masks after each point of a prompt, kept so that one more point repeats none of them.

    The first step takes `first` coordinates of the prompt (1, T, 2), every further step one more.
    """

    features: torch.Tensor
    prompts: PromptBatch
    structures: tuple[int, ...]
    first: int
    masks: list[Masks]

    def shared_with(self, other: _Steps) -> list[Masks]:
        """The masks of the points that both prompts begin with."""
        old, new = self.prompts, other.prompts
        if (self.features is not other.features) or (self.structures, self.first) != (other.structures, other.first):
            return []
        if old.masks is not None or new.masks is not None:
            return []
        both = min(old.coords.shape[1], new.coords.shape[1])
        equal = (old.coords[:, :both] == new.coords[:, :both]).all(-1) & (old.labels[:, :both] == new.labels[:, :both])
        beginning = int(equal[0].long().cumprod(0).sum())
        return self.masks[: max(beginning - self.first + 1, 0)]


class Predictor:
    """A network with or without an adapter. Cheap to construct: several can share one network and one cache.

    `encode` and `decode` apply the adapter for the duration of the call only, so predictors of base and adapter can be
    used alternately.
    """

    def __init__(
        self,
        network: PromptableNetwork,
        adapter: Adapter | None = None,
        *,
        scale: str | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.network = network
        self.adapter = adapter
        self.scale = adapter.intensity.scale if adapter else scale or network.scale
        self.cache = EmbeddingCache() if cache is None else cache  # `or` would not share an empty cache, which is falsy
        self.adaptation: Adaptation | None = None
        self._digest = ""
        self._depth = 0
        self._last: _Steps | None = None
        self.slice_seconds = 0.0  # encoding time of the last slice
        self.graphs = GraphedInference() if network.device.type == "cuda" else None  # None: eager
        if adapter is not None:
            check_base(adapter, network.name, network.sha256)
            self.adaptation = restored_adaptation(network, adapter)
            self._digest = adapter.digest

    @property
    def identity(self) -> tuple[str, int, str]:
        """What determines the model's output: digests of base model and adapter, and the image size."""
        return self.network.sha256, self.network.image_size, self._digest

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.network.device

    @property
    def image_size(self) -> int:
        """Side length in pixels of the network's input square."""
        return self.network.image_size

    def knows(self, structure: int) -> bool:
        """Whether the adapter has learned this structure."""
        return self.adaptation is not None and structure in self.adaptation.structures

    @property
    def advice(self) -> str:
        """Advice if encoding a slice is slow on this computer, else ""."""
        if self.slice_seconds <= SLOW_SLICE or self.network.name == registry.SMALL:
            return ""
        instead = "adapt that one" if self.adapter is not None else "choose it instead"
        return (
            f"This computer takes {self.slice_seconds:.1f} s for a slice with the base model {self.network.name}. The "
            f"base model {registry.SMALL} is less accurate and about twenty times as fast: {instead}, or use a GPU."
        )

    @contextmanager
    def ready(self) -> Iterator[PromptableNetwork]:
        """The network with the adapter in place; reentrant."""
        if self.adaptation is None or self._depth:
            yield self.network
            return
        with self.adaptation.applied(self.network):
            self._depth += 1
            try:
                yield self.network
            finally:
                self._depth -= 1

    def forget_images(self) -> None:
        """Free all cached embeddings; slices will be re-encoded when needed."""
        self.cache.clear()
        self._last = None

    def encode(self, images01: Sequence[NDArray[np.float32]]) -> list[Embedding]:
        """Embeddings of network squares (S, S) float32 in [0, 1]; from the cache where available."""
        for image in images01:
            check_square(image, self.image_size)
        keys = [(sha256_of_array(image), self.network.sha256, self._digest, self.scale) for image in images01]
        found = [self.cache.get(key) for key in keys]
        missing = [i for i, embedding in enumerate(found) if embedding is None]
        if missing:
            batch = torch.from_numpy(np.stack([images01[i] for i in missing])).to(self.device)
            started = time.perf_counter()
            with torch.inference_mode(), encoding_precision(self.device):
                features, *skips = self._run("encode", self._encoded, [batch])
            self.slice_seconds = (time.perf_counter() - started) / len(missing)
            encoded = Embedding(features, tuple(skips))
            for row, i in enumerate(missing):
                found[i] = one = encoded.one(row)
                self.cache.put(keys[i], one)
        return [embedding for embedding in found if embedding is not None]

    def _run(
        self, kind: str, call: Callable[..., tuple[torch.Tensor, ...]], arguments: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """`call(network, *arguments)` with the adapter in place; on a GPU as a CUDA graph, once captured."""
        known = self.graphs.replayed(kind, arguments) if self.graphs is not None else None
        if known is not None:
            return known
        with self.ready() as network:
            if self.graphs is None:
                return call(network, *arguments)
            return self.graphs(kind, functools.partial(call, network), arguments, network)

    def _encoded(self, network: PromptableNetwork, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoded = network.encode(network.normalize(images, self.scale))
        return encoded.features, *encoded.skips

    def decode(self, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int] = ()) -> Masks:
        """Target logits of N prompts on one slice. With N structures that the adapter knows, their tokens are added."""
        embedding = embedding.to(torch.float32)  # the decoder is small: half precision would only lose accuracy
        with torch.inference_mode():
            if structures and self.adaptation is not None:
                prompts = self.adaptation.structure_prompts(self.network, embedding, prompts, structures)
            form = Form.of(embedding, prompts)
            decode = functools.partial(_decoded, form=form)
            kind = f"decode {form} by {id(self.network.mask_decoder)}"  # an outer context may have replaced it
            logits, iou = self._run(kind, decode, form.flat(embedding, prompts))
        return Masks(logits.float().cpu().numpy(), iou.float().cpu().numpy())

    def decode_structures(self, embedding: Embedding, structures: Sequence[int]) -> Masks:
        """Target logits of structures on one slice, without clicks."""
        if self.adaptation is None:
            raise InputError("A base model has no named structures: give points, a box or an adapter.")
        count, points = len(structures), FIRST_PROMPT
        coords = torch.zeros(count, points, 2, device=self.network.device)
        labels = torch.full((count, points), PADDING, device=self.network.device)
        return self.decode(embedding, PromptBatch(coords, labels), structures)

    def answer(self, embedding: Embedding, prompt: Prompt, frame: SliceFrame, structures: Sequence[int] = ()) -> Masks:
        """Target logits of a user's prompt on one slice.

        The second and every further point correct the mask of the preceding points, as users click and as promptable
        models are trained (Kirillov et al. 2023, appendix A): they have never seen all points at once.

        With structures that the adapter knows, the result is the mean of the logits with and without their tokens. The
        click localizes, the tokens identify, and their errors differ: the mean beats both on real cases.
        """
        whole = self.user_prompt(prompt, frame)
        first = whole.coords.shape[1] - max(len(prompt.points_ijk) - 1, 0)
        steps = _Steps(embedding.features, whole, tuple(structures), first, [])
        if self._last is not None:
            steps.masks.extend(self._last.shared_with(steps))
        for end in range(first + len(steps.masks), whole.coords.shape[1] + 1):
            given = replace(whole, coords=whole.coords[:, :end], labels=whole.labels[:, :end])
            if steps.masks:
                previous = torch.from_numpy(steps.masks[-1].logits).to(self.network.device)
                given = given.with_masks(mask_prompts(previous, self.network.mask_input_size))
            steps.masks.append(self.decode_known(embedding, given, structures))
        self._last = steps
        return steps.masks[-1]

    def decode_known(self, embedding: Embedding, prompts: PromptBatch, structures: Sequence[int]) -> Masks:
        """Target logits of N prompts on one slice, on N structures that the adapter knows, or on unknown ones (none
        given): the mean of the logits with and without structure tokens.
        """
        plain = self.decode(embedding, prompts)
        if not structures or self.adaptation is None:
            return plain
        told = self.decode(embedding, prompts, structures)
        half = np.float32(0.5)
        return Masks(half * (plain.logits + told.logits), half * (plain.iou + told.iou))

    def user_prompt(self, prompt: Prompt, frame: SliceFrame) -> PromptBatch:
        """One user prompt as a batch of one: first point, box or padding, further points."""
        coords, labels = _coords_and_labels(prompt, frame, self.network.padding_points)
        device = self.network.device
        batch = PromptBatch(torch.from_numpy(coords)[None].to(device), torch.from_numpy(labels)[None].to(device))
        return batch if prompt.mask is None else batch.with_masks(self.mask_prompt(prompt.mask, frame))

    def mask_prompt(self, mask: NDArray[np.bool_], frame: SliceFrame) -> torch.Tensor:
        """A mask (H, W) on the voxel grid as mask prompt logits (1, 1, m, m)."""
        side = self.network.mask_input_size
        square = to_network(mask.astype(np.float32), frame)
        soft = square.reshape(side, frame.image_size // side, side, -1).mean((1, 3))
        logits = torch.from_numpy((2 * soft - 1) * np.float32(MASK_LOGIT))
        return logits[None, None].to(self.network.device)

    def on_voxels(self, masks: Masks, frame: SliceFrame) -> NDArray[np.float32]:
        """Logits (N, H, W) on the slice's own voxel grid."""
        return np.stack([mask_from_network(logits, frame) for logits in masks.logits])


def _decoded(network: PromptableNetwork, *arguments: torch.Tensor, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    return target_of(*network.decode(*form.unflat(arguments)))


def restored_adaptation(network: PromptableNetwork, adapter: Adapter) -> Adaptation:
    """The adaptation an adapter was saved from."""
    facts = adapter.architecture or {}
    spec = AdaptationSpec(
        from_dict(LoraSpec, facts["lora"]) if facts else LoraSpec(),
        facts.get("tokens", 4),
        facts.get("full_decoder", False),
        facts.get("locator", True),
    )
    adaptation = Adaptation(network, spec, sorted(adapter.structures), generator=torch.Generator().manual_seed(0))
    adaptation.load(network, network_tensors(adapter))
    return adaptation


def network_tensors(adapter: Adapter) -> dict[str, NDArray[Any]]:
    """The tensors of an adapter that belong to its network."""
    return {name: tensor for name, tensor in adapter.tensors.items() if not name.startswith(MAPS)}


def _coords_and_labels(
    prompt: Prompt, frame: SliceFrame, padding_points: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Network coordinates (T, 2) and labels (T,) in the order used in the model's training, padded where a part is
    missing.

    The first point is a positive one if there is any: a negative point alone gives the model nothing to segment.
    """
    xy = xy_from_ijk(prompt.points_ijk, frame).astype(np.float32).reshape(-1, 2)
    positive = np.asarray(prompt.point_labels).reshape(-1) > 0
    first = int(np.argmax(positive)) if len(positive) else 0
    order = np.array([first, *(n for n in range(len(xy)) if n != first)], int)[: len(xy)]
    xy, signs = xy[order], np.where(positive, POSITIVE, NEGATIVE).astype(np.int64)[order]
    if prompt.box_ijk is not None:
        corners = xy_from_ijk(prompt.box_ijk, frame)
        middle = np.stack([corners.min(0), corners.max(0)]).astype(np.float32)
        kinds = np.array([BOX_CORNER_LOW, BOX_CORNER_HIGH])
        if not len(xy):
            padding = max(padding_points - 1, 0)
            middle = np.concatenate([np.zeros((padding, 2), np.float32), middle])
            kinds = np.concatenate([np.full(padding, PADDING), kinds])
    else:
        middle, kinds = np.zeros((padding_points, 2), np.float32), np.full(padding_points, PADDING)
    return np.concatenate([xy[:1], middle, xy[1:]]), np.concatenate([signs[:1], kinds, signs[1:]])
