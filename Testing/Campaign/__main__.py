"""`make campaign`: faults injected into whole runs, and a table of what was tried, survived and lost. Takes hours.

    make campaign                       100 kills of each kind, 2,000 changed files, 10,000 texts of each kind
    make campaign SHARE=0.1 ONLY=files  a tenth of kills, workers, disk, writers, clock, files or texts
    python -m Testing.Campaign cluster  10,000 volumes on a cluster whose workers are killed; --help tells more

Lost must be 0: no half file, the same bytes after going on, a sentence in the place of a traceback.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from . import cluster
from .kills import clock_jumps, crowded_register, full_disks, killed_jobs, killed_workers, two_writers
from .mutations import mutated_files
from .scene import ROOT, Count, Scene


def fuzzed_texts(count: int) -> Count:
    """The fuzz tests of the suite with as many examples."""
    row = Count("texts from outside, examples of each kind")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "Testing/Library/test_fuzz.py",
    ]
    environment = {**os.environ, "FEWSHOTSEG_FUZZ": str(count)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    row.tried, row.survived, row.lost = (
        count,
        count if done.returncode == 0 else 0,
        0 if done.returncode == 0 else count,
    )
    row.details = done.stdout.strip().splitlines()[-1][:150] if done.returncode else ""
    return row


def table(rows: list[Count]) -> str:
    """The rows as Markdown."""
    lines = ["| part | tried | survived | lost | first |", "|---|---|---|---|---|"]
    lines += [f"| {row.what} | {row.tried} | {row.survived} | {row.lost} | {row.details} |" for row in rows]
    return "\n".join(lines)


def main() -> int:
    if sys.argv[1:2] == ["cluster"]:
        return cluster.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="make campaign", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the full campaign (1)")
    parser.add_argument("--only", default="", help="kills, workers, disk, writers, clock, files or texts")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = random.Random(chosen.seed)

    def some(count: int) -> int:
        return max(round(count * chosen.share), 1)

    sizes = [2000 * 2**power for power in range(0, 10, 1 if chosen.share >= 1 else 3)]
    with tempfile.TemporaryDirectory(prefix="fewshotseg-campaign-") as folder:
        scene = Scene(Path(folder))
        parts: dict[str, Callable[[], Iterable[Count]]] = {
            "kills": lambda: killed_jobs(scene, some(100), rng),
            "workers": lambda: [killed_workers(scene, some(100), rng)],
            "disk": lambda: [full_disks(scene, sizes)],
            "writers": lambda: [two_writers(scene, some(20)), crowded_register(scene, some(40))],
            "clock": lambda: [clock_jumps(scene)],
            "files": lambda: mutated_files(scene, some(2000), rng),
            "texts": lambda: [fuzzed_texts(some(10_000))],
        }
        rows: list[Count] = []
        for name, part in parts.items():
            for row in part() if chosen.only in ("", name) else ():
                rows.append(row)
                sys.stdout.write(table([row]).splitlines()[-1] + "\n")
                sys.stdout.flush()
    sys.stdout.write("\n" + table(rows) + "\n")
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    sys.exit(main())
