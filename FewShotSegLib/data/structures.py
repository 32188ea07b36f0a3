"""Structure names and colours: distinct names, and one colour per structure wherever it is shown."""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Mapping, Sequence

Color = tuple[float, float, float]


def distinct_names(structures: dict[int, str]) -> dict[int, str]:
    """Return {value: name} without duplicate names, which Slicer allows: later ones get their value as a suffix."""
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


# For structures without a colour of their own, or with an indistinguishable one: distinct on grey, also for red-green
# colour-blind readers.
_PALETTE_RGB = (
    (235, 125, 71),
    (56, 168, 219),
    (41, 189, 153),
    (196, 128, 219),
    (245, 201, 66),
    (237, 107, 148),
    (153, 204, 89),
    (107, 133, 240),
)
_DISTINCT = 40.0  # colour difference (CIE 1976) above which two colours are distinguishable as overlays on grey


def structure_colors(structures: Mapping[int, str], taken: Sequence[Color] = ()) -> dict[int, Color]:
    """Return {value: (r, g, b) in 0..1}: the colour of each structure, in files, panel, images and reports alike.

    Structures have the colour of Slicer's anatomy table if it is distinguishable from the previous ones; all others get
    one that is. The same structures always get the same colours. `taken` are colours already in use.
    """
    chosen: dict[int, Color] = {}
    for value in sorted(structures):
        known = _ANATOMY_RGB.get(_plain_name(structures[value]))
        candidates = [_as_shares(rgb) for rgb in ((known,) if known else ()) + _PALETTE_RGB]
        candidates += [_generated_color(value + turn) for turn in range(len(_PALETTE_RGB))]
        chosen[value] = _first_distinct(candidates, [*taken, *chosen.values()])
    return chosen


def _first_distinct(candidates: Sequence[Color], taken: Sequence[Color]) -> Color:
    """The first candidate that differs enough from all colours in use, else the one that differs most."""
    apart = [min((_difference(one, other) for other in taken), default=math.inf) for one in candidates]
    distinct = [one for one, gap in zip(candidates, apart, strict=True) if gap >= _DISTINCT]
    return distinct[0] if distinct else candidates[apart.index(max(apart))]


def _difference(first: Color, second: Color) -> float:
    """Perceptual distance of two colours (CIE 1976 L*a*b*)."""
    return math.dist(_lab(first), _lab(second))


def _lab(color: Color) -> tuple[float, float, float]:
    """sRGB in 0..1 -> CIE L*a*b* under D65."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def _as_shares(rgb: tuple[int, int, int]) -> Color:
    return rgb[0] / 255, rgb[1] / 255, rgb[2] / 255


def _plain_name(name: str) -> str:
    plain = re.sub(r"[^a-z]+", " ", name.lower()).strip()
    return {"tumour": "tumor", "oesophagus": "esophagus", "gall bladder": "gallbladder"}.get(plain, plain)


def _generated_color(number: int) -> Color:
    """Golden-ratio steps around the colour wheel: consecutive numbers look different."""
    red, green, blue = colorsys.hsv_to_rgb((number * 0.618033988749895) % 1.0, 0.65, 0.9)
    return round(red, 4), round(green, 4), round(blue, 4)
