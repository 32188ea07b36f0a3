"""The campaign's own eyes: what it would not see, it could not count as lost."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from FewShotSegLib.data.job import SegmentJob
from FewShotSegLib.worker.batch import segment_images
from Testing.Campaign.cluster import Results, Tally, arguments, check
from Testing.Campaign.watching import Life, cpu_of, memory_of, slope
from Testing.conftest import write_discs


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [write_discs(tmp_path / "images", f"v{number}", number)[0] for number in range(3)]


@pytest.fixture
def out(images: list[Path], an_adapter_file: Path, tmp_path: Path) -> Path:
    """A batch where nothing is lost."""
    job = SegmentJob(tuple(map(str, images)), str(tmp_path / "out"), str(an_adapter_file), device="cpu")
    segment_images(job)
    return tmp_path / "out"


def lost(out: Path, images: list[Path]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = check(out, images)["lost"]
    return found


def test_a_whole_batch_has_lost_nothing(out: Path, images: list[Path]) -> None:
    assert check(out, images) == {"volumes": 3, "done": 3, "rows": 6, "lost": {}}


def test_each_kind_of_loss_is_seen_and_named(out: Path, images: list[Path]) -> None:
    table = out / "volumes.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([*lines[:-1], lines[1]]) + "\n", encoding="utf-8")
    (out / "v0.result.json").unlink()
    (out / "v1.seg.nrrd").write_bytes((out / "v1.seg.nrrd").read_bytes()[:-20])
    (out / ".fewshotseg-0123456789abcdef.part.nrrd").write_bytes(b"half")
    (out / "volumes.running.csv").write_text("image\n", encoding="utf-8")
    assert lost(out, images) == {
        "no record of a result": ["v0"],
        "result is not what its record says": ["v1"],
        "no row for each structure": [str(images[2])],
        "rows twice": [str(images[0])],
        "left over": [".fewshotseg-0123456789abcdef.part.nrrd", "volumes.running.csv"],
    }
    table.unlink()
    assert lost(out, images)["no row for each structure"] == [str(image) for image in images]


def test_a_failed_image_and_one_that_nobody_asked_for_are_seen(
    images: list[Path], an_adapter_file: Path, tmp_path: Path
) -> None:
    images[1].write_bytes(b"nothing")
    job = SegmentJob(tuple(map(str, images)), str(tmp_path / "out"), str(an_adapter_file), device="cpu")
    segment_images(job, raise_failures=False)
    found = lost(tmp_path / "out", images[:2])
    assert found["no record of a result"] == ["v1"]
    assert found["rows of failures"] == [str(images[1])]
    assert found["rows of unknown images"] == [str(images[2])]
    assert found["left over"] == ["v2.result.json", "v2.seg.nrrd"]


def test_a_result_that_was_made_a_second_time_is_seen(out: Path) -> None:
    results = Results(out)
    assert (results.look(), results.again) == (3, [])
    file = out / "v1.seg.nrrd"
    other = file.with_suffix(".new")
    other.write_bytes(file.read_bytes())  # the same bytes: what counts is that work was done twice
    other.replace(file)
    assert (results.look(), results.again) == (3, ["v1.seg.nrrd"])
    assert (results.look(), results.again) == (3, ["v1.seg.nrrd"])


def test_what_was_measured_goes_on_after_an_interruption(tmp_path: Path) -> None:
    tally = Tally("dask", wall_s=3.5, runs=2, lives={"7 1.5": Life("worker", 4.0, [(1.0, 2, 3)])})
    tally.killed("worker")
    tally.killed("worker")
    tally.save(tmp_path / "dask.state.json")
    assert Tally.load(tmp_path / "dask.state.json", "dask") == tally
    assert Tally.load(tmp_path / "parts.state.json", "parts") == Tally("parts")
    assert json.loads((tmp_path / "dask.state.json").read_text(encoding="utf-8"))["kills"] == {"worker": 2}


@pytest.mark.parametrize("growth", [0.0, 25.0, -4.0])
def test_growth_of_memory_is_found_with_an_interval_around_it(growth: float) -> None:
    rng = random.Random(0)
    points = [(x / 100, 500 + growth * x / 100 + rng.gauss(0, 3)) for x in range(1000)]
    found = slope(points)
    assert found is not None
    assert found["low"] < growth < found["high"]
    assert found["high"] - found["low"] < 1.5
    assert slope(points[:4]) is None


def test_a_process_counts_from_when_it_has_warmed_up() -> None:
    loading = [(float(second), 0, second * 50_000_000) for second in range(12)]
    working = [(12.0 + number, number * 10, 600_000_000) for number in range(100)]
    lives = [
        Life("worker", 112.0, loading + working),
        Life("worker", 3.0, loading[:3]),
        Life("command", 1.0, [(1, 0, 5)]),
    ]
    found = memory_of(lives)["worker"]
    assert (found["processes"], found["longest"]["first_mb"], found["longest"]["last_mb"]) == (2, 600.0, 600.0)
    assert found["slopes_mb_per_1000"] == {"processes": 1, "median": 0.0, "lowest": 0.0, "highest": 0.0}
    assert cpu_of(lives) == {"worker": 115.0, "command": 1.0}


def test_ten_thousand_volumes_unless_something_else_is_asked_for() -> None:
    assert arguments([]).volumes == 10_000
    assert arguments(["--volumes", "7", "--kill-every", "2.5"]).kill_every == 2.5
