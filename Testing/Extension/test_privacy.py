"""Nothing leaves this computer: the worker processes as Slicer runs them, with every use of a socket written down."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles, Job, SegmentJob, to_dict
from FewShotSegSlicer.Workers.Workers import Workers
from Testing.conftest import QUICK, discs, write_discs

ROOT = Path(__file__).resolve().parents[2]
# Python runs a file of this name whenever it starts. Audit events come from the interpreter, whoever uses the socket.
SITECUSTOMIZE = """
import os, sys

def write_down(event, arguments):
    if event.startswith(("socket.", "http.", "urllib.", "ftplib.", "smtplib.")):
        with open(os.environ["WRITTEN_DOWN"], "a") as file:
            file.write(f"{event} {arguments}\\n")

sys.addaudithook(write_down)
with open(os.environ["WRITTEN_DOWN"], "a") as file:
    file.write("listening\\n")
"""


def test_clicks_adapting_and_segmenting_open_no_connection(
    tmp_path: Path, a_tiny_base: str, runUntil: Callable[..., None]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    writtenDown = tmp_path / "sockets.txt"
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    workers = Workers(environment={"PYTHONPATH": paths, "WRITTEN_DOWN": str(writtenDown), "OMP_NUM_THREADS": "1"})
    answers: list[dict[str, Any]] = []
    errors: list[str] = []

    def ask(worker: Any, request: dict[str, Any]) -> None:
        expected = len(answers) + 1
        workers.request(
            worker, request, onResult=answers.append, onError=lambda *error: errors.append(": ".join(error))
        )

        def answered() -> bool:
            workers.poll()
            return bool(errors) or len(answers) == expected

        runUntil(answered, timeout_s=60)
        assert errors == []

    def askFor(job: Job) -> None:
        ask("job", {"op": "job", "job": to_dict(job)})

    image, labelmap = write_discs(tmp_path, "case", 0)
    exemplar = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    adapter = str(tmp_path / "organs.safetensors")
    volume, _labels = discs(np.random.default_rng(1))
    click = {"axis": "k", "index": 2, "structure": "disc", "points_ijk": [[22, 24, 2]], "point_labels": [1]}
    try:
        askFor(AdaptJob(adapter, exemplars=(exemplar,), base=a_tiny_base, recipe=QUICK, device="cpu"))
        askFor(SegmentJob((str(image),), str(tmp_path / "segmented"), adapter, device="cpu"))
        workers.sendVolume("v", volume.array, volume.affine)
        where = {"volume": "v", "base": a_tiny_base, "adapter": adapter, "device": "cpu"}
        ask("prompt", {"op": "predict", "prompt": click, **where})
    finally:
        workers.close()
    assert writtenDown.read_text(encoding="utf-8").splitlines() == ["listening", "listening"]
