"""Folders of data sets as people have them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from FewShotSegLib.data.job import AuxiliaryFiles, ExemplarFiles
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.datasets import DataSet, complete_exemplar, data_set_of, data_sets_in, files_of
from FewShotSegLib.io.volumes import save_volume


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def pairs_of(data_set: DataSet) -> list[tuple[str, str]]:
    return [(case.image.name, case.labelmap.name) for case in data_set.cases]


def only(folder: Path) -> DataSet:
    (data_set,) = data_sets_in(folder)
    return data_set


# --- nnU-Net and the decathlon --------------------------------------------------------------------------------------


def test_an_nnunet_data_set_is_read_with_its_labels_and_licence(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset007_Pancreas"
    labels = {"background": 0, "pancreas": 1, "tumour": 2, "ignore": 3}
    card = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "licence": "CC BY-SA 4.0"}
    write_json(folder / "dataset.json", card)
    touch(folder, *(f"imagesTr/p_{case}_0000.nii.gz" for case in "ab"), *(f"labelsTr/p_{case}.nii.gz" for case in "ab"))
    touch(folder, "imagesTr/._p_a_0000.nii.gz", "labelsTr/._p_a.nii.gz")  # what macOS leaves behind
    found = only(folder)
    assert (found.name, found.modality, found.licence) == ("Dataset007_Pancreas", "CT", "CC BY-SA 4.0")
    assert found.structures == {"pancreas": ("pancreas",), "tumour": ("tumour",)}
    assert pairs_of(found) == [(f"p_{case}_0000.nii.gz", f"p_{case}.nii.gz") for case in "ab"]
    assert found.cases[0].structures == {1: "pancreas", 2: "tumour"}
    assert found.cases[0].time_index is None


def test_a_region_is_a_structure_of_several_labels(tmp_path: Path) -> None:
    labels = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    write_json(tmp_path / "Brain" / "dataset.json", {"channel_names": {"0": "T1"}, "labels": labels})
    touch(tmp_path / "Brain", "imagesTr/a_0000.nrrd", "labelsTr/a.nrrd")
    found = only(tmp_path)
    assert found.structures == {
        "whole tumour": ("label 1", "label 2", "enhancing"),
        "core": ("label 2", "enhancing"),
        "enhancing": ("enhancing",),
    }
    assert found.cases[0].structures == {1: "label 1", 2: "label 2", 3: "enhancing"}


def test_each_channel_is_a_data_set_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "FeTS"
    card = {"channel_names": {"0": "FLAIR", "1": "T1"}, "labels": {"background": 0, "oedema": 1}}
    write_json(folder / "dataset.json", card)
    touch(folder, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    flair, t1 = data_sets_in(tmp_path)
    assert [(s.name, s.modality) for s in (flair, t1)] == [("FeTS FLAIR", "FLAIR"), ("FeTS T1", "T1")]
    assert pairs_of(t1) == [("a_0001.nii.gz", "a.nii.gz")]


def test_a_decathlon_data_set_lists_its_cases_and_stacks_its_channels(tmp_path: Path) -> None:
    folder = tmp_path / "Task05_Prostate"
    card = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "license": "CC BY",
        "training": [{"image": "./imagesTr/p_04.nii.gz", "label": "./labelsTr/p_04.nii.gz"}],
    }
    write_json(folder / "dataset.json", card)
    touch(folder, "imagesTr/p_04.nii.gz", "labelsTr/p_04.nii.gz", "labelsTr/not_listed.nii.gz")
    found = data_sets_in(tmp_path)
    assert [s.cases[0].time_index for s in found] == [0, 1]
    assert [pairs_of(s) for s in found] == [[("p_04.nii.gz", "p_04.nii.gz")]] * 2
    assert found[0].structures == {"PZ": ("PZ",), "TZ": ("TZ",)}
    assert found[0].licence == "CC BY"


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("{", "is not JSON"),
        ([1], "must hold a table"),
        ({"channel_names": {"0": "CT"}}, 'has no "labels"'),
        ({"channel_names": ["CT"], "labels": {"a": 1}}, "the channels must be a table"),
        ({"labels": {"a": 1, "b": 1.5}}, "must be a whole number or a list"),
        ({"labels": {"a": 1}}, "no image that fits"),
    ],
)
def test_a_wrong_dataset_json_is_refused_in_words(tmp_path: Path, card: Any, words: str) -> None:
    touch(tmp_path / "D", "labelsTr/a.nii.gz")
    (tmp_path / "D" / "dataset.json").write_text(card if isinstance(card, str) else json.dumps(card), encoding="utf-8")
    with pytest.raises(InputError, match=words):
        data_sets_in(tmp_path / "D")


# --- folders of images and labels -----------------------------------------------------------------------------------


def test_images_and_labels_of_the_same_name_belong_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "hippocampus"
    touch(folder, "images/h_1.nii.gz", "images/h_2.nii.gz", "images/extra.nii.gz")
    touch(folder, "labels/h_1.nii.gz", "labels/h_2.seg.nrrd", "labels/h_3.nii.gz")
    write_json(folder / "card.json", {"modality": "MR", "licence": "CC0", "structures": {"1": "head", "2": "tail"}})
    with caplog.at_level(logging.WARNING):
        found = only(tmp_path)
    assert pairs_of(found) == [("h_1.nii.gz", "h_1.nii.gz"), ("h_2.nii.gz", "h_2.seg.nrrd")]
    assert (found.modality, found.licence) == ("MR", "CC0")
    assert found.structures == {"head": ("head",), "tail": ("tail",)}
    assert "h_3.nii.gz is left out" in caplog.text


def test_without_a_card_the_labelmaps_say_what_they_show(tmp_path: Path) -> None:
    touch(tmp_path / "d", "images/a.nrrd", "labels/a.nrrd")
    found = only(tmp_path)
    assert (found.structures, found.cases[0].structures, found.licence) == (None, None, "")


@pytest.mark.parametrize(
    ("image", "labelmap"),
    [
        ("patient 7.nrrd", "patient 7.seg.nrrd"),
        ("case_1_img.nii.gz", "case_1_lab.nii.gz"),
        ("img.nii.gz", "lab.nii.gz"),
        ("p07_FLAIR.nii.gz", "p07_lab.nii.gz"),
        ("b.v1.mha", "b.v1-label.mha"),
        ("x.nii.gz", "x_seg.nii.gz"),
        ("slice.png", "slice_mask.png"),
    ],
)
def test_images_and_labelmaps_side_by_side_are_pairs(tmp_path: Path, image: str, labelmap: str) -> None:
    touch(tmp_path / "d", image, labelmap, "notes.txt", "case_10_img.nii.gz")
    assert pairs_of(only(tmp_path)) == [(image, labelmap)]


def test_a_labelmap_that_may_belong_to_several_images_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "d", "p1_T1.nii.gz", "p1_T2.nii.gz", "p1_lab.nii.gz", "p2_T1.nii.gz", "p2_lab.nii.gz", "q_lab.mha")
    with caplog.at_level(logging.WARNING):
        assert pairs_of(only(tmp_path)) == [("p2_T1.nii.gz", "p2_lab.nii.gz")]
    assert "it may belong to p1_T1.nii.gz and p1_T2.nii.gz" in caplog.text
    assert "q_lab.mha is left out: there is no image of the same name" in caplog.text


def test_a_folder_may_be_one_data_set_or_hold_many(tmp_path: Path) -> None:
    touch(tmp_path / "b", "images/a.nrrd", "labels/a.nrrd")
    touch(tmp_path / "a", "x.nrrd", "x.seg.nrrd")
    touch(tmp_path / ".hidden", "x.nrrd", "x.seg.nrrd")
    touch(tmp_path / "papers", "paper.pdf")
    assert [data_set.name for data_set in data_sets_in(tmp_path)] == ["a", "b"]
    assert only(tmp_path / "a").name == "a"


def test_a_broken_data_set_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "good", "x.nrrd", "x.seg.nrrd")
    touch(tmp_path / "bad", "labelsTr/a.nii.gz", "dataset.json")
    with caplog.at_level(logging.WARNING):
        assert only(tmp_path).name == "good"
    assert "bad is left out" in caplog.text


def test_a_folder_without_data_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no data set; expected are .*imagesTr"):
        data_sets_in(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        data_sets_in(tmp_path / "nowhere")


@pytest.mark.parametrize("structures", [{"liver": 1}, {"1": ""}, ["liver"], {"0": "air"}])
def test_a_card_with_wrong_structures_is_refused(tmp_path: Path, structures: Any) -> None:
    touch(tmp_path / "d", "x.nrrd", "x.seg.nrrd")
    write_json(tmp_path / "d" / "card.json", {"structures": structures})
    with pytest.raises(InputError, match=r"card\.json"):
        data_sets_in(tmp_path / "d")


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_the_auxiliary_files_of_a_job_are_a_data_set() -> None:
    files = ExemplarFiles("a.nrrd", "a.seg.nrrd", structures={1: "liver"}, resample=True)
    found = data_set_of(AuxiliaryFiles("ours", (files,)))
    (case,) = found.cases
    assert (found.name, found.structures) == ("ours", None)
    assert (case.image, case.structures, case.resample) == (Path("a.nrrd"), {1: "liver"}, True)


def test_a_case_annotated_on_single_slices_is_no_auxiliary_case() -> None:
    files = AuxiliaryFiles("ours", (ExemplarFiles("a.nrrd", "b.nrrd", slices=(3,)),))
    with pytest.raises(InputError, match=r'"ours": a\.nrrd is annotated on single slices only'):
        data_set_of(files)


def test_what_nnunet_calls_ignore_is_unknown_and_no_background(tmp_path: Path) -> None:
    values = np.zeros((6, 20, 24), np.uint8)
    values[1:5, 4:14, 4:16] = 1
    values[3:] = 2
    affine = np.diag([-0.8, -0.9, 2.5, 1.0])
    folder = tmp_path / "set"
    save_volume(Volume(values.astype(np.int16) * 50, affine), folder / "imagesTr" / "a_0000.nrrd")
    save_volume(Volume(values, affine), folder / "labelsTr" / "a.nrrd")
    card = {"labels": {"background": 0, "liver": 1, "ignore": 2}, "channel_names": {"0": "CT"}}
    (folder / "dataset.json").write_text(json.dumps(card), encoding="utf-8")
    (found,) = data_sets_in(folder)
    for case in (found.cases[0], data_set_of(files_of(found)).cases[0]):  # also through a job
        exemplar = complete_exemplar(case)
        assert (exemplar.annotated_slices, exemplar.empty_slices) == ((1, 2), (0,))
        assert exemplar.structures == {1: "liver"}


@pytest.mark.parametrize("labels", [[], {"liver": "x"}, {"liver": {"a": 1}}, {"liver": None}, {"liver": [1, "x"]}, 5])
def test_labels_of_a_wrong_kind_are_told_in_a_sentence(labels: object, tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    with pytest.raises(InputError, match=r"dataset\.json"):
        data_sets_in(tmp_path)
