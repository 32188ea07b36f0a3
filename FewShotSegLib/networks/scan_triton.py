"""The selective scan as two Triton kernels: one program steps through a sequence with its states in registers.

On a GPU the scan in plain torch launches a few kernels for every step of a sequence, and the CPU cannot keep up. Here
one launch handles all sequences and channels of a direction. The backward pass recomputes the states, keeps those of
one block of sequences in memory, and traverses them in reverse. Triton ships with PyTorch on Linux; elsewhere `scan.py`
is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHANNELS = 16  # per program
_STATES = 2**27  # state values that the backward pass keeps at once: 0.5 GB


class TritonScans(torch.autograd.Function):
    """The sum (B, D, H, W, E) of scans of float32 tensors in some directions, see `scan.directional_scans`, which adds
    D u. The kernels find the tokens of a sequence by strides, so nothing is copied into the order of a direction.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        write: Tensor,
        read: Tensor,
        decay: Tensor,
        directions: Sequence[tuple[str, bool]],
    ) -> Tensor:
        u, delta, write, read, decay = (x.contiguous() for x in (u, delta, write, read, decay))
        ctx.save_for_backward(u, delta, write, read, decay)
        ctx.directions = directions
        y = torch.zeros_like(u)
        width, states = decay.shape[1:]
        for number, direction in enumerate(directions):
            path = _Path.of(u.shape, *direction)
            _forward[(path.count, triton.cdiv(width, _CHANNELS))](
                u, delta[number], write[number], read[number], decay[number], y,
                *path, width, states, triton.next_power_of_2(states), _CHANNELS,
            )  # fmt: skip
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, write, read, decay = ctx.saved_tensors
        width, states = decay.shape[1:]
        parts = triton.cdiv(width, _CHANNELS)
        of_u, of_delta, of_decay = torch.zeros_like(u), torch.empty_like(delta), torch.empty_like(decay)
        # Gradients shared between programs are summed afterwards in a fixed order: atomics would not be deterministic.
        of_write, of_read = (u.new_empty(parts, *write.shape) for _ in range(2))
        grad = grads[0].contiguous()
        for number, direction in enumerate(ctx.directions):
            path = _Path.of(u.shape, *direction)
            of_decays = u.new_empty(path.count, width, states)
            for rows in _rows(path.count, path.length * width * states):
                count = rows.stop - rows.start
                kept = u.new_empty(count, path.length + 1, width, states)
                _backward[(count, parts)](
                    grad, u, delta[number], write[number], read[number], decay[number], kept,
                    of_u, of_delta[number], of_write[:, number], of_read[:, number], of_decays, of_write.stride(0),
                    rows.start, *path, width, states, triton.next_power_of_2(states), _CHANNELS,
                )  # fmt: skip
            torch.sum(of_decays, 0, out=of_decay[number])
        return of_u, of_delta, of_write.sum(0), of_read.sum(0), of_decay, None


class _Path(NamedTuple):
    """Where the steps of the sequences are among the tokens (B, D, H, W) in memory.

    Number of the token of step t of sequence s, with t' = begin + sign t:
    (s // group) block + s % group + (t' // run) far + (t' % run) near.
    """

    count: int  # sequences
    length: int
    group: int
    block: int
    run: int
    near: int
    far: int
    begin: int
    sign: int

    @classmethod
    def of(cls, shape: Sequence[int], order: str, backwards: bool) -> _Path:
        b, d, h, w = shape[:4]
        slices, plane = b * d, h * w
        paths = {
            "row": (slices, plane, 1, plane, plane, 1, 0),
            "column": (slices, plane, 1, plane, h, w, 1),
            "axial": (b * plane, d, plane, d * plane, d, plane, 0),
        }
        path = paths[order]
        return cls(*path, *((path[1] - 1, -1) if backwards else (0, 1)))


def _rows(batch: int, states_of_one: int) -> Iterator[slice]:
    step = max(_STATES // max(states_of_one, 1), 1)
    for first in range(0, batch, step):
        yield slice(first, min(first + step, batch))


@triton.jit
def _token(row, t, group, block, run, near, far, begin, sign):
    """The number of the token at a step of a sequence: see `_Path`."""
    t = begin + sign * t
    return (row // group) * block + row % group + (t // run) * far + (t % run) * near


@triton.jit
def _stepped(h, at, u_ptr, delta_ptr, write_ptr, decay, e, n, width, states):
    """The states after a step: exp(delta A) h + delta B u."""
    u = tl.load(u_ptr + at * width + e, mask=e < width, other=0.0)
    delta = tl.load(delta_ptr + at * width + e, mask=e < width, other=0.0)
    write = tl.load(write_ptr + at * states + n, mask=n < states, other=0.0)
    return tl.exp(delta[:, None] * decay) * h + (delta * u)[:, None] * write[None, :]


@triton.jit
def _forward(
    u_ptr, delta_ptr, write_ptr, read_ptr, decay_ptr, y_ptr,
    count, length, group, block, run, near, far, begin, sign,
    width, states, block_n: tl.constexpr, block_e: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * block_e + tl.arange(0, block_e)
    n = tl.arange(0, block_n)
    in_e, in_n = e < width, n < states
    decay = tl.load(decay_ptr + e[:, None] * states + n[None, :], mask=in_e[:, None] & in_n[None, :], other=0.0)
    h = tl.zeros((block_e, block_n), tl.float32)
    for t in range(length):
        at = _token(row, t, group, block, run, near, far, begin, sign)
        h = _stepped(h, at, u_ptr, delta_ptr, write_ptr, decay, e, n, width, states)
        read = tl.load(read_ptr + at * states + n, mask=in_n, other=0.0)
        y = tl.load(y_ptr + at * width + e, mask=in_e, other=0.0)  # of the directions before
        tl.store(y_ptr + at * width + e, y + tl.sum(h * read[None, :], 1), mask=in_e)


@triton.jit
def _backward(
    grad_ptr, u_ptr, delta_ptr, write_ptr, read_ptr, decay_ptr, kept_ptr,
    of_u_ptr, of_delta_ptr, of_write_ptr, of_read_ptr, of_decay_ptr, part_stride,
    first_row, count, length, group, block, run, near, far, begin, sign,
    width, states, block_n: tl.constexpr, block_e: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    row = (tl.program_id(0) + first_row).to(tl.int64)
    e = part * block_e + tl.arange(0, block_e)
    n = tl.arange(0, block_n)
    in_e, in_n = e < width, n < states
    both = in_e[:, None] & in_n[None, :]
    decay = tl.load(decay_ptr + e[:, None] * states + n[None, :], mask=both, other=0.0)
    first = tl.program_id(0).to(tl.int64) * (length + 1)  # offset of the stored states: before each step, and last
    kept = kept_ptr + e[:, None] * states + n[None, :]
    h = tl.zeros((block_e, block_n), tl.float32)
    for t in range(length):
        tl.store(kept + (first + t) * width * states, h, mask=both)
        at = _token(row, t, group, block, run, near, far, begin, sign)
        h = _stepped(h, at, u_ptr, delta_ptr, write_ptr, decay, e, n, width, states)
    tl.store(kept + (first + length) * width * states, h, mask=both)
    tl.debug_barrier()  # written above, read below
    carried = tl.zeros((block_e, block_n), tl.float32)
    of_decay = tl.zeros((block_e, block_n), tl.float32)
    for back in range(length):
        t = length - 1 - back
        at = _token(row, t, group, block, run, near, far, begin, sign)
        u = tl.load(u_ptr + at * width + e, mask=in_e, other=0.0)
        delta = tl.load(delta_ptr + at * width + e, mask=in_e, other=0.0)
        write = tl.load(write_ptr + at * states + n, mask=in_n, other=0.0)
        read = tl.load(read_ptr + at * states + n, mask=in_n, other=0.0)
        grad = tl.load(grad_ptr + at * width + e, mask=in_e, other=0.0)
        h = tl.load(kept + (first + t + 1) * width * states, mask=both, other=0.0)
        before = tl.load(kept + (first + t) * width * states, mask=both, other=0.0)
        factor = tl.exp(delta[:, None] * decay)
        of_h = grad[:, None] * read[None, :] + carried
        shared = part.to(tl.int64) * part_stride + at * states + n
        tl.store(of_read_ptr + shared, tl.sum(grad[:, None] * h, 0), mask=in_n)
        tl.store(of_write_ptr + shared, tl.sum(of_h * (delta * u)[:, None], 0), mask=in_n)
        of_input = tl.sum(of_h * write[None, :], 1)
        of_exponent = of_h * factor * before
        of_u = tl.load(of_u_ptr + at * width + e, mask=in_e, other=0.0)  # of the directions before
        tl.store(of_u_ptr + at * width + e, of_u + of_input * delta, mask=in_e)
        tl.store(of_delta_ptr + at * width + e, of_input * u + tl.sum(of_exponent * decay, 1), mask=in_e)
        of_decay += of_exponent * delta[:, None]
        carried = factor * of_h
    tl.store(of_decay_ptr + (row * width + e[:, None]) * states + n[None, :], of_decay, mask=both)
