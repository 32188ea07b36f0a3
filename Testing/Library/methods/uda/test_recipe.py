"""Options of unsupervised adaptation."""

from __future__ import annotations

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.methods.uda.recipe import Recipe, smaller_preset


def test_filtering_needs_two_rounds() -> None:
    with pytest.raises(InputError, match="rounds=1"):
        Recipe(rounds=1)


@pytest.mark.parametrize(("name", "smaller"), [("cpu", None), ("gpu", "cpu"), ("paper", "gpu")])
def test_presets_step_down(name: str, smaller: str | None) -> None:
    assert smaller_preset(name) == smaller
