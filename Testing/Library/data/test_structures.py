"""Names and colours of structures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from FewShotSegLib.data.structures import distinct_names, structure_colors

ORGANS = ["spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "pancreas"]


def lab(color: tuple[float, float, float]) -> np.ndarray:
    """CIE L*a*b* as in its definition (CIE 15:2004), written with matrices."""
    linear = np.where(np.array(color) <= 0.04045, np.array(color) / 12.92, ((np.array(color) + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    t = xyz / [0.9505, 1.0, 1.089]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_a_structure_alone_has_the_colour_of_the_anatomy_table() -> None:
    assert structure_colors({1: "Liver"})[1] == pytest.approx(to_rgb("#dd8265"))  # Slicer's GenericAnatomyColors
    assert structure_colors({4: "oesophagus"})[4] == structure_colors({1: "esophagus"})[1]


@pytest.mark.parametrize("names", [ORGANS, ["liver", "right kidney"], ["heart", "left ventricle", "myocardium"]])
def test_colours_of_organs_can_be_told_apart(names: list[str]) -> None:
    colors = structure_colors(dict(enumerate(names, start=1))).values()
    assert min(np.linalg.norm(lab(a) - lab(b)) for a, b in itertools.combinations(colors, 2)) >= 25


def test_what_comes_later_does_not_change_the_colours_before_it() -> None:
    few, many = (structure_colors(dict(enumerate(ORGANS[:count]))) for count in (3, 9))
    assert {value: many[value] for value in few} == few


def test_many_structures_have_different_colours() -> None:
    colors = structure_colors({value: f"structure {value}" for value in range(1, 40)})
    assert len(set(colors.values())) == len(colors)
    assert all(0 <= share <= 1 for color in colors.values() for share in color)


def test_names_that_occur_twice_get_their_value() -> None:
    assert distinct_names({1: "lesion", 2: "liver", 5: "lesion"}) == {1: "lesion", 2: "liver", 5: "lesion (5)"}


def test_structures_have_different_and_familiar_colours():
    names = ["liver", "Left Kidney", "right_kidney", "kidney", "spleen", "thing", "other", "Tumour", "skin", "body"]
    colors = structure_colors(dict(enumerate(names, 1)))
    assert len(set(colors.values())) == len(names)
    assert colors[1] == pytest.approx((221 / 255, 130 / 255, 101 / 255))
    assert len(set(structure_colors({n: f"part {n}" for n in range(1, 200)}).values())) == 199
