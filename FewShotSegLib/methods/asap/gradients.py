"""Gradient similarity of two losses: their mean gradients, and the cosine between them.

Two ways to the same numbers. `probe` looks without training: nothing of the network, its buffers, `.grad` or the
random state is different afterwards. `Alignment` reads along while a training step runs the two backward passes it
needs anyway, so that the bandit's reward costs no further pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from FewShotSegLib.errors import InputError

Gradient = dict[str, Tensor]

_BLOCK = 1 << 16  # elements whose products are summed in single precision; sums of blocks are double


@dataclass(frozen=True)
class Similarity:
    """Cosine of two gradients, in [-1, 1], and gradient magnitude similarity 2 |a| |b| / (|a|^2 + |b|^2), in [0, 1].

    Both are 0 where a gradient is zero, and NaN where one is not finite.
    """

    cosine: float
    magnitude: float

    @classmethod
    def of_products(cls, aa: float, ab: float, bb: float) -> Similarity:
        """From the inner products of the gradients a and b."""
        norms = math.sqrt(aa) * math.sqrt(bb)
        if not math.isfinite(aa + ab + bb):
            return cls(math.nan, math.nan)
        if norms == 0.0:
            return cls(0.0, 0.0)
        return cls(min(max(ab / norms, -1.0), 1.0), 2 * norms / (aa + bb))


@dataclass(frozen=True, eq=False)
class Probe:
    """Mean loss over batches, and its gradient by name of parameter; parameters the loss does not reach are absent."""

    loss: float
    gradient: Gradient


def in_scope(parameters: Mapping[str, Tensor], prefixes: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return the parameters whose names start with one of the prefixes, all for none; a prefix without any is refused.

    >>> sorted(in_scope({"encoder.0.weight": torch.ones(1), "head.weight": torch.ones(1)}, ["head."]))
    ['head.weight']
    """
    prefixes = tuple(prefixes)
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in parameters):
            parts = ", ".join(sorted({name.split(".")[0] for name in parameters}))
            raise InputError(f'No parameter has a name that starts with "{prefix}"; the network has the parts {parts}.')
    return {name: value for name, value in parameters.items() if not prefixes or name.startswith(prefixes)}


def probe(
    network: nn.Module,
    parameters: Mapping[str, Tensor],
    losses: Iterable[Callable[[], Tensor]],
    *,
    scale: float = 1.0,
) -> Probe:
    """Return the mean over batches of a loss and of its gradient, one backward pass each; `losses` compute them.

    Needs memory for one gradient, however many batches: it is summed up in `.grad`, which is put aside meanwhile. With
    half precision `scale` keeps small gradients from vanishing, as a gradient scaler does; the result is unscaled.
    """
    total, count = 0.0, 0
    with _undisturbed(network), _grads_put_aside(parameters):
        for loss_of in losses:
            loss = loss_of()
            (loss * scale).backward(inputs=list(parameters.values()))
            total += float(loss.detach())
            count += 1
            del loss  # and with it the graph, before the next one is built
        if not count:
            raise ValueError("a gradient needs at least one batch")
        gradient = {name: p.grad.div_(count * scale) for name, p in parameters.items() if p.grad is not None}
    return Probe(total / count, gradient)


@contextlib.contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Norms take no note of what they see, nothing is dropped out, and no random number is used up.

    Only layers without parts of their own are put in evaluation mode: a network as a whole may answer differently there
    (without its deep supervision heads, say), and then the loss would be another one.
    """
    layers = [layer for layer in network.modules() if layer.training and next(layer.children(), None) is None]
    devices = {p.device for p in network.parameters() if p.is_cuda}
    for layer in layers:
        layer.eval()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for layer in layers:
            layer.train()


@contextlib.contextmanager
def _grads_put_aside(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    before = {name: p.grad for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    try:
        yield
    finally:
        for name, p in parameters.items():
            p.grad = before[name]


def similarity(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Similarity:
    """Return how alike two gradients are, over the parameters that both have."""
    return _similarity(_products(_blocks(first[name], second[name])) for name in first if name in second)


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of two tensors of one shape, in single precision at least."""
    for x, y in zip(a.reshape(-1).split(_BLOCK), b.reshape(-1).split(_BLOCK), strict=True):
        kind = torch.promote_types(x.dtype, torch.float32)
        yield x.to(kind), y.to(kind)


def _products(blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Inner products aa, ab, bb in float64. Elements stay in single precision: doubling them took ten times as long."""
    rows = [torch.stack([x @ x, x @ y, y @ y]).double() for x, y in blocks]
    return torch.stack(rows).sum(0) if len(rows) > 1 else rows[0]


def _similarity(products: Iterable[Tensor]) -> Similarity:
    products = list(products)
    return Similarity.of_products(*torch.stack(products).sum(0).tolist()) if products else Similarity(0.0, 0.0)


class Alignment:
    """Similarity of the gradients of two losses whose backward passes accumulate in the same `.grad`.

        with Alignment(parameters) as alignment:
            optimizer.zero_grad()
            alignment.expect("target");     target_loss.backward()
            alignment.expect("auxiliary");  auxiliary_loss.backward()
            optimizer.step()                                 # along g_T + g_a
            alignment.take().cosine

    It works by hooks, so the backward passes may be somebody else's: with `training.fit` and `accumulate=2` the loss of
    each micro-batch says first what it is. Keeps one copy of the gradient. Scaled gradients give the same similarities.
    Several steps before `take` are pooled by their inner products, without those that overflowed; "nothing" lets a pass
    go by unmeasured.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = dict(parameters)
        self._handles: list[RemovableHandle] = []
        self._phase = "nothing"
        self._target: Gradient = {}
        self._seen: set[str] = set()  # parameters that this step's target loss has reached
        self._step: dict[str, Tensor] = {}  # inner products of this step
        self._pooled: list[Tensor] = []

    def __enter__(self) -> Alignment:
        for name, parameter in self._parameters.items():
            self._handles.append(parameter.register_post_accumulate_grad_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._target.clear()

    def expect(self, phase: Literal["target", "auxiliary", "nothing"]) -> None:
        """Say what the next backward passes belong to; "target" after another phase begins a new step."""
        if phase == "target" and self._phase != "target":
            self._finish_step()
        self._phase = phase

    def take(self) -> Similarity:
        """Return the similarity over the steps since the last call, target first; zeros where none was measured."""
        self._finish_step()
        self._phase = "nothing"
        pooled, self._pooled = self._pooled, []
        return _similarity([products for products in pooled if products.isfinite().all()] or pooled)

    def state(self) -> dict[str, Any]:
        """The steps that were not taken yet, as JSON types, for a checkpoint between two steps."""
        self._finish_step()
        return {"pooled": [products.tolist() for products in self._pooled]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        device = next(iter(self._parameters.values())).device
        self._pooled = [torch.tensor(rows, dtype=torch.float64, device=device) for rows in state["pooled"]]

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def after(parameter: Tensor) -> None:
            grad = parameter.grad
            if grad is None or self._phase == "nothing":
                return
            if self._phase == "target":
                self._seen.add(name)
                if name in self._target:
                    self._target[name].copy_(grad)
                else:
                    self._target[name] = grad.detach().clone()
            elif name in self._seen:
                both = _blocks(self._target[name], grad.detach())  # `grad` is t + a
                self._step[name] = _products((target, total - target) for target, total in both)

        return after

    def _finish_step(self) -> None:
        if self._step:
            self._pooled.append(torch.stack(list(self._step.values())).sum(0))
        self._step.clear()
        self._seen.clear()
