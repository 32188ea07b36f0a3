"""The cost of selecting auxiliary data: ASAP against training with one fixed auxiliary data set, in one run.

Both take the same steps of one target and one auxiliary batch; they are interleaved, so slowdowns of the machine affect
both. Memory is the peak of PyTorch's allocator in a step. Cases are noise: only time is measured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from FewShotSegLib.benchmarks.pairing import Spread, interleaved, ratios
from FewShotSegLib.benchmarks.records import markdown
from FewShotSegLib.benchmarks.workload import peak_bytes_on_gpu
from FewShotSegLib.devices import patch_precision
from FewShotSegLib.methods.asap.schedulers import scheduler_of
from FewShotSegLib.methods.asap.turns import TurnRecipe, Turns
from FewShotSegLib.networks import build, parameter_count
from FewShotSegLib.progress import silent
from FewShotSegLib.training.fit import Schedule, fit
from FewShotSegLib.training.patches import patch_loss

PATCH = (12, 80, 80)
BATCH = 2
COUNTS = (5, 15, 30)
CPU = torch.device("cpu")


def costs(network: str, steps: int, repeats: int, device: torch.device = CPU) -> str:
    """A Markdown table: time with and without the initial probing of all arms, and peak memory, for each number of
    arms.
    """
    gradient_mb = parameter_count(_network(network)) * 4 / 1e6
    head = (
        f"{network} ({device.type}), patch {' x '.join(map(str, PATCH))}, batch {BATCH}, {steps} steps; ratios to a "
        f"fixed auxiliary data set, median and quartiles of {repeats} pairs. Its gradient has {gradient_mb:.1f} MB.\n\n"
    )
    rows = []
    for count in COUNTS:
        step = step_ratio(network, count, steps, repeats, device)
        run = _ratio(network, count, steps, repeats, device=device, look=True)
        more = (_peak(network, "asap", count, device) - _peak(network, "random", 1, device)) / 1e6
        rows.append([str(count), _text(step), _text(run), f"{more:.1f}"])
    columns = ["arms", "time per step", "time of a run with initial probing", "peak memory over the fixed one, MB"]
    return head + markdown(columns, rows)


def step_ratio(network: str, count: int, steps: int, repeats: int, device: torch.device = CPU) -> Spread:
    """Time of a step that chooses among `count` arms relative to one with a fixed arm."""
    return _ratio(network, count, steps, repeats, device=device, look=False)


def _text(value: Spread) -> str:
    return f"{value.median:.3f} ({value.low:.3f} to {value.high:.3f})"


def _ratio(network: str, count: int, steps: int, repeats: int, *, look: bool, device: torch.device = CPU) -> Spread:
    runs = {
        "asap": _run(network, "asap", count, steps, look=look, device=device),
        "fixed": _run(network, "random", 1, steps, look=look, device=device),
    }
    for run in runs.values():
        run()  # warm-up: GPU libraries select their kernels in the first run
    seconds = interleaved(runs, repeats)
    return ratios(seconds["asap"], seconds["fixed"])


def _network(name: str, device: torch.device = CPU) -> nn.Module:
    return build(name, patch=PATCH, spacing=(7.7, 3.0, 3.0)).to(device)


def _run(
    name: str, scheduler: str, count: int, steps: int, *, look: bool, device: torch.device = CPU
) -> Callable[[], object]:
    """A training run of `steps` steps; without `look` its arms have been probed before."""
    network = _network(name, device)
    turns = _turns(network, scheduler, count)
    if not look:
        for arm in turns.scheduler.probes(0):
            turns.scheduler.observe(0, arm, 1.0, 0.1)
    before = turns.state()

    def run() -> None:
        turns.load_state(before)
        parameters = dict(network.named_parameters())
        with turns:
            amp = patch_precision(device, PATCH)
            fit(parameters, turns.loss_at, turns.schedule(Schedule(steps)), report=silent, amp=amp)

    return run


def _turns(network: nn.Module, scheduler: str, count: int) -> Turns:
    names = [f"arm {number}" for number in range(count)]
    image = torch.rand(BATCH, 1, *PATCH, device=next(network.parameters()).device)
    mask = image[:, 0] > 0.8

    def loss(*_: object) -> torch.Tensor:
        return patch_loss(network(image), mask).mean()

    chosen = scheduler_of(scheduler, names, None, np.random.default_rng(0))
    return Turns(
        chosen, names, loss, loss, network, dict(network.named_parameters()), seed=0, recipe=TurnRecipe(probe_batches=2)
    )


def _peak(name: str, scheduler: str, count: int, device: torch.device = CPU) -> int:
    """Peak bytes of the allocator in some steps, above its previous level."""
    run = _run(name, scheduler, count, 3, look=True, device=device)
    return peak_bytes(run) if device.type == "cpu" else peak_bytes_on_gpu(run)


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak bytes allocated by PyTorch on the CPU during `work`, above its previous level."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()
    levels = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"])
    return int(levels.max(initial=0))
