"""The pairing of times, the table, and that the plain network computes the same as ours. Nothing is timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.benchmarks.pairing import (
    Measurement,
    Spread,
    interleaved,
    measurement_table,
    milliseconds,
    ratios,
    spread,
)
from FewShotSegLib.benchmarks.plain import plain_copy
from FewShotSegLib.benchmarks.speed import iou_at_mean, main
from FewShotSegLib.errors import InputError
from FewShotSegLib.sam.attention import FusedAttention
from FewShotSegLib.sam.network import POSITIVE, PromptableNetwork, PromptBatch


def test_median_and_quartiles_are_those_of_the_textbook() -> None:
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)


def test_ratios_are_taken_turn_by_turn_before_the_median() -> None:
    # The ratio of the medians would be 6 / 3 = 2.
    assert ratios([6.0, 30.0, 4.0], [3.0, 10.0, 1.0]).median == 3.0
    assert ratios([6.0], [3.0], scale=10).median == 20.0


def test_turns_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    log: list[str] = []
    now = [0.0]

    def works(name: str, seconds: float) -> None:
        now[0] += seconds if log.count(name) else 100.0
        log.append(name)

    seconds = interleaved({"a": lambda: works("a", 3.0), "b": lambda: works("b", 1.0)}, repeats=2, clock=lambda: now[0])
    assert log == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 3.0], "b": [1.0, 1.0]}


def test_milliseconds_are_the_median_per_item() -> None:
    assert milliseconds([0.1, 0.4, 0.2], items=10) == "20 ms"


def test_the_table_has_a_line_per_row_with_what_was_wanted() -> None:
    rows = [
        Measurement("stock / ours", Spread(2.0, 1.875, 2.25), 1.5, "4 ms / 2 ms"),
        Measurement("a click", Spread(321.4, 300, 400)),
    ]
    lines = measurement_table(rows).splitlines()
    assert lines[2] == "| stock / ours | 2.00 | 1.88 to 2.25 | >= 1.5 | 4 ms / 2 ms |"
    assert lines[3] == "| a click | 321 | 300 to 400 |  |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_maps_are_compared_where_both_are_above_the_mean_of_the_first() -> None:
    first = np.array([[0, 0, 0, 4], [0, 1, 2, 3]], np.float32)
    second = np.array([[0, 0.5, 0, 3], [0, 9, 2, 0]], np.float32)
    assert iou_at_mean(first, second) == [1.0, pytest.approx(1 / 3)]


def test_the_plain_network_has_no_part_of_ours_and_answers_the_same(a_tiny_sam: PromptableNetwork) -> None:
    plain = plain_copy(a_tiny_sam)
    assert not [m for m in plain.modules() if isinstance(m, FusedAttention)]
    assert [m for m in a_tiny_sam.modules() if isinstance(m, FusedAttention)]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 64, generator=generator)
    prompts = PromptBatch(
        64 * torch.rand(6, 1, 2, generator=generator),
        torch.full((6, 1), POSITIVE),
        tokens=torch.randn(6, 2, 32, generator=generator),
    )
    with torch.inference_mode():
        ours = a_tiny_sam.decode(a_tiny_sam.encode(images), prompts)
        theirs = plain.decode(plain.encode(images), prompts)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)


def test_an_unknown_measurement_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown measurement warp; allowed are encoding, training, synthesis"):
        main(["--only", "encoding", "warp", "--out", str(tmp_path / "speed")])
    assert not list(tmp_path.iterdir())


def test_a_number_of_threads_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 or more, got 0"):
        main(["--threads", "0", "--out", str(tmp_path / "speed")])
