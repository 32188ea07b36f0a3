"""Structures by name: distinct names, and the colour that each has wherever it is shown."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping


def distinct_names(structures: dict[int, str]) -> dict[int, str]:
    """Return {value: name} without a name twice, as Slicer allows: the later ones get their value behind the name."""
    result: dict[int, str] = {}
    for value in sorted(structures):
        name = structures[value]
        result[value] = name if name not in result.values() else f"{name} ({value})"
    return result


# Anatomical colours as radiologists know them from Slicer's general anatomy table, as 8-bit RGB.
_ANATOMY_RGB = {
    "liver": (221, 130, 101),
    "spleen": (157, 108, 162),
    "kidney": (185, 102, 83),
    "right kidney": (185, 102, 83),
    "left kidney": (200, 130, 90),
    "pancreas": (249, 180, 111),
    "stomach": (216, 132, 105),
    "gallbladder": (139, 150, 98),
    "aorta": (224, 97, 76),
    "vein": (0, 151, 206),
    "vena cava": (0, 151, 206),
    "artery": (216, 101, 79),
    "vessel": (206, 110, 84),
    "heart": (206, 110, 84),
    "left ventricle": (152, 55, 13),
    "right ventricle": (181, 85, 57),
    "myocardium": (192, 104, 88),
    "lung": (197, 165, 145),
    "bladder": (222, 154, 132),
    "prostate": (230, 158, 140),
    "esophagus": (211, 171, 143),
    "bone": (241, 214, 145),
    "muscle": (192, 104, 88),
    "fat": (230, 220, 70),
    "skin": (177, 122, 101),
    "body": (177, 122, 101),
    "brain": (250, 250, 225),
    "tumor": (144, 238, 144),
    "lesion": (145, 60, 66),
    "edema": (140, 224, 228),
}


def structure_colors(structures: Mapping[int, str]) -> dict[int, tuple[float, float, float]]:
    """Return {value: (r, g, b) in 0..1}, different for every structure; the same names give the same colours."""
    result: dict[int, tuple[float, float, float]] = {}
    for value in sorted(structures):
        known = _ANATOMY_RGB.get(_plain_name(structures[value]))
        color = (known[0] / 255, known[1] / 255, known[2] / 255) if known else _generated_color(value)
        turn = 1
        while color in result.values():
            color, turn = _generated_color(value + turn), turn + 1
        result[value] = color
    return result


def _plain_name(name: str) -> str:
    plain = re.sub(r"[^a-z]+", " ", name.lower()).strip()
    return {"tumour": "tumor", "oesophagus": "esophagus", "gall bladder": "gallbladder"}.get(plain, plain)


def _generated_color(number: int) -> tuple[float, float, float]:
    """Steps of the golden ratio around the colour circle: neighbouring numbers look different."""
    red, green, blue = colorsys.hsv_to_rgb((number * 0.618033988749895) % 1.0, 0.65, 0.9)
    return round(red, 4), round(green, 4), round(blue, 4)
