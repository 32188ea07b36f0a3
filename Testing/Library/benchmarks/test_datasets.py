"""Public data sets: exemplars, unseen cases, thinning, merged labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from FewShotSegLib.benchmarks.datasets import (
    DATASETS,
    STARE,
    exemplars,
    in_plane,
    random_exemplars,
    thinned,
    unseen_cases,
    with_empty_slices,
)
from FewShotSegLib.data.volume import Volume, ras_from_ijk
from FewShotSegLib.io.volumes import save_volume
from Testing.Library.benchmarks.conftest import TOY


def test_exemplar_slices_hold_most_structures_and_lie_apart(a_data_folder: Path) -> None:
    (exemplar,) = exemplars(TOY, a_data_folder, 2)
    first, second = exemplar.annotated_slices
    assert second - first >= 5
    assert any(len(np.unique(exemplar.labels_on(k))) == 3 for k in exemplar.annotated_slices)


def test_cases_that_gave_exemplars_are_not_tested_on(a_data_folder: Path) -> None:
    (exemplar,) = exemplars(TOY, a_data_folder, 1)
    assert exemplar.name == "0_img.nii.gz"
    assert [name for name, _, _ in unseen_cases(TOY, a_data_folder, 5, 10)] == ["1_img", "2_img"]


def test_thinning_keeps_every_slice_in_its_place() -> None:
    affine = np.array([[0, -2, 0, 5], [1, 0, 0, -3], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
    volume = Volume(np.arange(10)[:, None, None] * np.ones((10, 2, 3)), affine)
    thin = thinned(volume, 3)
    assert thin.array[:, 0, 0].tolist() == [0, 3, 6, 9]
    np.testing.assert_allclose(
        ras_from_ijk(thin.affine, np.array([[1, 1, 2.0]])), ras_from_ijk(volume.affine, np.array([[1, 1, 6.0]]))
    )


def test_merged_labels_are_one_structure(tmp_path: Path) -> None:
    (tmp_path / "brats2013").mkdir()
    labels = np.arange(5, dtype=np.uint8).reshape(1, 1, 5)
    save_volume(Volume(labels.astype(np.float32), np.eye(4)), tmp_path / "brats2013/p_Flair.nii.gz")
    save_volume(Volume(labels, np.eye(4)), tmp_path / "brats2013/p_lab.nii.gz")
    _, labelmap = DATASETS["brats"].load(tmp_path / "brats2013/p_Flair.nii.gz")
    assert labelmap.volume.array.ravel().tolist() == [0, 1, 1, 1, 1]


def test_photographs_are_pictures_of_one_slice() -> None:
    assert STARE.merged
    assert STARE.structures == {1: "vessel"}


def test_every_plane_shows_the_same_voxels_in_the_same_place() -> None:
    affine = np.array([[0, -2, 0, 5], [1, 0, 0, -3], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
    volume = Volume(np.arange(24).reshape(2, 3, 4), affine)
    for axis in range(3):
        turned = in_plane(volume, axis)
        assert turned.shape[0] == volume.shape[axis]
        for k, j, i in ((1, 2, 3), (0, 1, 2)):
            at = np.argwhere(turned.array == volume.array[k, j, i])[0]
            np.testing.assert_allclose(
                ras_from_ijk(turned.affine, np.array([at[::-1]], float)),
                ras_from_ijk(affine, np.array([[i, j, k]], float)),
            )


def test_slices_by_lot_show_something_and_differ_from_draw_to_draw(a_data_folder: Path) -> None:
    chosen = set()
    for seed in range(5):
        (exemplar,) = random_exemplars(TOY, a_data_folder, 3, np.random.default_rng(seed))
        assert len(exemplar.annotated_slices) == 3
        assert all(exemplar.labels_on(index).any() for index in exemplar.annotated_slices)
        chosen.add(exemplar.annotated_slices)
    assert len(chosen) > 2


def test_slices_without_a_label_are_backgrounds(a_data_folder: Path) -> None:
    (before,) = exemplars(TOY, a_data_folder, 1)
    (after,) = with_empty_slices([before])
    empty = [k for k, labels in enumerate(before.labelmap) if not labels.any()]
    assert list(after.empty_slices) == empty != []
    assert after.annotated_slices == before.annotated_slices
    (every,) = exemplars(TOY, a_data_folder, len(before.labelmap))
    assert set(empty) <= set(every.annotated_slices)  # they are annotated as empty
    assert with_empty_slices([every])[0].empty_slices == ()
