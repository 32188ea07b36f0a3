"""Thousands of small volumes on a Dask cluster of two workers, and in four parts, while processes are killed at random.

    python -m Testing.Campaign cluster --volumes 10000 --folder /data/cluster --out cluster.json

Every volume has to be done once, the table has to be complete, no half file may be left, and memory has to stay where
it is. What was interrupted goes on when the same command is given again with the same folder. POSIX only: kill -9.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from .scene import ROOT, Scene, hidden
from .watching import Life, cpu_of, look_at, memory_of

_SAMPLE_S = 3.0
_SAVE_S = 30.0
_STRUCTURES = 2
_WORKERS = 2
_PARTS = 4
_MOST_FAILURES = 5  # of commands that nobody has killed
_UNDISTURBED = 100  # volumes of the run that nobody disturbs


@dataclass
class Tally:
    """What one way of spreading the work has cost and survived so far; kept in a file, so that it can go on."""

    way: str
    wall_s: float = 0.0
    runs: int = 0
    failures: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    made_again: list[str] = field(default_factory=list)
    left_running: int = 0
    finished: bool = False
    lives: dict[str, Life] = field(default_factory=dict)

    def killed(self, role: str) -> None:
        self.kills[role] = self.kills.get(role, 0) + 1

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path, way: str) -> Tally:
        if not path.exists():
            return cls(way)
        values = json.loads(path.read_text(encoding="utf-8"))
        lives = {
            key: Life(**{**life, "points": [tuple(p) for p in life["points"]]})
            for key, life in values.pop("lives").items()
        }
        return cls(**values, lives=lives)


class Results:
    """The labelmaps of an output folder: how many there are, and which were made a second time."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._seen: dict[str, tuple[int, int]] = {}
        self.again: list[str] = []

    def look(self) -> int:
        """Return how many there are now; one that is another file than before was made again."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.out) as entries:
            for entry in entries:
                if entry.name.endswith(".seg.nrrd") and entry.name[0] != ".":
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat().st_ino, entry.stat().st_mtime_ns
                        if self._seen.setdefault(entry.name, found) != found:
                            self.again.append(entry.name)
                            self._seen[entry.name] = found
        return len(self._seen)


class Run:
    """A way of spreading the work: commands that are started again until all of them have ended well."""

    def __init__(self, folder: Path, way: str, commands: Sequence[Sequence[str]], rng: random.Random) -> None:
        self._state, self._log = folder / f"{way}.state.json", folder / f"{way}.log"
        self.out = folder / way
        self.tally = Tally.load(self._state, way)
        self._commands = list(commands)
        self._is_cluster = any("--dask" in command for command in commands)
        self._rng = rng
        self._results = Results(self.out)
        self._running: dict[int, psutil.Popen] = {}  # number of the command -> its process
        self._seen: dict[tuple[int, float], psutil.Process] = {}

    def go(self, kill_every_s: float, command_kills: int, volumes: int) -> None:
        """Run to the end. Processes are killed after exponentially distributed times with this mean.

        Of a cluster that is a worker, but for `command_kills` times in its first third the command itself; of parts it
        is always a command.
        """
        if self.tally.finished:
            return
        waiting = set(range(len(self._commands)))
        saved, next_kill = time.monotonic(), time.monotonic() + self._pause(kill_every_s)
        try:
            while waiting:
                started = time.monotonic()
                self._start(waiting)
                time.sleep(_SAMPLE_S)
                done = self._sample()
                if time.monotonic() >= next_kill:
                    early = done < volumes / 3
                    self._kill(self.tally.kills.get("command", 0) < command_kills and early)
                    next_kill = time.monotonic() + self._pause(kill_every_s)
                waiting -= self._ended()
                self.tally.wall_s += time.monotonic() - started
                if time.monotonic() > saved + _SAVE_S:
                    self.tally.save(self._state)
                    saved = time.monotonic()
            time.sleep(2 * _SAMPLE_S)  # for the last ones to go
            self.tally.left_running = len(self._alive())
            self.tally.finished = True
        finally:
            for process in self._running.values():
                process.terminate()
            self.tally.save(self._state)

    def _pause(self, mean_s: float) -> float:
        return self._rng.expovariate(1 / mean_s)

    def _start(self, waiting: set[int]) -> None:
        for number in sorted(waiting - set(self._running)):
            self.tally.runs += 1
            with self._log.open("ab") as log:
                self._running[number] = psutil.Popen(
                    self._commands[number], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

    def _ended(self) -> set[int]:
        """The commands that have ended well; those that have not are started again, as a user would."""
        codes = {number: process.poll() for number, process in self._running.items()}
        for number, code in codes.items():
            if code is not None:
                del self._running[number]
            self.tally.failures += (code or 0) > 0
        if self.tally.failures > _MOST_FAILURES:
            raise SystemExit(f"Commands end with an error again and again; see {self._log}.")
        return {number for number, code in codes.items() if code == 0}

    def _sample(self) -> int:
        done = self._results.look()
        self.tally.made_again = self._results.again
        for process in self._running.values():
            look_at(process, "command", self.tally.lives, done)
            for child in self._workers_of(process):
                look_at(child, "worker", self.tally.lives, done)
        return done

    def _workers_of(self, process: psutil.Process) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            found = process.children(recursive=True)
            for one in (process, *found):
                self._seen[one.pid, one.create_time()] = one
        return found

    def _alive(self) -> list[psutil.Process]:
        return [one for one in self._seen.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def _kill(self, command_too: bool) -> None:
        """kill -9 of one of the workers, or of a command where `command_too` or there is no cluster."""
        commands = [process for process in self._running.values() if process.poll() is None]
        workers = [worker for command in commands for worker in self._workers_of(command)]
        role, ones = ("command", commands) if command_too or not self._is_cluster else ("worker", workers)
        if ones:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._rng.choice(ones).send_signal(signal.SIGKILL)
                self.tally.killed(role)


# ------------------------------------------------------------------------------------------------------------- checks


def check(out: Path, images: Sequence[Path]) -> dict[str, Any]:
    """What is not as it should be in an output folder, counted; the first names of each kind are examples.

    {"volumes", "done", "rows", "lost": {kind: [names]}}; `lost` is empty where all is well.
    """
    from FewShotSegLib.jobs.record import is_complete, read_record, result_path

    names = [image.name.removesuffix(".nrrd") for image in images]
    lost: dict[str, list[str]] = {}
    done = 0
    for name in names:
        record = read_record(result_path(out, name))
        if record is None or "error" in record:
            lost.setdefault("no record of a result", []).append(name)
        elif not is_complete(record, out):
            lost.setdefault("result is not what its record says", []).append(name)
        else:
            done += 1
    rows = _rows(out / "volumes.csv")
    counted = Counter((row["image"], row["structure"]) for row in rows)
    per_image = Counter(image for image, _ in counted)
    lost |= _named("no row for each structure", [str(i) for i in images if per_image[str(i)] != _STRUCTURES])
    lost |= _named("rows twice", [image for (image, _), count in counted.items() if count > 1])
    lost |= _named("rows of unknown images", sorted(set(per_image) - {str(image) for image in images}))
    lost |= _named("rows of failures", [row["image"] for row in rows if row["state"] == "failed"])
    left = hidden(out) + [path.name for path in out.glob("*.running.csv")]
    allowed = {f"{name}{suffix}" for name in names for suffix in (".seg.nrrd", ".result.json")}
    left += [path.name for path in out.iterdir() if path.name not in allowed and not _is_table(path.name)]
    lost |= _named("left over", sorted(set(left)))
    return {"volumes": len(images), "done": done, "rows": len(rows), "lost": lost}


def _named(kind: str, names: list[str]) -> dict[str, list[str]]:
    return {kind: names} if names else {}


def _is_table(name: str) -> bool:
    return name.removeprefix(".").startswith("volumes.") and name.endswith((".csv", ".csv.result.json"))


def _rows(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def digests(out: Path, images: Sequence[Path]) -> dict[str, str]:
    """{image: SHA-256 of its labelmap}, as the records say, which `check` has compared to the files."""
    from FewShotSegLib.jobs.record import read_record, result_path

    found = {}
    for image in images:
        name = image.name.removesuffix(".nrrd")
        record = read_record(result_path(out, name)) or {}
        found[name] = str(record.get("outputs", {}).get(f"{name}.seg.nrrd"))
    return found


# --------------------------------------------------------------------------------------------------------------- whole


def write_images(folder: Path, count: int, shape: tuple[int, int, int]) -> list[Path]:
    """Synthetic volumes, those that are not there yet."""
    from FewShotSegLib.io.volumes import save_volume
    from Testing.conftest import discs

    paths = [folder / f"v{number:05d}.nrrd" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            save_volume(discs(np.random.default_rng(number), shape)[0], path)
    return paths


def adapted(scene: Scene, shape: tuple[int, int, int]) -> str:
    """An adapter that finds something in such volumes: labelmaps of nothing would all be the same."""
    from FewShotSegLib.data.volume import Labelmap
    from FewShotSegLib.io.volumes import save_labelmap, save_volume
    from Testing.conftest import DISC, SQUARE, discs

    out = scene.folder / "small.safetensors"
    if not out.exists():
        image, labelmap = scene.folder / "exemplar.nrrd", scene.folder / "exemplar.seg.nrrd"
        volume, labels = discs(np.random.default_rng(99_999), shape)
        save_volume(volume, image)
        save_labelmap(Labelmap(volume.like(labels), {DISC: "disc", SQUARE: "square"}), labelmap)
        job = scene.adapt_job("lora", out)
        job["recipe"] |= {"steps": 60}
        job["exemplars"] = [{"image": str(image), "labelmap": str(labelmap), "axis": "k", "slices": [0, 1]}]
        done = scene.run(job)
        if done.returncode:
            raise SystemExit(f"The adapter cannot be made: {done.stderr[-500:]}")
    return str(out)


def undisturbed(segment: Sequence[str], folder: Path, images: Sequence[Path]) -> dict[str, float]:
    """What volumes take in one process that nobody disturbs: processor seconds of all with its start, and in the median
    the seconds that a volume is loaded, segmented and saved."""
    from FewShotSegLib.jobs.record import read_record, result_path

    shutil.rmtree(folder, ignore_errors=True)  # what is there would be left out
    process = psutil.Popen(
        [*segment, *map(str, images), "--out", str(folder)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lives: dict[str, Life] = {}
    while process.poll() is None:
        look_at(process, "command", lives, 0)
        time.sleep(0.2)
    records = [read_record(result_path(folder, image.name.removesuffix(".nrrd"))) or {} for image in images]
    inside = [sum(record["timings_s"].values()) for record in records]
    return {
        "volumes": len(images),
        "cpu_s_with_start": max(life.cpu_s for life in lives.values()),
        "load_segment_save_s": float(np.median(inside)),
    }


def ways(segment: Sequence[str], images: Sequence[Path], folder: Path) -> dict[str, list[list[str]]]:
    """{way: its commands}."""
    words = [*segment, *map(str, images), "--out"]
    local = [*words, str(folder / "dask"), "--dask", "local", "--processes", str(_WORKERS)]
    parts = [[*words, str(folder / "parts"), "--part", f"{number + 1}/{_PARTS}"] for number in range(_PARTS)]
    return {"dask": [local], "parts": parts}


def summary_of(run: Run, images: Sequence[Path]) -> dict[str, Any]:
    tally = run.tally
    checked = check(run.out, images)
    lost = checked["lost"] | _named("made a second time", tally.made_again)
    if tally.left_running:
        lost["processes that were left running"] = [str(tally.left_running)]
    return {
        **checked,
        "lost": {kind: {"count": len(names), "first": names[:3]} for kind, names in lost.items()},
        "kills": tally.kills,
        "runs": tally.runs,
        "runs_that_failed": tally.failures,
        "wall_s": tally.wall_s,
        "wall_s_per_volume": tally.wall_s / len(images),
        "cpu_s_per_volume": {role: seconds / len(images) for role, seconds in cpu_of(tally.lives.values()).items()},
        "memory": memory_of(tally.lives.values()),
    }


def text_of(found: dict[str, Any]) -> Iterator[str]:
    """The summary for a person."""
    for way in ("dask", "parts"):
        row = found[way]
        kills = ", ".join(f"{count} x {role}" for role, count in row["kills"].items()) or "none"
        yield f"{way}: {row['done']} of {row['volumes']} volumes done, {row['rows']} rows; kill -9: {kills}"
        cpu = ", ".join(f"{role} {seconds:.3f}" for role, seconds in row["cpu_s_per_volume"].items())
        yield f"  {row['wall_s_per_volume']:.3f} s per volume; processor seconds per volume: {cpu}"
        for role, memory in row["memory"].items():
            one, trend = memory["longest"], memory["longest"]["mb_per_1000"]
            spread = f"{trend['slope']:+.1f} ({trend['low']:+.1f} to {trend['high']:+.1f})" if trend else "unknown"
            yield f"  {role}: {one['first_mb']:.0f} to {one['last_mb']:.0f} MB, {spread} MB per 1,000 volumes"
        for kind, names in row["lost"].items():
            yield f"  LOST: {kind}: {names['count']}, such as {', '.join(names['first'])}"
    yield f"the same labelmaps both ways: {'yes' if found['same_both_ways'] else 'NO'}"


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m Testing.Campaign cluster", description=__doc__)
    parser.add_argument("--volumes", type=int, default=10_000)
    parser.add_argument("--shape", type=int, nargs=3, default=(2, 32, 32), metavar=("K", "J", "I"))
    parser.add_argument("--kill-every", type=float, default=60.0, metavar="S", help="mean time between kills (60)")
    parser.add_argument("--folder", default="", help="kept, so that what was interrupted goes on (default: none)")
    parser.add_argument("--out", default="", help="JSON file for what was found")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """The campaign of a cluster; 1 where something was lost."""
    chosen = arguments(words)
    with contextlib.ExitStack() as stack:
        folder = chosen.folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="fewshotseg-cluster-"))
        found = campaign(Path(folder).absolute(), chosen)
    sys.stdout.write("\n".join(text_of(found)) + "\n")
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(found[way]["lost"] for way in ("dask", "parts")) or not found["same_both_ways"])


def campaign(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Both ways, and what was found."""
    scene = Scene(folder)
    (folder / "images").mkdir(exist_ok=True)
    images = write_images(folder / "images", chosen.volumes, tuple(chosen.shape))
    adapter = adapted(scene, tuple(chosen.shape))
    segment = [sys.executable, "-m", "FewShotSegLib", "segment", "--adapter", adapter, "--device", "cpu"]
    found: dict[str, Any] = {
        "volumes": chosen.volumes,
        "shape_kji": list(chosen.shape),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "undisturbed": undisturbed(segment, folder / "undisturbed", images[:_UNDISTURBED]),
    }
    for way, commands in ways(segment, images, folder).items():
        run = Run(folder, way, commands, random.Random(f"{chosen.seed} {way}"))
        run.go(chosen.kill_every, 1 if way == "dask" else 0, chosen.volumes)
        if way == "parts":
            subprocess.run([sys.executable, "-m", "FewShotSegLib", "table", str(run.out)], cwd=ROOT, check=True)
        found[way] = summary_of(run, images)
    found["same_both_ways"] = digests(folder / "dask", images) == digests(folder / "parts", images)
    return found
