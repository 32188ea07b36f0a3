"""ASAP's 3-D networks."""

from __future__ import annotations

import numpy as np

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.inference.volume_network import VolumePredictor
from FewShotSegLib.methods.asap import method as asap
from FewShotSegLib.training.context import AdaptInputs, RunContext
from Testing.conftest import DISC, discs


def test_enough_training_finds_the_disc_in_another_patient(an_rng: np.random.Generator) -> None:
    cases = [discs(an_rng) for _ in range(3)]
    exemplars = [
        Exemplar(volume, np.where(labels == DISC, 1, 0), {1: "disc"}, 0, tuple(range(6)), name=str(number))
        for number, (volume, labels) in enumerate(cases[:2])
    ]
    recipe = asap.Recipe(
        network="unet", steps=60, patch=(4, 48, 48), batch_size=2, estimate_folds=0, learning_rate=3e-3
    )
    adapter = asap.adapt(AdaptInputs(exemplars=exemplars), recipe, RunContext(an_rng))
    volume, labels = cases[2]
    found = VolumePredictor(adapter, "cpu").segment(volume).labelmap.volume.array > 0  # type: ignore[arg-type]
    overlap = (
        2 * np.count_nonzero(found & (labels == DISC)) / (np.count_nonzero(found) + np.count_nonzero(labels == DISC))
    )
    assert overlap > 0.8
