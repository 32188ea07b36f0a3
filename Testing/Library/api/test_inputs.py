"""What the functions of the API take: objects, files and arrays mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.api.inputs import as_adapter, as_labelmap, as_volume, make_exemplar
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.exemplars import load_exemplar
from FewShotSegLib.io.volumes import load_volume

NAMES = {1: "disc", 2: "square"}


def test_files_volumes_and_arrays_are_the_same_image(a_case: tuple[Path, Path]) -> None:
    volume = load_volume(a_case[0])
    assert as_volume(volume) is volume
    assert as_volume(str(a_case[0])).same_geometry(volume)
    assert np.array_equal(as_volume(volume.array, volume.spacing_mm).affine[:3, :3], volume.affine[:3, :3])


@pytest.mark.parametrize(
    ("image", "spacing", "sentence"),
    [
        (np.zeros((2, 2, 2)), None, "spacing_mm="),
        (np.zeros((2, 2, 2)), (1, 1), "three positive numbers"),
        (np.zeros((2, 2, 2)), (1, 1, 0), "three positive numbers"),
        (np.zeros((2, 2, 2)), (1, 1, float("nan")), "three positive numbers"),
        (np.zeros((2, 2)), (1, 1, 1), "3 dimensions"),
        (Volume(np.zeros((2, 2, 2)), np.eye(4)), (1, 1, 1), "goes with an array"),
        (17, None, "got int"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_do(image: Any, spacing: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        as_volume(image, spacing)


def test_labels_of_an_array_have_the_names_they_are_given() -> None:
    labels = np.array([[[0, 1, 2]]])
    assert as_labelmap(labels, (1, 1, 1), {1: "disc"}).structures == {1: "disc", 2: "2"}
    with pytest.raises(InputError, match="fractions"):
        as_labelmap(labels / 2, (1, 1, 1))


def test_an_adapter_may_be_a_file(an_adapter_file: Path) -> None:
    loaded = as_adapter(an_adapter_file)
    assert loaded is not None
    assert as_adapter(loaded) is loaded
    assert as_adapter(None) is None


def test_an_exemplar_from_arrays_is_the_one_from_files(a_case: tuple[Path, Path]) -> None:
    volume, labels = load_volume(a_case[0]), as_labelmap(a_case[1])
    from_files = load_exemplar(*a_case, axis="k", slices=(1, 3))
    made = make_exemplar(
        volume.array, labels.volume.array, spacing_mm=volume.spacing_mm, axis="k", slices=(1, 3), structures=NAMES
    )
    assert np.array_equal(made.labelmap, from_files.labelmap)
    assert (made.annotated_slices, made.structures) == (from_files.annotated_slices, from_files.structures)
    assert make_exemplar(*a_case, axis=0, slices=(1, 3)).name == from_files.name == "ct.nrrd"


def test_an_exemplar_needs_labels_on_the_voxels_of_its_image(a_labelled_volume: tuple[Volume, np.ndarray]) -> None:
    volume, labels = a_labelled_volume
    with pytest.raises(InputError, match="does not fit a volume"):
        make_exemplar(volume, labels[:-1])
    moved = Volume(labels, volume.affine + np.eye(4, k=3))
    with pytest.raises(InputError, match="origin in RAS mm"):
        make_exemplar(volume, as_labelmap(moved))
    with pytest.raises(InputError, match="holds no label"):
        make_exemplar(volume, np.zeros_like(labels), structures=NAMES)
    with pytest.raises(InputError, match="slice axis"):
        make_exemplar(volume, labels, axis="z")
