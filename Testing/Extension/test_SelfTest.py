"""What Slicer's Test button runs."""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from FewShotSegSlicer import SelfTest
from FewShotSegSlicer.Scene import SamplePatients

FOLDER = Path(__file__).resolve().parent


def test_the_short_self_test_passes(panel: Any) -> None:
    SelfTest.look()


def test_the_short_self_test_fails_where_the_sample_patient_is_another_one(
    panel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SamplePatients.load

    def withoutLiver(number: int) -> tuple[Any, Any]:
        volumeNode, segmentationNode = load(number)
        segmentation = segmentationNode.GetSegmentation()
        segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName("liver")).SetName("kidney")
        return volumeNode, segmentationNode

    monkeypatch.setattr(SamplePatients, "load", withoutLiver)
    with pytest.raises(AssertionError, match="kidney"):
        SelfTest.look()


class FakePytest(types.ModuleType):
    """Remembers what it was to run, and answers with an exit code."""

    def __init__(self, code: int) -> None:
        super().__init__("pytest")
        self.__spec__ = ModuleSpec("pytest", None)
        self.code, self.asked = code, list[list[str]]()

    def main(self, arguments: list[str]) -> int:
        self.asked.append(arguments)
        return self.code


def test_in_a_checkout_the_tests_of_this_folder_and_those_below_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakePytest(0)
    monkeypatch.setitem(sys.modules, "pytest", fake)
    SelfTest.run()
    ((folder, rootdir, *_options),) = fake.asked
    assert Path(folder) == FOLDER
    assert Path(rootdir.removeprefix("--rootdir=")) == FOLDER.parents[1]
    assert len(list(Path(folder).glob("*/test_*.py"))) > 40


def test_from_a_build_tree_the_tests_are_run_that_ctest_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakePytest(0)
    monkeypatch.setitem(sys.modules, "pytest", fake)
    monkeypatch.setattr(SelfTest, "_IN_CHECKOUT", tmp_path / "lib" / "Testing" / "Extension")
    monkeypatch.setenv("FEWSHOTSEG_TESTS", str(FOLDER))
    SelfTest.run()
    assert [Path(arguments[0]) for arguments in fake.asked] == [FOLDER]


def test_a_failed_test_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", FakePytest(1))
    with pytest.raises(AssertionError, match="Testing/Extension ended with 1"):
        SelfTest.run()


@pytest.mark.parametrize("lacks", ["tests", "pytest"])
def test_without_tests_or_without_pytest_there_is_the_short_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacks: str
) -> None:
    looked, fake = list[bool](), FakePytest(1)
    monkeypatch.setattr(SelfTest, "look", lambda: looked.append(True))
    monkeypatch.setitem(sys.modules, "pytest", fake)
    if lacks == "tests":
        monkeypatch.setattr(SelfTest, "_IN_CHECKOUT", tmp_path / "installed")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    SelfTest.run()
    assert (looked, fake.asked) == ([True], [])
