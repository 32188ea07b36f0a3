"""One seed, and numbers of its own for each stage."""

from __future__ import annotations

import numpy as np
import torch

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.jobs import seeding
from FewShotSegLib.jobs.run import run
from FewShotSegLib.jobs.seeding import stage_rng


def test_the_random_state_of_the_caller_is_untouched(an_adapt_job: AdaptJob) -> None:
    before = torch.random.get_rng_state(), state_of_numpy()
    run(an_adapt_job)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert state_of_numpy() == before[1]


def state_of_numpy() -> str:
    return repr(np.random.get_state(legacy=False))  # noqa: NPY002 - the state to protect


def test_every_stage_draws_numbers_of_its_own() -> None:
    drawn = [stage_rng(5, stage).integers(2**31) for stage in seeding.STAGES]
    assert len(set(drawn)) == len(drawn)
    assert stage_rng(5, "segment").integers(2**31) == drawn[1]
