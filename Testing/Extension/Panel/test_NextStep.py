"""The line that says what to do next."""

from __future__ import annotations

from Testing.Extension.panels import Case


def test_an_empty_scene_asks_for_a_volume(case: Case) -> None:
    assert case.ui.clickStatusLabel.text.startswith("Load a volume")
    assert not case.ui.addSliceButton.enabled
