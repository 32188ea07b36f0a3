"""Processes killed at random moments, two writers, full disks and clocks that jump: nothing may be lost or halved."""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .scene import ROOT, Count, Scene, contents, hidden

METHODS = ("lora", "asap", "gmiseg", "uda")


def killed_jobs(scene: Scene, count: int, rng: random.Random) -> Iterator[Count]:
    """kill -9 at random moments of adapt and segment, then the same job again: the same bytes, nothing left over."""
    for method in (*METHODS, "segment"):
        row = Count(f"kill -9 of {'adapt ' + method if method != 'segment' else method}")
        folder = scene.folder / "kills" / method
        wanted, seconds = _undisturbed(scene, method, folder / "whole")
        for number in range(count):
            row.note(*_killed_once(scene, method, folder / str(number), wanted, rng.uniform(0.3, seconds)))
        yield row


def _job(scene: Scene, method: str, out: Path) -> dict[str, Any]:
    return scene.segment_job(out) if method == "segment" else scene.adapt_job(method, out / "o.safetensors")


def _undisturbed(scene: Scene, method: str, out: Path) -> tuple[dict[str, str], float]:
    started = time.monotonic()
    done = scene.run(_job(scene, method, out))
    if done.returncode:
        raise SystemExit(f"The job of {method} cannot be done: {done.stderr[-500:]}")
    return contents(out), time.monotonic() - started


def _killed_once(scene: Scene, method: str, out: Path, wanted: dict[str, str], after_s: float) -> tuple[bool, str]:
    job = _job(scene, method, out)
    process = subprocess.Popen(scene.command(job), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    half = (
        {name for name in contents(out) if name in wanted and contents(out)[name] != wanted[name]}
        if out.exists()
        else ()
    )
    if half:
        return False, f"half a file after the kill: {sorted(half)}"
    again = scene.run(job)
    if again.returncode:
        return False, again.stderr
    left = hidden(out)
    same = contents(out) == wanted
    shutil.rmtree(out)
    return same and not left, f"other bytes: {not same}, left over: {left}"


def killed_workers(scene: Scene, count: int, rng: random.Random) -> Count:
    """kill -9 of a worker while a client waits: the client is told, and the next one does the work."""
    from FewShotSegLib.worker.client import WorkerClient

    row = Count("kill -9 of a worker")
    for number in range(count):
        out = scene.folder / "workers" / str(number)
        with WorkerClient() as client:
            client.submit({"op": "job", "job": scene.segment_job(out, 1)})
            time.sleep(rng.uniform(0.0, 4.0))
            if client.pid is not None and client.is_running:
                os.kill(client.pid, signal.SIGKILL)
            first = _answer(client)
            client.submit({"op": "job", "job": scene.segment_job(out, 1)})
            second = _answer(client)
        row.note(first["type"] in ("dead", "result") and second["type"] == "result" and not hidden(out), str(second))
        shutil.rmtree(out, ignore_errors=True)
    return row


def _answer(client: Any, patience_s: float = 90.0) -> dict[str, Any]:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        for message in client.poll():
            if message["type"] in ("result", "error", "dead"):
                return dict(message)
        time.sleep(0.02)
    return {"type": "no answer"}


def full_disks(scene: Scene, sizes: list[int]) -> Count:
    """Files that cannot grow beyond a size, as on a full disk: a sentence, no traceback, no half file."""
    row = Count("disk full")
    for size in sizes:
        for method in ("lora", "segment"):
            out = scene.folder / "full" / f"{method}{size}"
            limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
            done = scene.run(_job(scene, method, out), preexec_fn=limit)
            told = done.returncode in (0, 2) and "Traceback" not in done.stderr
            halves = [path.name for path in out.rglob("*.safetensors")] if done.returncode and out.exists() else []
            row.note(
                told and not halves, f"{method} at {size} bytes: exit {done.returncode} {halves} {done.stderr[-300:]}"
            )
            shutil.rmtree(out, ignore_errors=True)
    return row


def two_writers(scene: Scene, count: int) -> Count:
    """Two processes with the same job at the same time: one of them may be refused, and the result is whole."""
    row = Count("two writers of one adapter")
    wanted, _ = _undisturbed(scene, "lora", scene.folder / "writers" / "whole")
    for number in range(count):
        out = scene.folder / "writers" / str(number)
        command = scene.command(_job(scene, "lora", out))
        options: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        running = [subprocess.Popen(command, **options) for _ in range(2)]
        said = [process.communicate()[1] for process in running]
        codes = sorted(process.returncode for process in running)
        whole = contents(out) == wanted and not hidden(out)
        row.note(codes[0] == 0 and codes[1] in (0, 2) and whole, f"exit {codes}: {said[-1][-200:]}")
        shutil.rmtree(out, ignore_errors=True)
    return row


REGISTER = "import sys; from FewShotSegLib.sam import registry; registry.add(sys.argv[1], 'compact', sys.argv[2])"


def crowded_register(scene: Scene, count: int) -> Count:
    """Many processes that register a model at the same time: none is forgotten."""
    row = Count("models registered at the same time")
    names = [f"model{number}" for number in range(count)]
    words = [[sys.executable, "-c", REGISTER, str(scene.folder / "tiny.safetensors"), name] for name in names]
    running = [subprocess.Popen(command, cwd=ROOT) for command in words]
    for process in running:
        process.wait()
    listed = json.loads((scene.folder / "home" / "models.json").read_text(encoding="utf-8"))["models"]
    there = {entry["model"]["name"] for entry in listed}
    for name in names:
        row.note(name in there, f"{name} is forgotten")
    return row


def clock_jumps(scene: Scene) -> Count:
    """Files from the future and from long ago, as a clock that jumps leaves them: what counts is content."""
    row = Count("clock jumps")
    for stamp in (0, 4_000_000_000):
        out = scene.folder / "clock" / str(stamp)
        job = scene.segment_job(out, 1)
        scene.run(job)
        made = contents(out)
        for path in out.iterdir():
            os.utime(path, (stamp, stamp))
        image = Path(job["images"][0])
        content = image.read_bytes()
        other = scene.cases[1][0].read_bytes()
        image.write_bytes(other)
        os.utime(image, (stamp, stamp))
        made_from = _digests(out)
        scene.run(job)
        noticed = _digests(out) != made_from
        image.write_bytes(content)
        scene.run(job)
        same = contents(out) == made and _digests(out) == made_from
        row.note(noticed and same, f"another image was {'' if noticed else 'not '}noticed")
    return row


def _digests(out: Path) -> list[str]:
    """What results were made from, as their records say: two images may have the same segmentation."""
    return [json.loads(path.read_text(encoding="utf-8"))["digest"] for path in sorted(out.glob("*.result.json"))]
