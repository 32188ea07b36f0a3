"""Exemplars from files, and as one text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.exemplars import load_exemplar, parse_exemplar
from FewShotSegLib.io.volumes import save_labelmap, save_volume
from Testing.Library.annotated import SHAPE, an_image, geometry, labels


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "Fälle mit Leerzeichen"
    save_volume(an_image(), folder / "image.nrrd")
    save_volume(Volume(labels(), geometry()), folder / "labels.nrrd")
    save_labelmap(Labelmap(Volume(labels(), geometry()), {1: "spleen", 6: "liver"}), folder / "labels.seg.nrrd")
    return folder


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
