"""An exemplar knows which of its slices are known, and refuses what cannot be learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from FewShotSegLib.data.exemplar import Exemplar, check_exemplars, preflight
from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.exemplars import load_exemplar, parse_exemplar
from FewShotSegLib.io.volumes import save_labelmap, save_volume

SHAPE = (8, 12, 14)


def geometry(spacing=(1, 1, 5), angle=25, origin=(10, 20, 30)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [angle, -10, 5], degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def an_image():
    return Volume(np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.int16), geometry())


def labels():
    """Label 1 on slices 2 and 3, label 6 on slices 3 and 4."""
    array = np.zeros(SHAPE, np.uint8)
    array[2:4, 2:6, 2:6] = 1
    array[3:5, 7:10, 7:12] = 6
    return array


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "Fälle mit Leerzeichen"
    save_volume(an_image(), folder / "image.nrrd")
    save_volume(Volume(labels(), geometry()), folder / "labels.nrrd")
    save_labelmap(Labelmap(Volume(labels(), geometry()), {1: "spleen", 6: "liver"}), folder / "labels.seg.nrrd")
    return folder


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


# ------------------------------------------------------------------------------------------------------------- load


def test_every_slice_with_a_label_is_annotated_by_default(files):
    exemplar = load_exemplar(files / "image.nrrd", files / "labels.nrrd")
    assert exemplar.axis == 0
    assert (exemplar.annotated_slices, exemplar.empty_slices) == ((2, 3, 4), ())
    assert exemplar.structures == {1: "1", 6: "6"}
    assert exemplar.name == "image.nrrd"
    assert np.array_equal(exemplar.labelmap, labels())
    assert np.array_equal(exemplar.volume.array, an_image().array)


def test_listed_slices_are_annotated_or_known_to_be_empty_and_others_are_not_used(files):
    exemplar = load_exemplar(files / "image.nrrd", files / "labels.nrrd", slices=(6, 3))
    assert (exemplar.annotated_slices, exemplar.empty_slices) == ((3,), (6,))
    assert np.array_equal(exemplar.labelmap[3], labels()[3])
    assert np.count_nonzero(exemplar.labelmap) == np.count_nonzero(labels()[3])


def test_all_slices_can_be_known(files):
    exemplar = load_exemplar(files / "image.nrrd", files / "labels.nrrd", slices="all")
    assert (exemplar.annotated_slices, exemplar.empty_slices) == ((2, 3, 4), (0, 1, 5, 6, 7))


def test_slices_can_be_along_another_axis(files):
    exemplar = load_exemplar(files / "image.nrrd", files / "labels.nrrd", axis=2, slices=(3, 8, 13))
    assert (exemplar.annotated_slices, exemplar.empty_slices) == ((3, 8), (13,))
    assert np.array_equal(exemplar.labels_on(8), labels()[:, :, 8])


@pytest.mark.parametrize("slices", [(3, 8), (-1,)])
def test_a_slice_that_does_not_exist_is_refused(files, slices):
    with pytest.raises(InputError, match="does not exist, allowed are 0 to 7"):
        load_exemplar(files / "image.nrrd", files / "labels.nrrd", slices=slices)


def test_only_listed_structures_are_kept(files):
    exemplar = load_exemplar(files / "image.nrrd", files / "labels.nrrd", structures={6: "liver"})
    assert exemplar.structures == {6: "liver"}
    assert exemplar.annotated_slices == (3, 4)  # slice 2 shows the spleen only: whether the liver is there is unknown
    assert np.array_equal(exemplar.labelmap, np.where(labels() == 6, 6, 0))


def test_names_in_a_segmentation_file_decide_over_its_values(files):
    exemplar = load_exemplar(files / "image.nrrd", files / "labels.seg.nrrd")
    assert exemplar.structures == {1: "spleen", 6: "liver"}
    turned = load_exemplar(files / "image.nrrd", files / "labels.seg.nrrd", structures={1: "liver", 2: "spleen"})
    assert np.array_equal(turned.labelmap == 1, labels() == 6)
    assert np.array_equal(turned.labelmap == 2, labels() == 1)


def test_a_value_that_the_file_calls_something_else_is_refused(files):
    with pytest.raises(InputError, match='calls label 6 "liver", you call it "kidney"'):
        load_exemplar(files / "image.nrrd", files / "labels.seg.nrrd", structures={6: "kidney"})


def test_unnamed_segments_can_be_named(files):
    path = files / "unnamed.seg.nrrd"
    save_labelmap(Labelmap(Volume(labels(), geometry()), {1: "Segment_1", 6: "Segment 6"}), path)
    exemplar = load_exemplar(files / "image.nrrd", path, structures={6: "liver", 1: "spleen"})
    assert np.array_equal(exemplar.labelmap, labels())


def test_a_labelmap_without_the_structure_is_refused(files):
    with pytest.raises(InputError, match=r"labels\.nrrd holds no label of aorta \(label 8\)"):
        load_exemplar(files / "image.nrrd", files / "labels.nrrd", structures={8: "aorta"})


def test_an_empty_labelmap_is_refused(files):
    save_volume(Volume(np.zeros(SHAPE, np.uint8), geometry()), files / "empty.nrrd")
    with pytest.raises(InputError, match=r"empty\.nrrd holds no label"):
        load_exemplar(files / "image.nrrd", files / "empty.nrrd")


def test_a_labelmap_of_fractions_is_refused(files):
    save_volume(Volume(labels() * np.float32(0.5), geometry()), files / "soft.nrrd")
    with pytest.raises(InputError, match=r"soft\.nrrd is no labelmap: \d+ voxels hold fractions"):
        load_exemplar(files / "image.nrrd", files / "soft.nrrd")


@pytest.mark.parametrize(
    ("shape", "affine", "difference"),
    [
        ((*SHAPE[:2], 13), geometry(), r"size \(i, j, k\) \(14, 12, 8\) and \(13, 12, 8\)"),
        (SHAPE, geometry(spacing=(1, 1, 4)), r"spacing in mm \(1, 1, 5\) and \(1, 1, 4\)"),
        (SHAPE, geometry(origin=(10, 20, 33)), r"origin in RAS mm \(10, 20, 30\) and \(10, 20, 33\)"),
        (SHAPE, geometry(angle=0), r"direction \("),
    ],
)
def test_another_geometry_is_refused_with_the_difference_and_resampled_when_asked(files, shape, affine, difference):
    array = np.zeros(shape, np.uint8)
    array[3:5, 4:8, 4:8] = 1
    save_volume(Volume(array, affine), files / "other.nrrd")
    with pytest.raises(InputError, match=rf"do not cover the same voxels: {difference}.*--resample, resample=True"):
        load_exemplar(files / "image.nrrd", files / "other.nrrd")
    exemplar = load_exemplar(files / "image.nrrd", files / "other.nrrd", resample=True)
    assert exemplar.labelmap.shape == SHAPE
    assert exemplar.labelmap.any()


def test_a_labelmap_in_another_index_order_is_put_back_exactly(files):
    flip = np.diag([1.0, 1, -1, 1])
    flip[2, 3] = SHAPE[0] - 1
    save_volume(Volume(labels()[::-1], geometry() @ flip), files / "flipped.nii.gz")
    exemplar = load_exemplar(files / "image.nrrd", files / "flipped.nii.gz")
    assert np.array_equal(exemplar.labelmap, labels())


def test_a_segmentation_file_may_cover_the_labelled_part_only(files):
    shift = np.eye(4)
    shift[:3, 3] = 2, 2, 2
    part = Volume(labels()[2:5, 2:10, 2:12], geometry() @ shift)
    save_labelmap(Labelmap(part, {1: "spleen", 6: "liver"}), files / "part.seg.nrrd")
    exemplar = load_exemplar(files / "image.nrrd", files / "part.seg.nrrd")
    assert np.array_equal(exemplar.labelmap, labels())
    save_volume(part, files / "part.nrrd")  # a plain file of another size is a mistake
    with pytest.raises(InputError, match="do not cover the same voxels: size"):
        load_exemplar(files / "image.nrrd", files / "part.nrrd")


# ------------------------------------------------------------------------------------------------------------ parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.nrrd=b.nrrd", ("a.nrrd", "b.nrrd", None, None)),
        ("a.nrrd=b.nrrd@k:12,14", ("a.nrrd", "b.nrrd", 0, (12, 14))),
        ("a.nrrd=b.nrrd@j:3", ("a.nrrd", "b.nrrd", 1, (3,))),
        ("a.nrrd=b.nrrd@ i : 3, 4", ("a.nrrd", "b.nrrd", 2, (3, 4))),
        ("a.nrrd=b.nrrd@k:all", ("a.nrrd", "b.nrrd", 0, "all")),
        ("Fälle 1/a b.nrrd=é/b@home.nrrd", ("Fälle 1/a b.nrrd", "é/b@home.nrrd", None, None)),
        ("a@1/a.nrrd=b@2/b.nrrd@k:7", ("a@1/a.nrrd", "b@2/b.nrrd", 0, (7,))),
    ],
)
def test_an_exemplar_is_written_as_one_text(text, expected):
    image, labelmap, axis, slices = parse_exemplar(text)
    assert (image, labelmap, axis, slices) == (Path(expected[0]), Path(expected[1]), expected[2], expected[3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.nrrd", "written IMAGE=LABELMAP"),
        ("a.nrrd=", "written IMAGE=LABELMAP"),
        ("=b.nrrd@k:1", "written IMAGE=LABELMAP"),
        ("a=b@z:1", 'like "@k:12,14" or "@k:all", got "@z:1"'),
        ("a=b@k:", 'got "@k:"'),
        ("a=b@k:1;2", 'got "@k:1;2"'),
        ("a=b@k:-1", 'got "@k:-1"'),
        ("a=b=c", 'split at several "="'),
    ],
)
def test_a_text_that_is_no_exemplar_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_exemplar(text)


def test_an_equals_sign_in_a_name_is_found_by_the_files_that_exist(tmp_path):
    (tmp_path / "time=30.nrrd").touch()
    (tmp_path / "labels.nrrd").touch()
    image, labelmap, _, _ = parse_exemplar(f"{tmp_path}/time=30.nrrd={tmp_path}/labels.nrrd@k:1")
    assert (image.name, labelmap.name) == ("time=30.nrrd", "labels.nrrd")


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
    assert preflight([make(), make(annotated=(2,), name="b")]) == ["liver is annotated in 1 of 2 exemplars only."]


def test_exemplars_of_different_kinds_of_image_are_warned_about():
    ct = Volume(an_image().array - 300, geometry())
    (warning,) = preflight([make(), make(name="second"), make(image=ct, name="ct")])
    assert warning.startswith("case has no Hounsfield units and ct has, but all are read with the intensity window of")
    (warning,) = preflight([make(image=ct, name="ct"), make()])
    assert warning.startswith("ct has Hounsfield units and case has not")


def test_a_slice_listed_as_annotated_without_a_label_is_warned_about():
    assert preflight([make(annotated=(2, 3, 7))]) == ["case, slice k=7: listed as annotated and holds no label."]
