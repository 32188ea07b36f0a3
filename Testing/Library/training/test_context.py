"""What a method is given, and where its randomness comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.progress import silent
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.context import AdaptInputs, RunContext


def test_the_base_is_lent_and_its_absence_is_a_defect_of_the_caller(a_tiny_sam: PromptableNetwork) -> None:
    assert AdaptInputs(a_tiny_sam).promptable_base is a_tiny_sam
    with pytest.raises(TypeError, match="none was given"):
        _ = AdaptInputs().promptable_base


def test_exemplars_are_scaled_as_chosen_else_as_their_kind_of_image_is(an_exemplar: Exemplar) -> None:
    chosen = IntensitySpec("window", -10, 90)
    assert AdaptInputs(exemplars=[an_exemplar], intensity=chosen).intensity_of_exemplars() == chosen
    automatic = AdaptInputs(exemplars=[an_exemplar]).intensity_of_exemplars()
    assert automatic.kind == "window"  # Hounsfield units
    values = an_exemplar.volume.array.clip(0)
    mr = Exemplar(an_exemplar.volume.like(values), an_exemplar.labelmap, an_exemplar.structures, 0, (1, 3))
    assert AdaptInputs(exemplars=[mr, an_exemplar]).intensity_of_exemplars().kind == "percentile"


def test_seeds_of_a_run_come_from_its_generator_one_after_the_other() -> None:
    one, same, other = (RunContext(np.random.default_rng(seed)) for seed in (3, 3, 4))
    drawn = [one.new_seed() for _ in range(4)]
    assert drawn == [same.new_seed() for _ in range(4)]
    assert len({*drawn, *(other.new_seed() for _ in range(4))}) == 8
    assert all(0 <= seed < 2**31 for seed in drawn)


def test_a_run_without_wishes_is_silent_on_the_cpu_without_limit() -> None:
    run = RunContext(np.random.default_rng(0))
    assert (run.report, run.device) == (silent, torch.device("cpu"))
    assert (run.max_seconds, run.checkpoint) == (None, None)
