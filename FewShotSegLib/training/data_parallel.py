"""Training in several processes, one for each GPU: data parallelism as `torchrun` starts it.

Every process runs the same program from the same seed. In each step it draws the global batch, computes the loss and
the gradient on its own shard, and all-reduces the gradients to their mean; then all take the same optimizer step. So W
processes with batch size B match one process with batch size W B, up to rounding. Losses are those of the global batch
in every process (`summed`): where a loss is not a mean over samples, such as batch Dice, averaging the gradients of the
shards' losses would optimize a different loss.

Decisions about the run are made jointly: the clock and the score are those of rank 0 (`of_first`), and stopping one
process stops all (`in_agreement`). CPU tensors are communicated by gloo and GPU tensors by NCCL, so that decisions
never wait for a GPU.

In a single process, that is without torchrun's environment, all functions here are no-ops that return their input.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from FewShotSegLib.data.launch import Launch, launch_of
from FewShotSegLib.errors import Cancelled, InputError, StopAndKeepBest

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)  # how long a process waits for the others before it gives up
_BUCKET = 25 * 2**20  # bytes of gradients per all-reduce

_joined = Launch()
_has_group = False


# ------------------------------------------------------------------------------------------------------------- joining


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the process group that torchrun has started, within the block; yields the device of this process.

    On GPUs each process uses the one of its local rank. A process joins once and stays connected until it exits.
    """
    global _joined
    launch = launch_of()
    if launch.count == 1 or _joined.count > 1:
        yield device
        return
    own = _own_device(device, launch)
    _connect(own)
    _joined = launch
    try:
        yield own
    finally:
        _joined = Launch()


def _own_device(device: torch.device, launch: Launch) -> torch.device:
    if device.type != "cuda":
        return device
    there = torch.cuda.device_count()
    if launch.local_rank >= there:
        raise InputError(
            f"torchrun has started more processes on this computer than it has GPUs, which are {there}; use "
            f"--nproc-per-node {there}, or compute on the processor with --device cpu."
        )
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)


def _connect(device: torch.device) -> None:
    global _has_group
    if _has_group:
        return
    if not dist.is_available():
        raise InputError(
            "This PyTorch cannot train in several processes; start the command without torchrun, or install a PyTorch "
            "that can."
        )
    if dist.is_initialized():
        raise InputError(
            "This program has set up torch.distributed itself; adapt in a process that has not, or without torchrun."
        )
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "The processes that torchrun has started cannot reach each other: "
            f"{str(error).splitlines()[0]}. On several computers check --rdzv-endpoint and the firewall; "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network interface to use."
        ) from error
    _has_group = True
    atexit.register(_leave)


def _leave() -> None:
    with contextlib.suppress(RuntimeError):  # the others may have exited already
        dist.destroy_process_group()


def count() -> int:
    """Number of processes (world size); 1 without distributed training."""
    return _joined.count


def is_first() -> bool:
    """Whether this process (rank 0) writes checkpoints and results; true without distributed training."""
    return _joined.is_first


def refuse(what: str, instead: str) -> None:
    """Raise `InputError` in distributed training, for work that is not distributed."""
    if count() > 1:
        raise InputError(f"{what} in one process, and torchrun has started {count()}; {instead}.")


def own(items: Sequence[T]) -> Sequence[T]:
    """This process's shard of a global sequence: equal parts in rank order."""
    if count() == 1:
        return items
    if len(items) % count():
        raise ValueError(f"{len(items)} items are no equal shares for {count()} processes")
    each = len(items) // count()
    return items[_joined.rank * each : (_joined.rank + 1) * each]


# ------------------------------------------------------------------------------------------------------------- tensors


def summed(value: Tensor) -> Tensor:
    """The sum over all processes; gradients pass through it.

    Everything computed from the sum must be identical in every process, as the loss is.
    """
    return value if count() == 1 else _Sum.apply(value)


def averaged(value: Tensor) -> Tensor:
    """The mean over all processes; gradients pass through it as through `summed`."""
    return value if count() == 1 else summed(value) / count()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone()
        _all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The sum is counted once per process, and `average_` later takes the mean over processes.
        return gradient * count()


def average_(tensors: Iterable[Tensor]) -> None:
    """Replace tensors, such as gradients, by their means over all processes; communicated in buckets."""
    if count() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        _all_reduce(flat)
        flat /= count()
        _fill(bucket, flat)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of all parameters by their means over all processes."""
    if count() > 1:
        average_(parameter.grad for parameter in parameters if parameter.grad is not None)


def copy_of_first_(tensors: Iterable[Tensor]) -> None:
    """Replace tensors, such as parameters before the first step, by those of rank 0."""
    if count() == 1:
        return
    for bucket in _buckets(tensor.detach() for tensor in tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        _broadcast(flat)
        _fill(bucket, flat)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype and device."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        kind = tensor.dtype, tensor.device
        if bucket and (size >= _BUCKET or kind != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


# ----------------------------------------------------------------------------------------------------------- decisions


def of_first(value: float) -> float:
    """The value in rank 0."""
    if count() == 1:
        return value
    told = torch.tensor([value], dtype=torch.float64)
    _broadcast(told)
    return float(told)


def text_of_first(text: str) -> str:
    """The text in rank 0."""
    if count() == 1:
        return text
    content = text.encode()
    size = int(of_first(len(content)))
    told = torch.frombuffer(bytearray(content.ljust(size)[:size]), dtype=torch.uint8).clone()
    _broadcast(told)
    return bytes(told.tolist()).decode()


def gathered(numbers: Sequence[int]) -> list[int]:
    """The numbers of all processes, equally many each, in rank order."""
    if count() == 1:
        return list(numbers)
    mine = torch.tensor(numbers, dtype=torch.int64)
    all_of_them = [torch.empty_like(mine) for _ in range(count())]
    with _others_are_needed():
        dist.all_gather(all_of_them, mine)
    return torch.cat(all_of_them).tolist()


def everywhere(holds: bool) -> bool:
    """Whether the condition holds in every process."""
    return all(gathered([int(holds)]))


def check_same(text: str) -> None:
    """Raise `InputError` in every process if they differ in what determines their run, or in its progress."""
    if count() > 1:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if len(set(gathered([int.from_bytes(digest[:7], "big")]))) > 1:
            raise InputError(
                "The processes that train together differ in their exemplars, their settings or their checkpoint: "
                "start all of them with the same command, and let the output and all inputs lie in folders that every "
                "computer sees."
            )


_GOES_ON, _STOPS, _CANCELS = range(3)


def in_agreement(report: Callable[[], None]) -> None:
    """Call `report`; if it raises `StopAndKeepBest` or `Cancelled` in one process, that is raised in all of them."""
    if count() == 1:
        report()
        return
    wish = _GOES_ON
    try:
        report()
    except StopAndKeepBest:
        wish = _STOPS
    except Cancelled:
        wish = _CANCELS
    decided = max(gathered([wish]))
    if decided == _CANCELS:
        raise Cancelled("Cancelled on request.")
    if decided == _STOPS:
        raise StopAndKeepBest


# ----------------------------------------------------------------------------------------------------------- transport


def _all_reduce(tensor: Tensor) -> None:
    with _others_are_needed():
        dist.all_reduce(tensor)


def _broadcast(tensor: Tensor) -> None:
    """Replace a tensor by that of rank 0."""
    with _others_are_needed():
        dist.broadcast(tensor, 0)


@contextlib.contextmanager
def _others_are_needed() -> Iterator[None]:
    """Turns errors of an exited or unresponsive process into a readable message."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise InputError(
            f"Training in {count()} processes has ended, because another process ended or has not answered for "
            f"{PATIENCE.seconds // 60} minutes; its own message says why. The same command goes on from the last "
            "checkpoint."
        ) from error
