"""Node selectors: a node that goes leaves nothing chosen, and a renamed one is no other."""

from __future__ import annotations

from typing import Any

import pytest
import slicer

from FewShotSegSlicer.Panel.NodeChooser import NodeChooser


class Bench:
    """A selector among three volumes, and what its chooser told."""

    def __init__(self, scene: Any) -> None:
        self.nodes = [scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name) for name in "ABC"]
        self.selector = slicer.qMRMLNodeComboBox()
        self.selector.nodeTypes, self.selector.noneEnabled = ["vtkMRMLScalarVolumeNode"], True
        self.selector.setMRMLScene(scene)
        self.heard: list[Any] = []
        self.byHand: list[Any] = []
        self.chooser = NodeChooser(self.selector, self.heard.append, self.byHand.append)


@pytest.fixture
def bench(scene: Any) -> Bench:
    return Bench(scene)


@pytest.mark.parametrize("number", range(3))
def test_after_the_chosen_node_was_removed_nothing_is_chosen(bench: Bench, scene: Any, number: int) -> None:
    bench.selector.setCurrentNode(bench.nodes[number])
    scene.RemoveNode(bench.nodes[number])
    assert bench.selector.currentNode() is None
    assert bench.heard == [bench.nodes[number], None]


def test_removing_another_node_changes_and_tells_nothing(bench: Bench, scene: Any) -> None:
    bench.selector.setCurrentNode(bench.nodes[1])
    scene.RemoveNode(bench.nodes[0])
    assert bench.selector.currentNode() is bench.nodes[1]
    assert bench.heard == [bench.nodes[1]]


def test_a_node_that_is_renamed_is_told_once(bench: Bench) -> None:
    bench.selector.setCurrentNode(bench.nodes[1])
    bench.nodes[1].SetName("renamed")
    assert bench.heard == [bench.nodes[1]]


def test_only_what_the_user_chooses_counts_as_chosen_by_hand(bench: Bench) -> None:
    bench.selector.setCurrentNode(bench.nodes[1])
    assert bench.byHand == []
    bench.selector.nodeActivated(bench.nodes[1])
    assert bench.byHand == [bench.nodes[1]]
