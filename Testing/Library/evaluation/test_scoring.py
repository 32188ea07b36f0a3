"""Scores of cases and folders: rows, scopes, and how structures are matched."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.errors import InputError
from FewShotSegLib.evaluation.metrics import compare
from FewShotSegLib.evaluation.scoring import evaluate_case, evaluate_folder, summarize
from FewShotSegLib.io.volumes import save_labelmap
from Testing.Library.evaluation.cases import AFFINE, NAMES, labelmap, labels


def of(rows, structure: str, scope: str):
    (row,) = [row for row in rows if row.structure == structure and row.scope == scope]
    return row


def test_all_slices_counts_false_positives_that_oracle_slices_do_not_see():
    rows = evaluate_case(labelmap(labels(extra_slice=True)), labelmap(labels()), case="a")
    everywhere, oracle = of(rows, "liver", "all_slices"), of(rows, "liver", "oracle_slices")
    assert (oracle.dsc, oracle.hd95_mm, oracle.slices) == (1.0, 0.0, 4)
    assert everywhere.dsc == pytest.approx(2 * 360 / (360 + 376))
    assert everywhere.asd_mm > 0
    assert everywhere.slices == 8


def test_scores_are_those_of_compare_with_the_spacing_of_the_reference():
    pred, ref = labels(shift=2), labels()
    row = of(evaluate_case(labelmap(pred), labelmap(ref), tolerance_mm=1.0), "liver", "all_slices")
    expected = compare(pred == 1, ref == 1, (1.0, 1.5, 4.0), 1.0)
    assert {name: getattr(row, name) for name in expected.to_dict()} == expected.to_dict()


def test_oracle_slices_follow_the_axis():
    rows = [
        of(evaluate_case(labelmap(labels()), labelmap(labels()), axis=a), "liver", "oracle_slices") for a in range(3)
    ]
    assert [row.slices for row in rows] == [4, 10, 9]


def test_a_structure_absent_from_the_reference_has_no_oracle_row_and_a_defined_score():
    ref = np.where(labels() == 2, 0, labels()).astype(np.uint8)
    predicted = evaluate_case(labelmap(labels()), labelmap(ref))
    assert of(predicted, "spleen", "all_slices").dsc == 0.0
    assert not [row for row in predicted if row.structure == "spleen" and row.scope == "oracle_slices"]
    assert of(evaluate_case(labelmap(ref), labelmap(ref)), "spleen", "all_slices").dsc == 1.0


def test_a_structure_that_was_not_predicted_scores_zero_in_both_scopes():
    pred = np.where(labels() == 2, 0, labels()).astype(np.uint8)
    rows = evaluate_case(labelmap(pred), labelmap(labels()))
    assert [row.dsc for row in rows if row.structure == "spleen"] == [0.0, 0.0]


def test_structures_are_matched_by_name_before_label():
    swapped = np.choose(labels(), [0, 2, 1]).astype(np.uint8)
    rows = evaluate_case(labelmap(swapped, {1: "Spleen", 2: "LIVER"}), labelmap(labels()))
    assert [row.dsc for row in rows] == [1.0] * 4


def test_labels_without_names_are_matched_by_label():
    rows = evaluate_case(Volume(labels(), AFFINE), Volume(labels(), AFFINE), {2: "spleen"})
    assert [(row.structure, row.dsc) for row in rows] == [("spleen", 1.0)] * 2


def test_a_label_that_the_prediction_calls_otherwise_is_not_taken_for_the_structure():
    pred = labelmap(labels(), {1: "liver", 2: "stomach"})
    assert of(evaluate_case(pred, labelmap(labels())), "spleen", "all_slices").dsc == 0.0


def test_predictions_with_none_of_the_names_are_refused():
    with pytest.raises(InputError, match=r'"Leber".*none of "liver"'):
        evaluate_case(labelmap(labels(), {1: "Leber", 2: "Milz"}), labelmap(labels()))


def test_flipped_and_cropped_files_of_the_same_grid_are_compared_exactly():
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 23
    flipped = labelmap(np.ascontiguousarray(labels()[:, :, ::-1]), affine=AFFINE @ flip)
    assert {row.dsc for row in evaluate_case(flipped, labelmap(labels()))} == {1.0}
    move = np.eye(4)
    move[:3, 3] = 2, 3, 1
    cropped = labelmap(labels()[1:7, 3:15, 2:22], affine=AFFINE @ move)
    assert {row.dsc for row in evaluate_case(cropped, labelmap(labels()))} == {1.0}
    assert {row.dsc for row in evaluate_case(labelmap(labels()), cropped)} == {1.0}


@pytest.mark.parametrize("change", ["spacing", "half a voxel", "rotation"])
def test_another_geometry_is_refused_with_both_descriptions(change):
    affine = AFFINE.copy()
    if change == "spacing":
        affine[2, 2] = 5.0
    elif change == "half a voxel":
        affine[0, 3] = 0.5
    else:
        affine[:2, :2] = np.array([[0.8, -0.6], [0.6, 0.8]]) @ affine[:2, :2]
    with pytest.raises(InputError, match=r"patient 7: .*do not cover the same voxels.*spacings"):
        evaluate_case(labelmap(labels(), affine=affine), labelmap(labels()), case="patient 7")


def test_a_wrong_axis_and_an_empty_reference_are_refused():
    with pytest.raises(InputError, match="slice axis"):
        evaluate_case(labelmap(labels()), labelmap(labels()), axis=3)
    with pytest.raises(InputError, match="no structure"):
        evaluate_case(labelmap(labels()), labelmap(labels(), {}))


@pytest.fixture
def folders(tmp_path):
    """Predictions of two cases; references of three, beside their images as data sets keep them."""
    pred_dir, ref_dir = tmp_path / "pred é", tmp_path / "ref"
    for case in ("case_00", "case_01", "case_02"):
        save_labelmap(labelmap(labels()), ref_dir / f"{case}_lab.nii.gz")
        save_labelmap(labelmap(labels()), ref_dir / f"{case}_img.nii.gz")
    save_labelmap(labelmap(labels(shift=1)), pred_dir / "case_00_img.seg.nrrd")
    save_labelmap(labelmap(labels()), pred_dir / "case_01.seg.nrrd")
    save_labelmap(labelmap(labels()), pred_dir / "case_01_probability.nii.gz")
    return pred_dir, ref_dir


def test_a_folder_is_paired_by_case_and_unpredicted_references_are_reported(folders):
    told = []
    rows = evaluate_folder(*folders, NAMES, report=told.append)
    assert [(row.case, row.structure, row.scope) for row in rows] == [
        (case, structure, scope)
        for case in ("case_00", "case_01")
        for structure in ("liver", "spleen")
        for scope in ("all_slices", "oracle_slices")
    ]
    assert "case_02" in told[0].message
    assert [(p.kind, p.step, p.total) for p in told] == [("note", 0, 0), ("step", 1, 2), ("step", 2, 2)]


def test_without_structures_every_case_is_scored_for_all_that_occur(folders):
    only_liver = np.where(labels() == 2, 0, labels()).astype(np.uint8)
    save_labelmap(labelmap(only_liver), folders[1] / "case_01_lab.nii.gz")
    rows = evaluate_folder(*folders)
    assert of([r for r in rows if r.case == "case_01"], "2", "all_slices").dsc == 0.0  # a false positive


def test_a_prediction_without_reference_is_named(folders):
    save_labelmap(labelmap(labels()), folders[0] / "stranger.nrrd")
    with pytest.raises(InputError, match=r"No reference in .*stranger\.nrrd"):
        evaluate_folder(*folders, NAMES)


def test_two_predictions_of_one_case_are_ambiguous(folders):
    save_labelmap(labelmap(labels()), folders[0] / "case_00-seg.nrrd")
    with pytest.raises(InputError, match=r'2 predictions belong to the case "case_00"'):
        evaluate_folder(*folders, NAMES)


def test_missing_and_empty_folders_are_named(folders, tmp_path):
    with pytest.raises(InputError, match="not there"):
        evaluate_folder(tmp_path / "nowhere", folders[1])
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match="holds no references"):
        evaluate_folder(folders[0], tmp_path / "void")


def test_the_deviation_of_a_single_case_is_not_a_number_but_null(tmp_path):
    rows = evaluate_case(labelmap(labels()), labelmap(labels()))
    assert summarize(rows)[0]["dsc"] == {"mean": 1.0, "sd": None, "median": 1.0}


def test_cases_where_only_one_mask_is_empty_are_counted():
    empty = labelmap(np.zeros_like(labels()))
    rows = [
        row
        for predicted, reference in ((empty, labelmap(labels())), (labelmap(labels()), empty), (empty, empty))
        for row in evaluate_case(predicted, reference, NAMES)
    ]
    assert {group["n_one_empty"] for group in summarize(rows) if group["scope"] == "all_slices"} == {2}


def test_a_structure_under_another_one_is_scored_whole() -> None:
    liver = np.zeros((6, 20, 24), bool)
    liver[1:5, 4:14, 4:16] = True
    tumour = np.zeros_like(liver)
    tumour[2:4, 7:11, 8:12] = True
    grid = Volume(np.zeros(liver.shape, np.uint8), np.diag([-0.8, -0.9, 2.5, 1.0]))
    merged = grid.like(np.where(tumour, 2, liver).astype(np.uint8))
    reference = Labelmap(merged, {1: "liver", 2: "tumour"}, {1: tumour})
    perfect = Labelmap(grid.like(liver.astype(np.uint8)), {1: "liver"})
    for pred, ref in ((perfect, reference), (reference, perfect)):
        rows = evaluate_case(pred, ref, {1: "liver"})
        assert [row.dsc for row in rows] == [1.0, 1.0]


def test_a_segmentation_that_slicer_saved_without_a_voxel_is_empty_wherever_it_lies() -> None:
    array = np.zeros((4, 5, 6), np.uint8)
    array[1:3, 1:3, 1:3] = 1
    full = Labelmap(Volume(array, np.diag([-1.0, -1.0, 2.0, 1.0])), {1: "liver"})
    empty = Labelmap(Volume(np.zeros((1, 1, 1), np.uint8), np.eye(4)), {1: "liver"})
    assert [row.dsc for row in evaluate_case(full, empty)] == [0.0]
    assert {row.dsc for row in evaluate_case(empty, full)} == {0.0}
