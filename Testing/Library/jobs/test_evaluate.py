"""Evaluating from files to files: scores, summary and picture."""

from __future__ import annotations

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.jobs.evaluate import write_plot
from Testing.Library.evaluation.cases import some_rows


def test_the_plot_is_a_png(tmp_path):
    write_plot(some_rows(), tmp_path / "metrics.png")
    assert (tmp_path / "metrics.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(InputError, match="no scores"):
        write_plot([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
