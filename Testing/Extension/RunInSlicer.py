"""Runs the tests of this folder inside a real Slicer, which ends with pytest's exit code:

    Slicer --testing --no-splash --additional-module-paths FewShotSeg --python-script Testing/Extension/RunInSlicer.py

Arguments for pytest follow the script, for example `-k prompts -x`. Slicer's Python needs what the extension needs, and
pytest: `PythonSlicer -m pip install pytest`. With --testing no message box opens; the views need the main window.
"Reload and Test" in Slicer, and ctest, run the same tests through FewShotSegSlicer/SelfTest.py.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import slicer.util

FOLDER = Path(__file__).resolve().parent


def run(arguments: list[str]) -> int:
    """The exit code of pytest for the tests of this folder."""
    if importlib.util.find_spec("pytest") is None:
        sys.stderr.write("pytest is missing in Slicer's Python: PythonSlicer -m pip install pytest\n")
        return 1
    import pytest

    return int(pytest.main([str(FOLDER), f"--rootdir={FOLDER.parents[1]}", "-p", "no:cacheprovider", *arguments]))


if __name__ == "__main__":
    slicer.util.exit(run(sys.argv[1:]))
