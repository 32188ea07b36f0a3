"""The selective scan of Mamba (Gu and Dao 2023, Eq. 2 and Algorithm 2) in plain torch, for CPU and GPU alike.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t h_t + D u_t

A first-order linear recurrence is associative, so the sequence is cut into about sqrt(L) chunks that are stepped
through in parallel: once for the final state of each chunk, once for all states, with one short scan over the chunks in
between. The states, N times as large as the input, are materialized only for one block of sequences and channels at a
time and recomputed in the backward pass. No compiled extension: `mamba_ssm` needs a CUDA compiler and does not install
on Windows.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from FewShotSegLib.devices import Kernel, working_kernel

# Elements per state tensor processed at once: what fits in a CPU's cache, what keeps a GPU busy.
_STATES_CPU, _STATES_GPU = 2**20, 2**25
# The axes of tokens (B, D, H, W, E) in the order of a direction, and how many leading ones number the sequences.
_ORDERS = {"row": ((0, 1, 2, 3, 4), 2), "column": ((0, 1, 3, 2, 4), 2), "axial": ((0, 2, 3, 1, 4), 3)}
ORDERS = tuple(_ORDERS)
_SHORT = 32  # steps that are not worth chunking; such sequences, across slices, come in thousands


Direction = tuple[str, bool]
"""How tokens (B, D, H, W, E) become sequences: "row" after row or "column" after column of a slice, or "axial", across
the slices at each place; and whether they are read backwards.
"""


def directional_scans(
    u: Tensor,
    delta: Tensor,
    decay: Tensor,
    write: Tensor,
    read: Tensor,
    skip: Tensor,
    directions: Sequence[Direction],
) -> Tensor:
    """Return the sum (B, D, H, W, E) of the selective scans of tokens u (B, D, H, W, E) in G directions.

    delta (G, T, E), decay (G, E, N), write and read (G, T, N) and skip (G, E) belong to the directions, for the tokens,
    T = BDHW, in their order in memory; otherwise as in `selective_scan`.
    """
    with torch.autocast(u.device.type, enabled=False):
        wide = _at_least_float32(u)
        tokens = u.to(wide)
        delta, decay, write, read, skip = (x.to(wide) for x in (delta, decay, write, read, skip))
        if wide is torch.float32 and (triton_scans := _triton_scans(u.device.type)) is not None:
            y = triton_scans(tokens, delta, write, read, decay, tuple(directions)) + skip.sum(0) * tokens
        else:
            y = torch.zeros_like(tokens)
            for way, *of_way in zip(directions, delta, decay, write, read, skip, strict=True):
                y = y + _scanned(way, tokens, *of_way)
        return y.to(u.dtype)


def _scanned(
    direction: Direction, u: Tensor, delta: Tensor, decay: Tensor, write: Tensor, read: Tensor, skip: Tensor
) -> Tensor:
    """One direction in plain torch."""
    order, backwards = direction
    axes, numbering = _ORDERS[order]

    def sequences(x: Tensor) -> Tensor:
        x = x.reshape(*u.shape[:4], -1).permute(axes).flatten(0, numbering - 1).flatten(1, -2)
        return x.flip(1) if backwards else x

    y = selective_scan(sequences(u), sequences(delta), decay, sequences(write), sequences(read), skip)
    y = (y.flip(1) if backwards else y).reshape([u.shape[axis] for axis in axes])
    return y.permute([axes.index(axis) for axis in range(5)])


def selective_scan(u: Tensor, delta: Tensor, decay: Tensor, write: Tensor, read: Tensor, skip: Tensor) -> Tensor:
    """Return y (B, L, E) of a sequence u (B, L, E); differentiable once in every argument.

    delta (B, L, E), positive, is the step; decay (E, N), negative, is A; write (B, L, N) is B; read (B, L, N) is C;
    skip (E,) is D. Computed in at least float32, also under autocast: an 8-bit mantissa is not enough for a thousand
    factors.
    """
    length = u.shape[1]
    chunk = length if length <= _SHORT else math.isqrt(length - 1) + 1
    padding = -length % chunk  # steps of length 0 leave the state unchanged
    with torch.autocast(u.device.type, enabled=False):
        wide = _at_least_float32(u)
        sequences = [F.pad(x.to(wide), (0, 0, 0, padding)) for x in (u, delta, write, read)]
        y = _Scan.apply(*sequences, decay.to(wide), chunk)[:, :length]
        return (y + skip.to(wide) * u.to(wide)).to(u.dtype)


def _at_least_float32(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


@functools.cache
def _triton_scans(device: str) -> Kernel | None:
    """The scans on a GPU, where Triton is available; its interpreter runs on the CPU, for tests."""
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return None

    def load() -> Kernel:
        from FewShotSegLib.networks.scan_triton import TritonScans

        return TritonScans.apply

    def attempt(scans: Kernel) -> None:
        shapes = (1, 1, 1, 2, 1), (1, 2, 1), (1, 2, 1), (1, 2, 1), (1, 1, 1)
        tiny = [torch.ones(shape, device=device, requires_grad=True) for shape in shapes]
        scans(*tiny, (("row", False),)).sum().backward()

    return working_kernel(load, attempt, "Mamba's scan")


class _Scan(torch.autograd.Function):
    """y_t = C_t h_t; see `selective_scan`. L is a multiple of `chunk`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, write: Tensor, read: Tensor, decay: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(u, delta, write, read, decay)
        ctx.chunk = chunk
        y = torch.empty_like(u)
        for rows, channels in _blocks(u, decay.shape[1]):
            at = rows, slice(None), channels
            states, _, _ = _states(u[at], delta[at], write[rows], decay[channels], chunk)
            y[at] = (states @ read[rows, :, :, None])[..., 0]
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, write, read, decay = ctx.saved_tensors
        of_u, of_delta, of_write, of_read, of_decay = (torch.zeros_like(x) for x in ctx.saved_tensors)
        for rows, channels in _blocks(u, decay.shape[1]):
            at = rows, slice(None), channels
            parts = _gradients(grads[0][at], u[at], delta[at], write[rows], read[rows], decay[channels], ctx.chunk)
            of_u[at], of_delta[at] = parts[:2]
            of_write[rows] += parts[2]  # summed over the blocks of channels
            of_read[rows] += parts[3]
            of_decay[channels] += parts[4]  # summed over the blocks of sequences
        return of_u, of_delta, of_write, of_read, of_decay, None


def _blocks(u: Tensor, states: int) -> Iterator[tuple[slice, slice]]:
    """Independent blocks: slices of sequences and of channels."""
    budget = _STATES_GPU if u.is_cuda else _STATES_CPU
    batch, length, width = u.shape
    channels = min(width, max(budget // max(length * states, 1), 1))
    rows = min(batch, max(budget // max(length * states * channels, 1), 1))
    for row in range(0, batch, rows):
        for channel in range(0, width, channels):
            yield slice(row, row + rows), slice(channel, channel + channels)


def _states(u: Tensor, delta: Tensor, write: Tensor, decay: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return h and its factors exp(delta A), both (B, L, E, N), and the factor of each chunk (B, K, E, N)."""
    factors = torch.exp(delta[..., None] * decay)
    states = (delta * u)[..., None] * write[:, :, None]
    whole = torch.exp(delta.unflatten(1, (-1, chunk)).sum(2)[..., None] * decay)
    _accumulate(states.unflatten(1, (-1, chunk)), factors.unflatten(1, (-1, chunk)), whole)
    return states, factors, whole


def _accumulate(x: Tensor, factors: Tensor, whole: Tensor) -> None:
    """x_t += factors_t x_{t-1} in place, along chunks and positions of (B, K, c, E, N)."""
    chunks, positions = x.shape[1:3]
    if chunks > 1:
        end = x[:, :, 0]  # state of a chunk with zero initial state
        for t in range(1, positions):
            end = torch.addcmul(x[:, :, t], factors[:, :, t], end)
        start = torch.zeros_like(end)
        for k in range(1, chunks):
            torch.addcmul(end[:, k - 1], whole[:, k - 1], start[:, k - 1], out=start[:, k])
        x[:, :, 0].addcmul_(factors[:, :, 0], start)
    for t in range(1, positions):
        x[:, :, t].addcmul_(factors[:, :, t], x[:, :, t - 1])


def _accumulate_backwards(x: Tensor, factors: Tensor, whole: Tensor) -> None:
    """x_t += factors_{t+1} x_{t+1} in place: the transpose of `_accumulate`."""
    chunks, positions = x.shape[1:3]
    if chunks > 1:
        first = x[:, :, -1]
        for t in range(positions - 2, -1, -1):
            first = torch.addcmul(x[:, :, t], factors[:, :, t + 1], first)
        leaving = factors[:, :, 0] * first  # gradient passed to the preceding chunk
        for k in range(chunks - 2, -1, -1):
            leaving[:, k].addcmul_(whole[:, k], leaving[:, k + 1])
        x[:, :-1, -1] += leaving[:, 1:]
    for t in range(positions - 2, -1, -1):
        x[:, :, t].addcmul_(factors[:, :, t + 1], x[:, :, t + 1])


def _gradients(
    grad: Tensor, u: Tensor, delta: Tensor, write: Tensor, read: Tensor, decay: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, write, read and decay, of one block."""
    states, factors, whole = _states(u, delta, write, decay, chunk)
    of_read = (grad[:, :, None] @ states)[:, :, 0]  # B L N
    of_states = grad[..., None] * read[:, :, None]  # B L E N
    _accumulate_backwards(of_states.unflatten(1, (-1, chunk)), factors.unflatten(1, (-1, chunk)), whole)
    of_input = (of_states @ write[..., None])[..., 0]  # of delta u; B L E
    of_write = ((delta * u)[:, :, None] @ of_states)[:, :, 0]
    # From here on, the gradient of the exponents delta A; the first state has no predecessor.
    exponents = of_states[:, 1:].mul_(factors[:, 1:]).mul_(states[:, :-1])
    of_delta = of_input * u
    of_delta[:, 1:] += (exponents * decay).sum(-1)
    of_decay = torch.einsum("blen,ble->en", exponents, delta[:, 1:])
    return of_input * delta, of_delta, of_write, of_read, of_decay
