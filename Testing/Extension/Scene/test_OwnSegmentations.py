"""Over a volume only the segmentations of its patient are shown."""

from __future__ import annotations

from typing import Any

import pytest
import slicer

from FewShotSegSlicer.Scene import OwnSegmentations
from Testing.Extension.cases import addCase
from Testing.Extension.nodes import addSegmentation


class Two:
    """Two volumes, A and B, each with a segmentation."""

    def __init__(self) -> None:
        (self.a, self.ofA, *_), (self.b, self.ofB, *_) = addCase(0, name="A"), addCase(1, name="B")

    @property
    def shown(self) -> tuple[bool, bool]:
        return isShown(self.ofA), isShown(self.ofB)


def isShown(node: Any) -> bool:
    return bool(node.GetDisplayNode().GetVisibility())


@pytest.fixture
def two(scene: Any) -> Two:
    return Two()


def test_what_belongs_to_another_volume_is_hidden_and_comes_back_with_its_own(two: Two) -> None:
    assert OwnSegmentations.showOnly(two.a)
    assert two.shown == (True, False)
    assert not OwnSegmentations.showOnly(two.a)  # nothing was left to hide
    assert OwnSegmentations.showOnly(two.b)
    assert two.shown == (False, True)


def test_what_the_user_has_hidden_is_not_brought_back(two: Two) -> None:
    two.ofA.GetDisplayNode().SetVisibility(False)
    OwnSegmentations.showOnly(two.b)
    OwnSegmentations.showOnly(two.a)
    assert two.shown == (False, False)


def test_what_the_user_turns_on_again_is_shown_over_every_volume(two: Two) -> None:
    OwnSegmentations.showOnly(two.a)
    two.ofB.GetDisplayNode().SetVisibility(True)
    for volumeNode in (two.a, two.b, two.a):
        OwnSegmentations.showOnly(volumeNode)
        assert isShown(two.ofB)
    assert OwnSegmentations.belongsTo(two.ofB, two.a)
    assert not OwnSegmentations.belongsTo(two.ofA, two.b)


def test_what_is_chosen_is_shown_from_now_on(two: Two) -> None:
    OwnSegmentations.showOnly(two.b)
    assert not isShown(two.ofA)
    OwnSegmentations.want(two.ofA)
    assert isShown(two.ofA)
    OwnSegmentations.showOnly(two.b)
    assert isShown(two.ofA)


def test_to_choose_what_the_user_has_hidden_does_not_show_it(two: Two) -> None:
    two.ofA.GetDisplayNode().SetVisibility(False)
    OwnSegmentations.want(two.ofA)
    assert not isShown(two.ofA)


def test_a_segmentation_of_unknown_origin_is_left_alone(two: Two) -> None:
    stray = addSegmentation(None, "liver")
    for volumeNode in (two.a, two.b):
        OwnSegmentations.showOnly(volumeNode)
        assert isShown(stray)
        assert OwnSegmentations.belongsTo(stray, volumeNode)


def test_volumes_of_one_patient_share_what_was_made_on_either(two: Two) -> None:
    assert not OwnSegmentations.belongsTo(two.ofA, two.b)  # without a patient nothing is shared
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Doe")
    for volumeNode in (two.a, two.b):
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volumeNode), patient)
    assert OwnSegmentations.belongsTo(two.ofA, two.b)
    assert not OwnSegmentations.showOnly(two.b)
    assert two.shown == (True, True)


def test_the_newest_segmentation_made_on_a_volume_is_its_own(two: Two) -> None:
    assert OwnSegmentations.ofVolume(two.a) is two.ofA
    newer = addSegmentation(two.a, "liver")
    assert OwnSegmentations.ofVolume(two.a) is newer
    slicer.mrmlScene.RemoveNode(two.ofB)
    assert OwnSegmentations.ofVolume(two.b) is None
