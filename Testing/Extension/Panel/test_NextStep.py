"""The line that says what to do next."""

from __future__ import annotations

import numpy as np
import pytest

from FewShotSegSlicer.Panel.NextStep import nextStep
from Testing.Extension.nodes import addTransform, addWarp, rotation
from Testing.Extension.panels import Case


def said(case: Case) -> str:
    return case.ui.clickStatusLabel.text


def test_an_empty_scene_asks_for_a_volume(case: Case) -> None:
    assert case.ui.clickStatusLabel.text.startswith("Load a volume")
    assert not case.ui.addSliceButton.enabled


def test_one_step_follows_the_other_until_a_mask_is_accepted(case: Case) -> None:
    volumeNode, segmentationNode = case.load()
    segmentationNode.GetSegmentation().RemoveAllSegments()
    case.panel.update()
    assert said(case) == "Name a structure and press Add."
    case.ui.structureNameEdit.setText("liver")
    case.press(case.ui.addStructureButton)
    assert said(case) == "Press Inside, then click on liver in a slice view."
    case.press(case.ui.positiveButton)
    assert said(case) == "Click on liver in a slice view."
    case.press(case.ui.negativeButton)
    assert said(case) == "Click where there is no liver in a slice view."
    case.press(case.ui.boxButton)
    assert said(case) == "Drag a box around liver in a slice view."
    case.click(volumeNode)
    assert said(case) == "Encoding the slice; the first mask takes longer than later ones."
    case.answerClick(np.eye(64, dtype=bool))
    assert said(case).startswith("Mask after ")
    assert said(case).endswith("Accept it, or correct it with more clicks.")
    case.press(case.ui.propagateBothButton)
    assert said(case).startswith("Propagating liver through the slices.")


def test_an_adapter_that_has_learned_the_structure_is_recommended_while_a_base_model_is_chosen(
    case: Case, adapter: str
) -> None:
    case.load()
    case.panel.segment.model.choose((None, "tiny"))
    case.panel.update()
    assert said(case) == "The adapter organs has learned disc: choose it as the model."
    case.panel.segment.model.choose((adapter, None))
    case.panel.update()
    assert said(case) == "Press Inside, then click on disc in a slice view."


@pytest.mark.parametrize(("degrees", "isTold"), [(1.0, False), (12.0, True)])
def test_a_view_that_cuts_the_volume_askew_is_told_with_its_angle(case: Case, degrees: float, isTold: bool) -> None:
    volumeNode, _segmentationNode = case.load()
    case.press(case.ui.positiveButton)
    volumeNode.SetAndObserveTransformNodeID(addTransform(rotation((1, 0, 0), degrees)).GetID())
    case.panel.update()
    assert (f"rotated by {degrees:.0f}° relative to the slices" in said(case)) == isTold


def test_a_volume_put_under_a_warp_is_explained_whatever_the_tool(case: Case) -> None:
    volumeNode, _segmentationNode = case.load()
    volumeNode.SetAndObserveTransformNodeID(addWarp().GetID())
    for button in (case.ui.positiveButton, case.ui.negativeButton, case.ui.boxButton):
        case.press(button)
        assert "under the non-linear transform" in said(case)


def test_missing_packages_come_before_everything_that_needs_them(case: Case) -> None:
    case.load()
    case.selection.missing = ("torch>=2.4",)
    sentence = nextStep(case.selection, case.logic.live, "positive", None, "")
    assert sentence == "Python packages are missing; see Settings and installation."
