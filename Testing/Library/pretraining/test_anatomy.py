"""Random scenes: the same from the same generator, and well formed."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from FewShotSegLib.pretraining import anatomy
from FewShotSegLib.pretraining.anatomy import Scene, draw_scene, smooth_field

SIZE = 64
SEEDS = range(25)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng(seed), SIZE) for seed in SEEDS]


def test_a_scene_depends_on_its_generator_only(scenes: list[Scene]) -> None:
    for seed in (0, 7):
        again = draw_scene(np.random.default_rng(seed), SIZE)
        np.testing.assert_array_equal(again.labels, scenes[seed].labels)
        assert (again.parents, again.tissues) == (scenes[seed].parents, scenes[seed].tissues)
    assert not np.array_equal(scenes[0].labels, scenes[1].labels)


def test_global_generators_are_left_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    draw_scene(np.random.default_rng(0), SIZE)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_every_label_lies_in_an_earlier_one(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.labels.shape == (SIZE, SIZE)
        assert scene.labels.dtype == np.uint8
        assert scene.labels.max() < len(scene.parents) <= 250
        assert scene.parents[0] == 0
        assert all(0 <= parent < label for label, parent in enumerate(scene.parents) if label)


def test_labels_of_one_tissue_point_to_the_first_of_them(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len(scene.tissues) == len(scene.parents)
        assert all(first <= label and scene.tissues[first] == first for label, first in enumerate(scene.tissues))
    assert any(first < label for scene in scenes for label, first in enumerate(scene.tissues))


def test_every_kind_of_structure_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: Counter[str] = Counter()
    originals = {n: part for n, part in vars(anatomy).items() if n.startswith("_paint_") or n == "_field_of_view"}
    for name, original in originals.items():

        def watched(*given, name=name, original=original):  # type: ignore[no-untyped-def]
            painted[name] += 1
            return original(*given)

        monkeypatch.setattr(anatomy, name, watched)
    for seed in range(150):
        draw_scene(np.random.default_rng(seed), SIZE)
    assert set(painted) == set(originals)


def test_a_region_with_its_children_is_the_region_and_all_that_lies_in_it(scenes: list[Scene]) -> None:
    for scene in scenes:

        def lies_in(label: int, ancestor: int, scene: Scene = scene) -> bool:
            while label and label != ancestor:
                label = scene.parents[label]
            return label == ancestor

        for label in range(1, len(scene.parents)):
            own, whole = (scene.region(label, with_children=wanted) for wanted in (False, True))
            np.testing.assert_array_equal(own, scene.labels == label)
            members = [v for v in range(len(scene.parents)) if lies_in(v, label)]
            np.testing.assert_array_equal(whole, np.isin(scene.labels, members))


def test_scenes_have_many_structures_small_and_large(scenes: list[Scene]) -> None:
    areas = np.concatenate([np.bincount(scene.labels.ravel())[1:] for scene in scenes]) / SIZE**2
    areas = areas[areas > 0]
    assert len(areas) / len(scenes) > 5
    assert (areas < 0.005).any()
    assert (areas > 0.2).any()


def test_some_scenes_have_air_around_the_body_and_some_have_none(scenes: list[Scene]) -> None:
    air = [bool((scene.labels == 0).any()) for scene in scenes]
    assert 0.4 < np.mean(air) < 1


def test_a_smooth_field_is_smooth_at_its_wavelength_and_of_unit_size() -> None:
    fields = np.stack([smooth_field(np.random.default_rng(seed), 128, 32) for seed in range(40)])
    assert fields.std() == pytest.approx(1, abs=0.25)
    assert fields.mean() == pytest.approx(0, abs=0.25)
    next_pixel = np.corrcoef(fields[:, :, :-1].ravel(), fields[:, :, 1:].ravel())[0, 1]
    far = np.corrcoef(fields[:, :, :-96].ravel(), fields[:, :, 96:].ravel())[0, 1]
    assert next_pixel > 0.98
    assert abs(far) < 0.2
