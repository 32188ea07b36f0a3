"""What the campaign works on: a small base model, cases and jobs in a folder of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from Testing.Library.methods.uda.conftest import QUICK as UDA_QUICK

ROOT = Path(__file__).resolve().parents[2]
QUICK: dict[str, Any] = {
    "image_size": 64,
    "batch_size": 1,
    "steps": 12,
    "validate_every": 0,
    "estimate_folds": 0,
    "guard": "off",
    "token_prompts": 2,
    "click_prompts": 1,
    "checkpoint_seconds": 0.0,
}


@dataclass
class Count:
    """A row of the table."""

    what: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    details: str = ""

    def note(self, survived: bool, detail: str = "") -> None:
        """Count one try; what went wrong first is kept."""
        self.tried += 1
        self.survived += survived
        self.lost += not survived
        if not survived and detail and not self.details:
            self.details = " ".join(detail.split())[:150]


class Scene:
    """The folder, and what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ.update(
            FEWSHOTSEG_HOME=str(folder / "home"),
            FEWSHOTSEG_CACHE=str(folder / "cache"),
            OMP_NUM_THREADS="1",
            PYTHONPATH=str(ROOT),
        )
        from FewShotSegLib.sam import registry
        from Testing.conftest import save_tiny_compact, write_discs

        save_tiny_compact(folder / "tiny.safetensors")
        registry.add(folder / "tiny.safetensors", "compact", "tiny")
        self.cases = [write_discs(folder / "data", f"case{number}", number) for number in range(4)]
        for name in ("north", "south"):
            for number in range(2):
                write_discs(folder / "auxiliary" / name, f"aux{number}", 50 + number)
        for number in range(2):
            write_discs(folder / "source", f"case {number}", number)
            image, _ = write_discs(folder / "target", f"patient {number}", 60 + number)
            image.with_name(f"patient {number}.seg.nrrd").unlink()
        self.adapter = folder / "organs.safetensors"
        self.run(self.adapt_job("lora", self.adapter))

    def adapt_job(self, method: str, out: Path) -> dict[str, Any]:
        """A job of a method that takes seconds."""
        image, labelmap = map(str, self.cases[0])
        job: dict[str, Any] = {"kind": "adapt", "method": method, "base": "tiny", "device": "cpu", "out": str(out)}
        job["recipe"] = dict(QUICK)
        exemplar = {"image": image, "labelmap": labelmap, "axis": "k", "slices": [1, 3]}
        if method in ("lora", "asap"):
            job["exemplars"] = [exemplar]
        if method == "asap":
            job["auxiliary_folder"] = str(self.folder / "auxiliary")
            job["recipe"] |= {"steps_per_turn": 2, "probe_batches": 1}
        if method == "uda":
            job |= {"source_folder": str(self.folder / "source"), "target_folder": str(self.folder / "target")}
            job["recipe"] = dict(UDA_QUICK)
        if method == "gmiseg":
            job["auxiliary_folder"] = str(self.folder / "auxiliary")
            options = _options_of("gmiseg") - {"token_prompts"}  # it has no structures of its own
            job["recipe"] = {k: v for k, v in QUICK.items() if k in options}
        return job

    def segment_job(self, out: Path, count: int = 2) -> dict[str, Any]:
        """A job of a few images."""
        images = [str(image) for image, _ in self.cases[:count]]
        return {"kind": "segment", "images": images, "adapter": str(self.adapter), "device": "cpu", "out": str(out)}

    def command(self, job: dict[str, Any]) -> list[str]:
        """The command line of a job, through a job file."""
        digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / "jobs" / f"{digest}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(job), encoding="utf-8")
        return [sys.executable, "-m", "FewShotSegLib", "job", str(path)]

    def run(self, job: dict[str, Any], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a job to its end in a process of its own."""
        return subprocess.run(self.command(job), cwd=ROOT, capture_output=True, text=True, check=False, **options)


def _options_of(name: str) -> set[str]:
    from FewShotSegLib.data.recipe import to_dict
    from FewShotSegLib.methods import method

    return set(to_dict(method(name).Recipe()))


def contents(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of everything that a job leaves for a person: records hold times, hidden files are gone."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith((".result.json", ".lock"))
    }


def hidden(folder: Path) -> list[str]:
    """What is left over: part files, staging folders, checkpoints."""
    names = (path.name for path in folder.rglob("*"))
    return [name for name in names if ".part" in name or name.endswith(".fewshotseg") or "checkpoint" in name]
