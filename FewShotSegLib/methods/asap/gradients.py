"""Gradient similarity of two losses: their mean gradients, and the cosine between them.

Two implementations of the same quantity. `probe` measures without training: the network, its buffers, `.grad` and the
random state are unchanged afterwards. `Alignment` hooks into the two backward passes that a training step runs anyway,
so that the bandit's reward costs no extra pass.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from FewShotSegLib.errors import InputError
from FewShotSegLib.training.data_parallel import average_

Gradient = dict[str, Tensor]

_BLOCK = 1 << 16  # elements whose products are summed in float32; sums over blocks are float64


@dataclass(frozen=True)
class Similarity:
    """Cosine of two gradients, in [-1, 1], and gradient magnitude similarity 2 |a| |b| / (|a|^2 + |b|^2), in [0, 1].

    Both are 0 if a gradient is zero, and NaN if one is not finite.
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
    """Mean loss over batches, and its gradient by parameter name; parameters without a gradient are absent."""

    loss: float
    gradient: Gradient


def in_scope(parameters: Mapping[str, Tensor], prefixes: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return the parameters whose names start with one of the prefixes, or all if none are given; unmatched prefixes
    raise.

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

    Needs memory for one gradient, however many batches: it is accumulated in `.grad`, which is saved and restored. With
    half precision `scale` keeps small gradients from underflowing, as a gradient scaler does; the result is unscaled.
    """
    values: list[Tensor] = []  # read at the end: reading waits for the device
    with _undisturbed(network), _grads_put_aside(parameters):
        for loss_of in losses:
            loss = loss_of()
            (loss * scale).backward(inputs=list(parameters.values()))
            values.append(loss.detach())
            del loss  # and its autograd graph, before the next one is built
        if not values:
            raise ValueError("a gradient needs at least one batch")
        gradient = {name: p.grad.div_(len(values) * scale) for name, p in parameters.items() if p.grad is not None}
        average_(gradient.values())
    return Probe(float(torch.stack(values).double().mean()), gradient)


@contextlib.contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Normalization layers do not update their statistics, dropout is off, and no random numbers are consumed.

    Only leaf modules are put in evaluation mode: the network as a whole may have a different output there (without its
    deep supervision heads, say), and thus a different loss.
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
    """Return the similarity of two gradients, over the parameters that both have."""
    return _similarity(_products(_blocks(first[name], second[name])) for name in first if name in second)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of tensors of equal shape, in at least float32."""
    kind = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    for parts in zip(*(tensor.reshape(-1).split(_BLOCK) for tensor in tensors), strict=True):
        yield tuple(part.to(kind) for part in parts)


def _products(blocks: Iterable[tuple[Tensor, ...]]) -> Tensor:
    """Inner products aa, ab, bb in float64. Elements stay in float32: converting them took ten times as long."""
    rows = [torch.stack([x @ x, x @ y, y @ y]).double() for x, y in blocks]
    return torch.stack(rows).sum(0) if len(rows) > 1 else rows[0]


def _similarity(products: Iterable[Tensor]) -> Similarity:
    products = list(products)
    return Similarity.of_products(*torch.stack(products).sum(0).tolist()) if products else Similarity(0.0, 0.0)


class Alignment:
    """Similarity of the gradients of two losses whose backward passes accumulate in the same `.grad`.

        with Alignment(parameters, decay=0.9) as alignment:
            optimizer.zero_grad()
            alignment.expect("target");     target_loss.backward()
            alignment.expect("auxiliary");  auxiliary_loss.backward()
            optimizer.step()                                 # along g_T + g_a
            alignment.take().cosine

    It works by hooks, so the backward passes may be run elsewhere: with `training.fit` and `accumulate=2` the loss of
    each micro-batch first announces its phase. Several steps before `take` are pooled by their inner products, without
    those that overflowed; "nothing" leaves a pass unmeasured.

    `decay` 0 compares with the target's gradient of the same step, at the cost of one gradient copy. Above 0 the
    comparison is with the running mean of the target's gradients, m <- decay m + (1 - decay) g, at the cost of two: the
    gradient of one batch of a few patches is mostly noise (its cosine with the most helpful arm was .005 +- .53, that
    of the mean .51). Scaled gradients give the same similarities; a change of the scale affects the mean for some
    steps.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float = 0.0) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self._handles: list[RemovableHandle] = []
        self._phase = "nothing"
        self._target: Gradient = {}  # of this step, as accumulated in `.grad`
        self._mean: Gradient = {}
        self._seen: set[str] = set()  # parameters with a target gradient in this step
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
        self._mean.clear()

    def expect(self, phase: Literal["target", "auxiliary", "nothing"]) -> None:
        """Announce the phase of the next backward passes; "target" after another phase begins a new step."""
        if phase == "target" and self._phase != "target":
            self._finish_step()
        elif phase != "target" and self._phase == "target":
            self._remember(self._target)
        self._phase = phase

    def look_at_target(self, loss: Tensor, scale: float = 1.0) -> None:
        """Record the target's gradient without using it for the step: `.grad` is unchanged."""
        self._finish_step()
        found = torch.autograd.grad(loss * scale, list(self._parameters.values()), allow_unused=True)
        gradient = {name: g for name, g in zip(self._parameters, found, strict=True) if g is not None}
        average_(gradient.values())
        self._target.clear()
        self._seen.update(gradient)
        self._remember(gradient)

    def take(self) -> Similarity:
        """Return the similarity over the steps since the last call, target first; zeros where none was measured."""
        self._finish_step()
        self._phase = "nothing"
        pooled, self._pooled = self._pooled, []
        if not pooled:
            return Similarity(0.0, 0.0)
        rows = torch.stack(pooled).cpu()  # one transfer
        finite = rows[rows.isfinite().all(1)]
        return _similarity(finite if len(finite) else rows)

    def state(self) -> dict[str, Any]:
        """The steps since the last `take`, as JSON types, for a checkpoint between two steps."""
        self._finish_step()
        return {"pooled": [products.tolist() for products in self._pooled]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore this state."""
        device = next(iter(self._parameters.values())).device
        self._pooled = [torch.tensor(rows, dtype=torch.float64, device=device) for rows in state["pooled"]]

    def tensors(self) -> Gradient:
        """The running mean, also part of the checkpoint."""
        return dict(self._mean) if self._decay else {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the running mean."""
        self._mean = {name: tensor.to(self._parameters[name].device).clone() for name, tensor in tensors.items()}

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def after(parameter: Tensor) -> None:
            grad = parameter.grad
            if grad is None or self._phase == "nothing":
                return
            # Gradient norms are not additive over processes, so gradients must be averaged over them here.
            average_([grad])
            if self._phase == "target":
                self._seen.add(name)
                if name in self._target:
                    self._target[name].copy_(grad)
                else:
                    self._target[name] = grad.detach().clone()
            elif name in self._seen:
                target = self._target.get(name)
                mean = self._mean[name]
                if target is None:
                    self._step[name] = _products(_blocks(mean, grad.detach()))
                else:  # `grad` is t + a
                    parts = _blocks(mean, target, grad.detach())
                    self._step[name] = _products((m, total - t) for m, t, total in parts)

        return after

    def _remember(self, gradient: Gradient) -> None:
        """Update the running mean, ignoring overflowed gradients."""
        for name in self._seen:
            new = gradient[name]
            if not self._decay:
                self._mean[name] = new
            elif name not in self._mean:
                self._mean[name] = torch.nan_to_num(new, nan=0.0, posinf=0.0, neginf=0.0)
            else:
                mean = self._mean[name]
                mean.copy_(torch.where(new.isfinite().all(), torch.lerp(new, mean, self._decay), mean))

    def _finish_step(self) -> None:
        if self._step:
            self._pooled.append(torch.stack(list(self._step.values())).sum(0))
        self._step.clear()
        self._seen.clear()
