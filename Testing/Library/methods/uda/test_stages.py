"""Stages are kept and found again, and say what stops them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.jobs.run import run
from Testing.conftest import Listener
from Testing.Library.methods.uda.conftest import QUICK, messages_of


def test_a_stage_that_is_there_is_not_computed_again(a_job: AdaptJob, tmp_path: Path) -> None:
    run(a_job)
    again, listener = replace(a_job, out=str(tmp_path / "again.safetensors")), Listener()
    run(again, listener)
    assert not {"learning to translate", "teacher 1", "small network"} & messages_of(listener)
    assert Path(again.out).read_bytes() == Path(a_job.out).read_bytes()
    other = replace(a_job, out=str(tmp_path / "other.safetensors"), recipe={**QUICK, "rounds": 3})
    listener = Listener()
    run(other, listener)
    assert not {"learning to translate", "teacher 1", "teacher 2"} & messages_of(listener)
    assert "teacher 3" in messages_of(listener)


def test_a_cancelled_run_leaves_no_adapter_and_goes_on_where_it_was(a_job: AdaptJob) -> None:
    class AtTeacher(Listener):
        def __call__(self, progress: Any) -> None:
            super().__call__(progress)
            if progress.message == "teacher 2":
                raise Cancelled

    with pytest.raises(Cancelled):
        run(a_job, AtTeacher())
    assert not Path(a_job.out).exists()
    listener = Listener()
    run(a_job, listener)
    assert "teacher 1" not in messages_of(listener)
    assert "teacher 2" in messages_of(listener)


def test_one_target_is_too_few(a_job: AdaptJob, tmp_path: Path) -> None:
    for case in (1, 2):
        (tmp_path / "mr" / f"patient {case}.nrrd").unlink()
    with pytest.raises(InputError, match="At least 2 unlabelled"):
        run(a_job)


def test_translations_that_all_drift_stop_the_run_with_advice(a_job: AdaptJob) -> None:
    with pytest.raises(InputError, match="drift_limit"):
        run(replace(a_job, recipe={**QUICK, "drift_limit": 1.0}))


def test_domains_and_patients_are_read_from_the_names_of_targets(a_job: AdaptJob) -> None:
    named = {"domain_of": r"(\d)$", "patient_of": "^(patient)", "filter": False}
    matching = run(replace(a_job, recipe={**QUICK, **named}))["metrics"]["stages"]["matching"]
    assert matching["rule"].startswith("domain ")
    tried = [attempt for borrower in matching["borrowers"].values() for attempt in borrower["attempts"]]
    assert tried
    assert all(attempt["same_patient"] for attempt in tried)


@pytest.mark.parametrize(
    ("pattern", "what"), [("(", "not a regular"), ("patient", "one group"), (r"([01])$", 'nothing .* "patient 2"')]
)
def test_an_expression_that_finds_nothing_is_said(a_job: AdaptJob, pattern: str, what: str) -> None:
    with pytest.raises(InputError, match=f'"domain_of".*{what}'):
        run(replace(a_job, recipe={**QUICK, "domain_of": pattern}))
