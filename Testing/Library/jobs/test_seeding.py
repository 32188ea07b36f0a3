"""One seed, and numbers of its own for each stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.jobs import seeding
from FewShotSegLib.jobs.run import run
from FewShotSegLib.jobs.seeding import own_randomness, stage_rng


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


def test_a_stage_draws_the_same_whatever_the_others_do_and_other_numbers_for_another_seed() -> None:
    adapt, segment = stage_rng(5, "adapt"), stage_rng(5, "segment")
    adapt.random(1000)
    assert segment.random() == stage_rng(5, "segment").random()
    assert stage_rng(6, "segment").random() != stage_rng(5, "segment").random()


def test_what_draws_from_the_global_generator_gets_the_seed_of_the_job() -> None:
    drawn = []
    for seed in (3, 3, 4):
        with own_randomness(seed, torch.device("cpu")):
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_state_of_the_caller_comes_back_also_after_an_error() -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), own_randomness(3, torch.device("cpu")):
        _ = torch.rand(4).tolist()[0] / 0
    assert torch.equal(torch.random.get_rng_state(), before)
