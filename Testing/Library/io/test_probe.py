"""A file that ends the process that reads it costs that file only."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from FewShotSegLib.errors import InputError
from FewShotSegLib.io import probe
from FewShotSegLib.io.probe import check_reading


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are a POSIX thing")
def test_a_crash_of_the_reader_is_a_sentence(picture: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png cannot be read: it ends the program"):
        check_reading(picture, code="import os; os.kill(os.getpid(), 11)")


def test_a_good_picture_and_one_that_is_refused_are_left_to_the_reading(picture: Path) -> None:
    check_reading(picture)
    picture.write_bytes(b"no picture")
    check_reading(picture)


def test_formats_whose_headers_are_checked_need_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nrrd").write_bytes(b"NRRD")
    monkeypatch.setattr(probe.subprocess, "run", None)
    check_reading(tmp_path / "a.nrrd")
