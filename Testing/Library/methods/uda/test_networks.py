"""Training of 3-D networks on cases, and what they predict."""

from __future__ import annotations

import numpy as np

from FewShotSegLib.imaging.anatomy_space import AnatomySpace
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.methods.uda.networks import ClassRecipe, predicted_labels, train_classes
from FewShotSegLib.training.patches import Case
from Testing.conftest import DISC, SQUARE, discs
from Testing.Library.methods.uda.conftest import other_kind


def test_edges_of_one_kind_teach_about_the_other() -> None:
    """In anatomy space, without any translation: a network that saw bright discs only finds dark ones."""
    sources = [discs(np.random.default_rng(seed)) for seed in range(3)]
    grid = Grid.of(sources[0][0], (4, 48, 48))
    space = AnatomySpace("2d")
    # Orientation and spacing of the grid are those of the volumes.
    cases = [Case(space.apply(volume).array, labels, None, grid.spacing_mm, "") for volume, labels in sources]
    recipe = ClassRecipe(steps=120, batch_size=2, learning_rate=4e-3)
    weights, _ = train_classes(cases, [1, 1, 1], grid, ["disc", "square"], recipe, seed=0)
    volume, truth = other_kind(9)
    found = predicted_labels(weights, space.apply(volume).array, grid, 3, recipe)
    for value in (DISC, SQUARE):
        overlap = 2 * np.count_nonzero((found == value) & (truth == value))
        assert overlap / (np.count_nonzero(found == value) + np.count_nonzero(truth == value)) > 0.5
