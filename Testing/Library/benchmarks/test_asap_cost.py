"""What the choice of auxiliary data costs: what is measured, on patches so small that it takes no time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from FewShotSegLib.benchmarks import asap_cost
from FewShotSegLib.benchmarks.asap_cost import costs, peak_bytes
from FewShotSegLib.benchmarks.pairing import Spread
from FewShotSegLib.training.fit import fit


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asap_cost, "PATCH", (4, 16, 16))
    monkeypatch.setattr(asap_cost, "BATCH", 1)


def test_the_peak_is_what_was_held_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            kept = torch.empty(1000, 1000)  # 4 MB
            passing = torch.empty(500, 1000)  # 2 MB
            del passing, kept

    assert 6_000_000 <= peak_bytes(work) < 6_100_000


def test_what_was_held_before_does_not_count() -> None:
    before = torch.ones(2000, 1000)  # 8 MB
    assert 0 < peak_bytes(lambda: before[:10].clone()) < 100_000
    assert peak_bytes(lambda: None) == 0


def test_without_the_first_look_the_arms_have_been_looked_at(small: None) -> None:
    for scheduler, count in (("asap", 3), ("random", 1)):
        turns = asap_cost._turns(asap_cost._network("unet"), scheduler, count)
        for arm in turns.scheduler.probes(0):
            turns.scheduler.observe(0, arm, 1.0, 0.1)
        assert list(turns.scheduler.probes(0)) == []


def test_each_turn_of_a_contestant_starts_where_the_first_one_did(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []

    def watched(parameters: Any, loss_at: Any, schedule: Any, **given: Any) -> Any:
        states.append(repr(loss_at.__self__.state()))
        result = fit(parameters, loss_at, schedule, **given)
        states.append(repr(loss_at.__self__.state()))
        return result

    monkeypatch.setattr(asap_cost, "fit", watched)
    run = asap_cost._run("unet", "asap", 2, 2, look=False)
    run()
    run()
    assert states[0] == states[2] != states[1]


def test_the_table_has_a_line_for_each_number_of_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    def ratio(network: str, count: int, steps: int, repeats: int, *, device: torch.device, look: bool) -> Spread:
        asked.append((count, look))
        return Spread(1.0 + count / 100, 0.5, 2.0)

    monkeypatch.setattr(asap_cost, "_ratio", ratio)
    monkeypatch.setattr(asap_cost, "_peak", lambda network, scheduler, count, device: 1_000_000 * count)
    text = costs("unet", steps=300, repeats=9)
    assert "unet (cpu), patch 12 x 80 x 80, batch 2, 300 steps" in text
    assert "median and quartiles of 9 pairs. Its gradient has 4.8 MB." in text  # 1,202,793 numbers of 4 bytes
    assert text.splitlines()[-3:] == [
        "| 5 | 1.050 (0.500 to 2.000) | 1.050 (0.500 to 2.000) | 4.0 |",
        "| 15 | 1.150 (0.500 to 2.000) | 1.150 (0.500 to 2.000) | 14.0 |",
        "| 30 | 1.300 (0.500 to 2.000) | 1.300 (0.500 to 2.000) | 29.0 |",
    ]
    assert asked == [(count, look) for count in asap_cost.COUNTS for look in (False, True)]
