"""Whether a structure is named left or right, so that a flipped image would show another one."""

from __future__ import annotations

import re

_SIDES = re.compile(
    "left.*|right.*|link(s|e[nrms]?)?|recht(s|e[nrms]?)?|gauches?|droite?s?|izquierd[oa]s?|derech[oa]s?|"
    "sinist.*|destr[oaie]|dext(er|r.*)|esquerd[oa]s?|direit[oa]s?|l|r|li|re|lt|rt|lh|rh|lv|rv|la|ra"
)


def is_lateralised(name: str) -> bool:
    """Return whether a structure is named by its side, so that a mirror image of it would be a wrong label.

    Abbreviations count when they stand alone ("kidney_l", "LV"). The heart's chambers count: a mirrored heart has
    another orientation. A word taken for a side by mistake only costs the mirroring, which is optional.

    >>> [is_lateralised(name) for name in ("left kidney", "KidneyR", "Niere links", "LV", "liver", "cleft lip")]
    [True, True, True, True, False, False]
    """
    words = re.findall(r"([A-Z]+(?![a-z])|[^\W\d_][a-zà-ÿ]*)(\d*)", name)
    vertebrae = {(letter, digit) for letter in ("L", "l") for digit in "123456"}
    return any(_SIDES.fullmatch(word.lower()) and (word, number) not in vertebrae for word, number in words)
