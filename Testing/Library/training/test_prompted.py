"""Training of a promptable model on prompts."""

from __future__ import annotations

import numpy as np

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.methods import lora
from FewShotSegLib.sam.network import PromptableNetwork
from FewShotSegLib.training.context import AdaptInputs, RunContext
from Testing.conftest import QUICK, Listener


def test_a_picture_comes_with_every_look_at_held_back_samples(
    a_tiny_sam: PromptableNetwork, an_exemplar: Exemplar
) -> None:
    listener = Listener()
    recipe = lora.Recipe(**{**QUICK, "steps": 4, "validate_every": 2})
    lora.adapt(AdaptInputs(a_tiny_sam, [an_exemplar]), recipe, RunContext(np.random.default_rng(0), listener))
    shown = {p.step: p.picture.shape for p in listener.heard if p.picture is not None}
    assert shown == {2: (64, 4 * 64, 3), 4: (64, 4 * 64, 3)}
