"""Choices that are saved with the scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from FewShotSegSlicer.Panel.Choices import Choices
from Testing.Extension.nodes import addVolume


def theNode() -> Any:
    """The parameter node, made where there is none, as Slicer does for a module."""
    found = [n for n in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode") if n.GetModuleName() == "test"]
    node = found[0] if found else slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "parameters")
    node.SetModuleName("test")
    return node


@pytest.fixture
def choices(scene: Any) -> Choices:
    return Choices(theNode)


def test_what_was_never_kept_is_the_default(choices: Choices) -> None:
    assert choices.node("Volume") is None
    assert choices.value("Model") is None
    assert choices.value("Recipes", {}) == {}


def test_what_was_kept_is_there_after_the_scene_was_saved_and_loaded(choices: Choices, tmp_path: Path) -> None:
    volumeNode = addVolume(np.zeros((3, 4, 5), np.int16), np.eye(4), "CT")
    recipes = {"lora": {"steps": 7, "name": 'with "quotes" & ümlauts'}, "asap": {"scale": [0.5, 2.0]}}
    choices.keep({"Volume": volumeNode, "Segmentation": None}, {"Recipes": recipes, "Model": (None, "tiny")})
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert choices.node("Volume") is slicer.util.getNode("CT")
    assert choices.node("Segmentation") is None
    assert choices.value("Recipes") == recipes
    assert choices.value("Model") == [None, "tiny"]


def test_a_role_that_is_kept_empty_lets_its_node_go(choices: Choices) -> None:
    choices.keep({"Volume": addVolume(np.zeros((3, 4, 5)), np.eye(4))}, {})
    choices.keep({"Volume": None}, {})
    assert choices.node("Volume") is None
