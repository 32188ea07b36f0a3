"""The rules of the speed benchmark. Nothing is timed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from FewShotSegLib.benchmarks import speed, workload
from FewShotSegLib.benchmarks.speed import MEASUREMENTS, Size, iou_at_mean, main
from FewShotSegLib.demo import phantom
from FewShotSegLib.errors import InputError
from FewShotSegLib.sam.network import PromptableNetwork
from Testing.Library.lora.miniatures import compact


def test_maps_are_compared_where_both_are_above_the_mean_of_the_first() -> None:
    first = np.array([[0, 0, 0, 4], [0, 1, 2, 3]], np.float32)
    second = np.array([[0, 0.5, 0, 3], [0, 9, 2, 0]], np.float32)
    assert iou_at_mean(first, second) == [1.0, pytest.approx(1 / 3)]


def test_an_unknown_measurement_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown measurement warp; allowed are encoding, training, synthesis"):
        main(["--only", "encoding", "warp", "--out", str(tmp_path / "speed")])
    assert not list(tmp_path.iterdir())


def test_a_number_of_threads_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 or more, got 0"):
        main(["--threads", "0", "--out", str(tmp_path / "speed")])


SMALL = Size(repeats=1, encode_px=(64,), step_px=64, slices=8)


@pytest.fixture
def miniatures(a_tiny_sam: PromptableNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of 64 pixels in the places of ViT-B and of the small bundled model, and a coarse patient."""
    patient = phantom.patient(np.random.default_rng(0), shape=(8, 64, 64), spacing_mm=(5.0, 5.0, 25.0))
    for module in (speed, workload):
        monkeypatch.setattr(module, "a_patient", lambda slices: patient)
    monkeypatch.setattr(speed, "random_vit_b", lambda image_size: a_tiny_sam)
    monkeypatch.setattr(speed, "load_base", lambda name: compact())


def test_masks_of_ours_are_compared_to_those_of_stock(miniatures: None) -> None:
    rows = {row.name: row.value for row in MEASUREMENTS["encoding"](SMALL)}
    agreement = [value for name, value in rows.items() if name.startswith("IoU") and "float32" in name]
    assert len(agreement) == 2
    assert all(value.low > 0.99 for value in agreement)
    assert sum(name.startswith("ViT-B encoding at 64 px") for name in rows) == 2


def test_plain_and_ours_take_the_same_step(miniatures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "interleaved", lambda contestants, repeats: {name: [1.0] for name in contestants})
    first, second = MEASUREMENTS["training"](SMALL)
    for row in (first, second):
        plain, ours = map(float, re.search(r"first losses ([\d.]+) / ([\d.]+)", row.note).groups())
        assert ours == pytest.approx(plain, rel=0.02)  # in half precision where that pays
    assert first.wanted == 1.5


@pytest.mark.parametrize("name", ["bundled-small", "segment"])
def test_every_measurement_gives_ratios_of_what_took_turns(name: str, miniatures: None) -> None:
    threads = torch.get_num_threads()
    rows = list(MEASUREMENTS[name](SMALL))
    assert rows
    assert all(0 < row.value.low <= row.value.median <= row.value.high for row in rows)
    assert torch.get_num_threads() == threads


def test_a_fifth_click_is_compared_with_answering_all_five_again(
    miniatures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, decode = [], speed.Predictor.decode
    monkeypatch.setattr(speed.Predictor, "decode", lambda self, *given: steps.append(1) or decode(self, *given))
    taken: list[tuple[str, int]] = []

    def interleaved(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
        for name in (*contestants, *contestants):
            steps.clear()
            contestants[name]()
            taken.append((name, len(steps)))
        return {name: [1.0] for name in contestants}

    monkeypatch.setattr(speed, "interleaved", interleaved)
    row = speed._fifth_click(compact(), SMALL)
    assert taken == [("plain", 5), ("ours", 1), ("plain", 5), ("ours", 1)]
    assert row.wanted == 3.0


def test_the_table_is_written_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    row = speed.Measurement("a / b", speed.spread([2.0, 3.0, 4.0]), 1.5, "note")
    monkeypatch.setitem(MEASUREMENTS, "encoding", lambda size: asked.append(size) or iter([row]))
    out = tmp_path / "speed"
    assert main(["--only", "encoding", "--quick", "--threads", "1", "--out", str(out)]) == 0
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert text.endswith("| a / b | 3.00 | 2.50 to 3.50 | >= 1.5 | note |\n")
    assert "1 threads" in text
    assert asked == [speed.QUICK]
