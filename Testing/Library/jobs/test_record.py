"""The record beside the outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.errors import InputError
from FewShotSegLib.jobs.run import run
from Testing.conftest import Listener


def test_an_output_that_cannot_be_written_is_refused_before_training(
    an_adapt_job: AdaptJob, tmp_path: Path, a_listener: Listener
) -> None:
    (tmp_path / "a file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(InputError, match="Cannot write"):
        run(replace(an_adapt_job, out=str(tmp_path / "a file" / "a.safetensors")), a_listener)
    assert not any("adapting" in message for message in a_listener.messages)
