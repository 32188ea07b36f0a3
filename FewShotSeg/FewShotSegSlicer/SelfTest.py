"""What the module's own test does in a running Slicer: the tests of Testing/Extension, or without them a short look."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

import slicer

from .Scene import SamplePatients

_FOLDER = "FEWSHOTSEG_TESTS"  # set by ctest, which loads the module from a build tree without the tests
_IN_CHECKOUT = Path(__file__).resolve().parents[2] / "Testing" / "Extension"


def run() -> None:
    """Run what can be run here; raises AssertionError when something fails."""
    tests = Path(os.environ.get(_FOLDER) or _IN_CHECKOUT)
    if not tests.is_dir():  # installed, without the tests
        look()
    elif importlib.util.find_spec("pytest") is None:
        logging.warning('Only a short test is run: Testing/Extension needs slicer.util.pip_install("pytest").')
        look()
    else:
        _runTests(tests)


def look() -> None:
    """Load the module and a sample patient. Needs neither torch nor a worker."""
    logic = slicer.util.getModuleLogic("FewShotSeg")
    assert logic is not None
    volumeNode, segmentationNode = SamplePatients.load(1)
    segmentation = segmentationNode.GetSegmentation()
    assert volumeNode.GetImageData() is not None
    assert segmentation.GetNumberOfSegments() == 5
    names = [segmentation.GetNthSegment(number).GetName() for number in range(5)]
    assert "liver" in names, names


def _runTests(tests: Path) -> None:
    import pytest

    failed = pytest.main([str(tests), f"--rootdir={tests.parents[1]}", "-q", "-p", "no:cacheprovider"])
    assert not failed, f"Testing/Extension ended with {failed!r}; the Python console shows which tests failed."
