"""Names of structures that have a side."""

from __future__ import annotations

import pytest

from FewShotSegLib.imaging.laterality import is_lateralised


@pytest.mark.parametrize(
    "name",
    [
        "left kidney",
        "Right Kidney",
        "kidney_l",
        "L kidney",
        "KidneyRight",
        "kidneyR",
        "lung (r)",
        "Niere links",
        "rechte Niere",
        "rein gauche",
        "riñón izquierdo",
        "LV",
        "RV cavity",
        "left_atrium",
        "adrenal-rt",
        "RIGHT KIDNEY",
        "leftkidney",
    ],
)
def test_names_with_a_side_are_recognized(name):
    assert is_lateralised(name)


@pytest.mark.parametrize(
    "name", ["liver", "spleen", "cleft", "bright spot", "tumour", "vertebra L2", "myocardium", "1"]
)
def test_names_without_a_side_are_not_mistaken_for_one(name):
    assert not is_lateralised(name)
