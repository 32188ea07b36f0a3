"""phantom.py: synthetic patients that are plausible, labelled exactly, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from FewShotSegLib.data.intensity import IntensitySpec, looks_like_hounsfield
from FewShotSegLib.data.volume import ras_from_ijk
from FewShotSegLib.demo.phantom import STRUCTURES, cohort, patient
from FewShotSegLib.errors import InputError
from Testing.conftest import dice

PLAUSIBLE_ML = {  # adults, generous
    "liver": (600, 2200),
    "right kidney": (70, 280),
    "left kidney": (70, 280),
    "spleen": (50, 450),
    "aorta": (30, 200),
}


@pytest.fixture(scope="module")
def patients():
    return cohort(4, 6)


def volumes_ml(labelmap) -> dict[str, float]:
    voxel_ml = float(np.prod(labelmap.volume.spacing_mm)) / 1000
    return {name: float((labelmap.volume.array == value).sum()) * voxel_ml for value, name in STRUCTURES.items()}


def centre_ras(labelmap, name: str) -> np.ndarray:
    value = {n: v for v, n in labelmap.structures.items()}[name]
    kji = np.argwhere(labelmap.volume.array == value)
    return ras_from_ijk(labelmap.volume.affine, kji[:, ::-1]).mean(axis=0)


def test_every_patient_has_every_structure_in_a_plausible_size(patients):
    for _, labelmap in patients:
        assert dict(labelmap.structures) == STRUCTURES
        for name, volume_ml in volumes_ml(labelmap).items():
            low, high = PLAUSIBLE_ML[name]
            assert low < volume_ml < high, f"{name}: {volume_ml:.0f} mL"


def test_organs_lie_on_the_right_side_of_the_patient(patients):
    for _, labelmap in patients:
        right, _, superior = np.eye(3)
        at = {name: centre_ras(labelmap, name) for name in STRUCTURES.values()}
        assert at["liver"] @ right > 20
        assert at["right kidney"] @ right > 30 > -30 > at["left kidney"] @ right
        assert at["spleen"] @ right < -50
        assert at["right kidney"] @ superior < at["liver"] @ superior
        assert at["aorta"][1] < at["liver"][1]  # the liver lies in front of the aorta


def test_structures_are_whole(patients):
    for _, labelmap in patients:
        for value in STRUCTURES:
            parts, _ = ndimage.label(labelmap.volume.array == value)
            sizes = np.bincount(parts.ravel())[1:]
            assert sizes.max() / sizes.sum() > 0.9


def test_image_and_labels_share_their_geometry_and_the_image_is_hounsfield_like(patients):
    for volume, labelmap in patients:
        assert volume.same_geometry(labelmap.volume)
        assert volume.array.dtype == np.int16
        assert labelmap.volume.array.dtype == np.uint8
        assert looks_like_hounsfield(volume.array)
        assert IntensitySpec.auto(volume).kind == "window"
        assert volume.acquisition_axis == 0
        assert np.allclose(volume.spacing_mm, (2, 2, 5))


def test_organ_intensities_are_close_to_each_other_and_above_fat(patients):
    for volume, labelmap in patients:
        means = [volume.array[labelmap.volume.array == value].mean() for value in STRUCTURES]
        assert 60 < min(means) < max(means) < 220
        assert abs(means[0] - means[3]) < 45  # liver and spleen


def test_patients_of_a_cohort_differ(patients):
    first, second = patients[0][1].volume.array == 1, patients[1][1].volume.array == 1
    assert 0.5 < dice(first, second) < 0.97
    assert len({round(volumes_ml(labelmap)["spleen"]) for _, labelmap in patients}) > 3


def test_the_same_seed_gives_the_same_patient_whatever_the_size_of_the_cohort(patients):
    again = cohort(4, 2)[1]
    assert np.array_equal(again[0].array, patients[1][0].array)
    assert np.array_equal(again[1].volume.array, patients[1][1].volume.array)


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the state under test
    patient(np.random.default_rng(0), shape=(10, 40, 40), spacing_mm=(8, 8, 20))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_a_coarse_grid_shows_the_same_anatomy(patients):
    coarse = cohort(4, 1, shape=(20, 80, 80), spacing_mm=(4.0, 4.0, 10.0))[0][1]
    fine = volumes_ml(patients[0][1])
    for name, volume_ml in volumes_ml(coarse).items():
        assert volume_ml == pytest.approx(fine[name], rel=0.12)
    assert np.allclose(centre_ras(coarse, "liver"), centre_ras(patients[0][1], "liver"), atol=2.5)


def test_an_mr_patient_has_the_same_anatomy_in_other_contrasts(patients):
    volume, labelmap = cohort(4, 1, modality="mr")[0]
    assert np.array_equal(labelmap.volume.array, patients[0][1].volume.array)
    assert volume.array.min() >= 0
    assert IntensitySpec.auto(volume).kind == "percentile"
    means = {name: volume.array[labelmap.volume.array == value].mean() for value, name in STRUCTURES.items()}
    assert means["aorta"] < means["liver"] < means["spleen"]  # flow void; T2 with fat suppression


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modality": "pet"}, '"pet"'),
        ({"shape": (0, 10, 10)}, "above zero"),
        ({"spacing_mm": (1.0, 1.0, -1.0)}, "above zero"),
    ],
)
def test_what_cannot_be_painted_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        patient(np.random.default_rng(0), **options)


def test_an_empty_cohort_is_refused():
    with pytest.raises(InputError, match="at least one"):
        cohort(0, 0)


def test_a_single_slice_and_a_tiny_field_of_view_can_be_painted():
    volume, labelmap = patient(np.random.default_rng(1), shape=(1, 64, 64), spacing_mm=(5, 5, 5))
    assert volume.shape == labelmap.volume.shape == (1, 64, 64)
    volume, _ = patient(np.random.default_rng(1), shape=(3, 4, 5))
    assert np.isfinite(volume.array).all()
