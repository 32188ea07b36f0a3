"""The page of the demo: what it says, and that its numbers and pictures are those of the patients."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.data.volume import Labelmap, Volume
from FewShotSegLib.demo import page
from FewShotSegLib.demo.page import Patient, mean_dice
from FewShotSegLib.evaluation.scoring import evaluate_case


def test_the_report_stands_alone(a_demo: tuple[Path, list[str]]) -> None:
    text = (a_demo[0] / "report.html").read_text(encoding="utf-8")
    assert [link for link in re.findall(r'(?:src|href|srcset)="([^"]{5})', text) if link != "data:"] == []
    assert text.count("<img") >= 3 + 2 * 9 + 2
    for expected in ("patient-4", "right kidney", "synthetic", "adapted, no clicks"):
        assert expected in text


def labelmap(labels: np.ndarray, names: dict[int, str]) -> Labelmap:
    return Labelmap(Volume(labels.astype(np.uint8), np.diag([-1.0, -1.0, 4.0, 1.0])), names)


def test_the_mean_dice_is_over_cases_and_structures_of_one_scope() -> None:
    truth, found = np.zeros((4, 8, 8)), np.zeros((4, 8, 8))
    truth[1:3, 2:6, 2:6], truth[1:3, :2, :2] = 1, 2
    found[1:3, 2:6, 4:8] = 1  # half of it, and as much beside it
    found[0, 2:6, 2:6] = 1  # on a slice that does not hold it
    found[1:3, :2, :2] = 2
    names = {1: "liver", 2: "spleen"}
    rows = [row for case in "ab" for row in evaluate_case(labelmap(found, names), labelmap(truth, names), case=case)]
    assert mean_dice(rows, "liver") == pytest.approx(0.5)
    assert mean_dice(rows, "liver", "all_slices") == pytest.approx(2 * 16 / (32 + 48))
    assert mean_dice(rows) == pytest.approx((0.5 + 1) / 2)


def test_labels_numbered_as_the_prompts_came_are_shown_as_in_the_truth() -> None:
    truth = labelmap(np.zeros((1, 2, 3)), {1: "liver", 2: "spleen", 5: "aorta"})
    found = labelmap(np.array([[[0, 1, 2], [3, 3, 0]]]), {1: "aorta", 2: "liver", 3: "spleen"})
    assert page._as_in_truth(found, truth).tolist() == [[[0, 5, 1], [2, 2, 0]]]


def test_pictures_show_the_patient_with_a_small_margin() -> None:
    array = np.full((3, 40, 60), -1000, np.int16)
    array[1, 10:20, 30:50] = 40
    rows, columns = page._body(Volume(array, np.eye(4)))
    assert (rows, columns) == (slice(7, 23), slice(27, 53))
    array[2, 0, 0] = 40
    assert page._body(Volume(array, np.eye(4))) == (slice(0, 23), slice(0, 53))


def test_slices_are_shown_from_low_to_high_within_the_organs() -> None:
    labels = np.zeros((50, 4, 4))
    labels[10:31, 1, 1], labels[:, 2, 2] = 1, 5  # the aorta runs through all of them
    truth = labelmap(labels, {1: "liver", 5: "aorta"})
    patient = Patient("p", truth.volume, truth, Path("p.nrrd"), Path("p.seg.nrrd"), ())
    assert page._shown(patient) == [16, 21, 26]
