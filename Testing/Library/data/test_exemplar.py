"""An exemplar knows which of its slices are known, and refuses what cannot be learned from."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.data.exemplar import Exemplar, check_exemplars, preflight
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from Testing.Library.annotated import an_image, geometry, labels


def make(labelmap=None, structures=None, annotated=(2, 3, 4), empty=(), name="case", image=None, axis=0):
    labelmap = labels() if labelmap is None else labelmap
    structures = structures or {1: "spleen", 6: "liver"}
    return Exemplar(image or an_image(), labelmap, structures, axis, annotated, empty, name)


# ----------------------------------------------------------------------------------------------------------- object


def test_slices_are_sorted_and_taken_along_the_axis():
    exemplar = make(annotated=(4, 2, 2, np.int64(3)), empty=[7, 0])
    assert (exemplar.annotated_slices, exemplar.empty_slices) == ((2, 3, 4), (0, 7))
    assert np.array_equal(exemplar.labels_on(3), labels()[3])
    assert np.array_equal(make(axis=2, annotated=(8,)).image_on(8), an_image().array[:, :, 8])
    assert make(annotated=(2,)).annotated_structures() == {1: "spleen"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labelmap": labels()[1:]}, "image and labelmap differ in shape"),
        ({"labelmap": labels() * 0.5}, "case is no labelmap: .* fractions"),
        ({"labelmap": -labels().astype(int)}, "case is no labelmap"),
        ({"axis": 3}, "slice axis is 0"),
        ({"annotated": (2, 8)}, "slice k=8 does not exist, allowed are 0 to 7"),
        ({"annotated": (-1,)}, "slice k=-1 does not exist"),
        ({"annotated": ()}, "no slice is annotated"),
        ({"empty": (2,)}, "slice 2 is listed as annotated and as empty"),
        ({"annotated": (2, 3), "empty": (4,)}, "slice 4 is listed as empty and holds labels"),
        ({"structures": {1: "spleen"}}, "slice 3 holds label 6, which has no structure name"),
        ({"structures": {1: "a", 6: "a"}}, 'same structure name "a"'),
    ],
)
def test_an_exemplar_without_sense_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        make(**values)


def test_no_structures_are_refused():
    with pytest.raises(InputError, match="no structure is named"):
        Exemplar(an_image(), labels(), {}, 0, (2,))


# ------------------------------------------------------------------------------------------------------------ check


def test_at_least_one_exemplar_is_needed():
    with pytest.raises(InputError, match="At least one exemplar"):
        check_exemplars([])


def test_the_structures_of_all_exemplars_are_collected():
    first = make(structures={1: "spleen", 6: "liver"})
    second = make(np.where(labels() == 1, 9, 0), {9: "aorta"}, (2,))
    assert check_exemplars([first, second]) == {1: "spleen", 6: "liver", 9: "aorta"}


def test_a_structure_missing_from_every_exemplar_is_refused():
    structures = {1: "spleen", 6: "liver", 8: "aorta"}
    with pytest.raises(InputError, match=r"No exemplar shows aorta \(label 8\) on an annotated slice"):
        check_exemplars([make(structures=structures), make(structures=structures)])
    with pytest.raises(InputError, match="liver"):
        preflight([make(annotated=(2,))])  # the liver is in the labelmap, on a slice that is not annotated


def test_one_label_with_two_names_is_refused():
    with pytest.raises(InputError, match='other calls label 6 "Leber", another exemplar "liver"'):
        check_exemplars([make(), make(structures={1: "spleen", 6: "Leber"}, name="other")])


def test_one_name_with_two_labels_is_refused():
    with pytest.raises(InputError, match='same structure name "liver"'):
        check_exemplars([make(), make(np.where(labels() == 6, 7, 0), {7: "liver"}, (3, 4))])


def test_good_exemplars_give_no_warnings():
    assert preflight([make(), make(name="second")]) == []


def test_a_structure_of_one_voxel_is_warned_about():
    array = labels()
    array[array == 1] = 0
    array[2, 5, 5] = 1
    assert preflight([make(array)]) == ["case, slice k=2: spleen is a single voxel; check that it was meant."]


@pytest.mark.parametrize("at", [(0, 5), (-1, 5), (5, 0), (5, -1)])
def test_a_mask_touching_the_border_is_warned_about(at):
    array = labels()
    array[2][at] = 1
    (warning,) = preflight([make(array)])
    assert warning.startswith("case, slice k=2: spleen touches the border of the image")


def test_a_constant_slice_is_warned_about():
    image = an_image()
    image.array[3] = 7
    assert preflight([make(image=image)]) == ["case, slice k=3: the image is constant, there is nothing to learn from."]


def test_a_structure_in_some_exemplars_only_is_warned_about():
    (warning,) = preflight([make(), make(annotated=(2,), name="b")])
    assert warning.startswith(
        "liver is drawn in 1 of 2 exemplars only; on the annotated slices of the others it counts"
    )


def test_exemplars_of_different_kinds_of_image_are_warned_about():
    ct = Volume(an_image().array - 300, geometry())
    (warning,) = preflight([make(), make(name="second"), make(image=ct, name="ct")])
    assert warning.startswith("case has no Hounsfield units and ct has, but all are read with the intensity window of")
    (warning,) = preflight([make(image=ct, name="ct"), make()])
    assert warning.startswith("ct has Hounsfield units and case has not")


def test_a_slice_listed_as_annotated_without_a_label_is_warned_about():
    assert preflight([make(annotated=(2, 3, 7))]) == ["case, slice k=7: listed as annotated and holds no label."]
