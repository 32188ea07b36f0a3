"""Exemplars from files, and as one text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from FewShotSegLib.data.exemplar import preflight
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


def test_the_channel_that_was_chosen_is_remembered(files):
    image = an_image()
    stacked = sitk.GetImageFromArray(np.stack([image.array, image.array + 1]), isVector=False)
    sitk.WriteImage(stacked, str(files / "sequences.nrrd"))
    save_volume(Volume(labels(), np.diag([-1.0, -1, 1, 1])), files / "plain.nrrd")
    exemplar = load_exemplar(files / "sequences.nrrd", files / "plain.nrrd", channel=1)
    assert np.array_equal(exemplar.volume.array, image.array + 1)
    assert exemplar.channel == 1
    assert load_exemplar(files / "image.nrrd", files / "labels.nrrd").channel is None


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
    with pytest.raises(InputError, match=rf"do not cover the same voxels: {difference}.*--resample"):
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


# ----------------------------------------------------------------------------------- overlaps, unknown voxels, geometry

CT = np.diag([-0.8, -0.9, 2.5, 1.0])


def a_ct(folder: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 400, (6, 20, 24)).astype(np.int16)
    save_volume(Volume(array, CT), folder / "ct.nrrd")
    return folder / "ct.nrrd"


def two_overlapping(folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A segmentation file with liver and tumour in layers of their own, the tumour inside the liver."""
    liver = np.zeros((6, 20, 24), bool)
    liver[1:5, 4:14, 4:16] = True
    tumour = np.zeros_like(liver)
    tumour[2:4, 7:11, 8:12] = True
    image = sitk.GetImageFromArray(np.stack([liver, tumour], axis=-1).astype(np.uint8), isVector=True)
    image.SetSpacing([0.8, 0.9, 2.5])
    for number, name in enumerate(("liver", "tumour")):
        fields = {"ID": f"s{number}", "Name": name, "LabelValue": "1", "Layer": str(number)}
        for key, text in fields.items():
            image.SetMetaData(f"Segment{number}_{key}", text)
    sitk.WriteImage(image, str(folder / "ct.seg.nrrd"))
    return folder / "ct.seg.nrrd", liver, tumour


def test_a_structure_under_another_one_is_whole_when_it_is_asked_for_alone(tmp_path: Path) -> None:
    labelmap, liver, tumour = two_overlapping(tmp_path)
    found = load_exemplar(a_ct(tmp_path), labelmap, structures={1: "liver"})
    assert np.array_equal(found.labelmap > 0, liver)
    assert found.overlapping == 0
    for structures in ({1: "liver", 2: "tumour"}, None):
        both = load_exemplar(tmp_path / "ct.nrrd", labelmap, structures=structures)
        assert np.array_equal(both.labelmap, np.where(tumour, 2, liver))
        assert both.overlapping == tumour.sum()
        assert any(f"overlap in {tumour.sum()} voxels" in sentence for sentence in preflight([both]))


def test_slices_that_hold_the_label_for_unknown_are_neither_annotated_nor_empty(tmp_path: Path) -> None:
    known = np.zeros((6, 20, 24), np.uint8)
    known[1:3, 4:9, 4:9], known[2, 0, 0], known[4] = 1, 9, 9
    save_volume(Volume(known, CT), tmp_path / "lab.nrrd")
    image = a_ct(tmp_path)
    complete = load_exemplar(image, tmp_path / "lab.nrrd", slices="all", ignore=9)
    assert (complete.annotated_slices, complete.empty_slices) == ((1,), (0, 3, 5))
    assert complete.structures == {1: "1"}
    assert load_exemplar(image, tmp_path / "lab.nrrd", ignore=9).annotated_slices == (1,)
    with pytest.raises(InputError, match="k=2 is listed as complete and holds the label for unknown"):
        load_exemplar(image, tmp_path / "lab.nrrd", slices=(1, 2), ignore=9)
    known[:, 0, 0] = 9
    save_volume(Volume(known, CT), tmp_path / "lab.nrrd")
    with pytest.raises(InputError, match="every slice holds the label for unknown"):
        load_exemplar(image, tmp_path / "lab.nrrd", slices="all", ignore=9)


def test_headers_that_disagree_can_be_told_to_be_of_the_same_voxels(tmp_path: Path) -> None:
    image, elsewhere = a_ct(tmp_path), np.diag([0.8, 0.9, 2.0, 1.0])
    drawn = np.zeros((6, 20, 24), np.uint8)
    drawn[2, 4:9, 4:9] = 1
    save_volume(Volume(drawn, elsewhere), tmp_path / "lab.nrrd")
    with pytest.raises(InputError, match=r"do not cover the same voxels.*take the image's geometry \(--same-voxels"):
        load_exemplar(image, tmp_path / "lab.nrrd")
    assert np.array_equal(load_exemplar(image, tmp_path / "lab.nrrd", same_voxels=True).labelmap, drawn)
    save_volume(Volume(drawn[:5], elsewhere), tmp_path / "lab.nrrd")
    with pytest.raises(InputError, match="different sizes cannot belong together"):
        load_exemplar(image, tmp_path / "lab.nrrd", same_voxels=True)


def test_a_photograph_and_its_mask_belong_together_whatever_their_dots_per_inch(tmp_path: Path) -> None:
    drawn = np.zeros((40, 50), np.uint8)
    drawn[5:15, 5:20], drawn[20:35, 25:45] = 1, 2
    Image.fromarray(drawn * 90).save(tmp_path / "p.jpg", dpi=(72, 72), quality=95)
    Image.fromarray(drawn).save(tmp_path / "m.png")
    assert np.array_equal(load_exemplar(tmp_path / "p.jpg", tmp_path / "m.png").labelmap[0], drawn)
