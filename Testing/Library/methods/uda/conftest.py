"""Discs of two kinds, and a job to learn from one kind for the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.io.volumes import save_volume
from Testing.conftest import Listener, discs, write_discs

QUICK: dict[str, Any] = {
    "space": "anatomy",
    "steps": 3,
    "translation_steps": 2,
    "patch": [4, 32, 32],
    "rounds": 3,
    "drift_limit": -1.0,
    "pseudo_labels": {"keep_empty": True, "drop_fraction": 0.0, "uncertainty_limit": None, "vote": "union"},
}


@pytest.fixture(autouse=True)
def a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSHOTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def other_kind(seed: int) -> tuple[Volume, np.ndarray]:
    """Discs with their contrast the other way round, as MR beside CT."""
    volume, labels = discs(np.random.default_rng(seed))
    image = 400 - volume.array.clip(-300, 300).astype(np.float32)
    return Volume(image, volume.affine), labels


def job_in(folder: Path) -> AdaptJob:
    """A job whose files are written to the folder."""
    for case in range(2):
        write_discs(folder / "ct", f"case {case}", case)
    (folder / "mr").mkdir()
    for case in range(3):
        save_volume(other_kind(20 + case)[0], folder / "mr" / f"patient {case}.nrrd")
    return AdaptJob(
        str(folder / "discs.safetensors"),
        method="uda",
        source_folder=str(folder / "ct"),
        target_folder=str(folder / "mr"),
        recipe=QUICK,
        device="cpu",
    )


@pytest.fixture
def a_job(tmp_path: Path, a_home: Path) -> AdaptJob:
    return job_in(tmp_path)


def messages_of(listener: Listener) -> set[str]:
    return {message.split(":")[0] for message in listener.messages}
