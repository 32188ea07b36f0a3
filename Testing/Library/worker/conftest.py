"""A worker process that tests share, and how a front end talks to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.job import AdaptJob, ExemplarFiles
from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.worker.client import WorkerClient
from Testing.conftest import QUICK, write_discs

PATIENCE_S = 60.0
Messages = list[dict[str, Any]]


def wait_for(client: WorkerClient, wanted: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE_S) -> Messages:
    """Poll as a front end does, until a message fits; returns everything up to it."""
    deadline, seen = time.monotonic() + seconds, []
    while time.monotonic() < deadline:
        for message in client.poll():
            seen.append(message)
            if wanted(message):
                return seen
        time.sleep(0.01)
    raise AssertionError(f"nothing fitting came, only {seen[-3:]}")


def answer_to(client: WorkerClient, number: int) -> dict[str, Any]:
    def final(message: dict[str, Any]) -> bool:
        return message.get("type") == "dead" or (message.get("id") == number and message["type"] != "progress")

    return wait_for(client, final)[-1]


def ask(client: WorkerClient, **request: Any) -> dict[str, Any]:
    return answer_to(client, client.submit(request))


def a_click(index: int = 2, structure: str | None = "disc") -> dict[str, Any]:
    point = np.array([[22.0, 24.0, float(index)]])
    return Prompt(0, index, point, np.array([1]), structure=structure).to_dict()


@pytest.fixture(scope="package")
def a_shared_client() -> Iterator[WorkerClient]:
    """One process for the tests that leave it as it was; starting one with torch takes seconds."""
    with WorkerClient(environment={"OMP_NUM_THREADS": "1"}) as client:
        yield client


@pytest.fixture
def a_client(a_shared_client: WorkerClient, an_adapter_file: Path) -> WorkerClient:
    """The shared process knows the home of the test that started it; models are given to it by path."""
    return a_shared_client


@pytest.fixture
def where(an_adapter_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {"adapter": str(an_adapter_file), "base": str(tmp_path / "home" / "tiny.safetensors"), "device": "cpu"}


def a_long_job(tmp_path: Path, where: dict[str, Any]) -> AdaptJob:
    image, labelmap = write_discs(tmp_path, "case", 0)
    exemplar = ExemplarFiles(str(image), str(labelmap), axis="k", slices=(1, 3))
    recipe = {**QUICK, "steps": 100_000}
    out = str(tmp_path / "long" / "a.safetensors")
    return AdaptJob(out, exemplars=(exemplar,), base=where["base"], recipe=recipe, device="cpu")
