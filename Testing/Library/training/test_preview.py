"""3-D patches as slices for a person to look at."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.imaging.grid import Grid
from FewShotSegLib.training.patches import PatchRecipe
from FewShotSegLib.training.preview import patch_samples, shown_slice
from Testing.conftest import DISC, SQUARE, discs

WINDOW = IntensitySpec("window", -200, 200)
STRUCTURES = {DISC: "disc", SQUARE: "square"}
GRID = Grid((1.0, 1.0, 4.0), (4, 48, 48), "LPS")  # that of the discs
AS_THEY_ARE = PatchRecipe(foreground=1.0, change_probability=0.0)


def an_exemplar(seed: int, *slices: int) -> Exemplar:
    volume, labels = discs(np.random.default_rng(seed))
    known = np.zeros_like(labels)
    known[list(slices)] = labels[list(slices)]
    return Exemplar(volume, known, STRUCTURES, 0, slices, name=f"case {seed}")


def drawn(exemplars: list[Exemplar], count: int, recipe: PatchRecipe = AS_THEY_ARE, seed: int = 0):
    return patch_samples(exemplars, STRUCTURES, GRID, WINDOW, recipe, np.random.default_rng(seed), count)


def test_the_slice_that_shows_most_is_shown() -> None:
    image, labels = np.random.default_rng(0).random((5, 8, 9)), np.zeros((5, 8, 9), np.int32)
    labels[1, :2], labels[3, :3], labels[4, 0] = 2, 2, 2
    known = np.ones(labels.shape, bool)
    known[3, 5:] = False
    sample = shown_slice(image, labels, "case: liver", {2: "liver"}, known)
    np.testing.assert_array_equal(sample.labels, labels[3])
    np.testing.assert_allclose(sample.image, image[3], atol=1e-7)
    assert sample.image.dtype == np.float32
    np.testing.assert_array_equal(sample.known, known[3])
    assert sample.provenance == {"caption": "case: liver", "structures": {2: "liver"}}


def test_a_patch_that_is_known_everywhere_says_so() -> None:
    image, labels = np.zeros((3, 4, 4)), np.ones((3, 4, 4), np.int32)
    assert shown_slice(image, labels, "a", {1: "a"}, np.ones(labels.shape, bool)).known is None
    assert shown_slice(image, labels, "a", {1: "a"}).known is None


def test_exemplars_and_structures_take_turns() -> None:
    samples = drawn([an_exemplar(1, 0, 1, 2, 3, 4, 5), an_exemplar(2, 0, 1, 2, 3, 4, 5)], 6)
    captions = [sample.provenance["caption"] for sample in samples]
    assert captions[:4] == ["case 1: disc", "case 2: disc", "case 1: square", "case 2: square"]
    assert captions[4:] == captions[:2]
    for sample, caption in zip(samples, captions, strict=True):
        value = DISC if caption.endswith("disc") else SQUARE
        assert set(np.unique(sample.labels)) == {0, value}


def test_what_is_shown_is_cut_from_the_exemplar() -> None:
    exemplar = an_exemplar(1, *range(6))
    scaled = (exemplar.volume.array.clip(-200, 200) + 200) / 400
    for sample in drawn([exemplar], 4):
        height, width = sample.image.shape
        assert (height, width) == (48, 48)
        value = int(sample.labels.max())
        fits = [
            np.array_equal(sample.labels > 0, exemplar.labelmap[k, j : j + 48, i : i + 48] == value)
            and np.allclose(sample.image, scaled[k, j : j + 48, i : i + 48], atol=1e-5)
            for k in range(6)
            for j in range(17)
            for i in range(17)
        ]
        assert sum(fits) == 1


def test_slices_that_nobody_annotated_are_unknown() -> None:
    for sample in drawn([an_exemplar(1, 2)], 4):
        assert sample.known is None or sample.known[sample.labels > 0].all()
        assert (sample.labels > 0).any()


@pytest.mark.parametrize("recipe", [AS_THEY_ARE, PatchRecipe()])
def test_the_same_generator_shows_the_same(recipe: PatchRecipe) -> None:
    exemplars = [an_exemplar(1, *range(6))]
    one, same, other = (drawn(exemplars, 3, recipe, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a.image, b.image) for a, b in zip(one, other, strict=True))
