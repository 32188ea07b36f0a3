"""The report that every caller relies on."""

from __future__ import annotations

from FewShotSegLib.progress import Progress, silent


def test_progress_of_unknown_length_has_no_fraction():
    assert Progress(3, 0).fraction is None
    assert Progress(3, 4).fraction == 0.75
    assert Progress(9, 4).fraction == 1.0
    assert Progress(1, 2).metrics == {}
    assert silent(Progress(1, 2)) is None
