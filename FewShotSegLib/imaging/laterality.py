"""Whether a structure name is lateralised, so that mirroring would change the label."""

from __future__ import annotations

import re

_SIDES = re.compile(
    "left.*|right.*|link(s|e[nrms]?)?|recht(s|e[nrms]?)?|gauches?|droite?s?|izquierd[oa]s?|derech[oa]s?|"
    "sinist.*|destr[oaie]|dext(er|r.*)|esquerd[oa]s?|direit[oa]s?|l|r|li|re|lt|rt|lh|rh|lv|rv|la|ra"
)


def is_lateralised(name: str) -> bool:
    """Return whether a structure's name includes its side, so that its mirror image would be mislabelled.

    Abbreviations count as separate words only ("kidney_l", "LV"). The heart's chambers count: a mirrored heart has a
    different orientation. A false positive only disables mirroring, which is optional.

    >>> [is_lateralised(name) for name in ("left kidney", "KidneyR", "Niere links", "LV", "liver", "cleft lip")]
    [True, True, True, True, False, False]
    """
    words = re.findall(r"([A-Z]+(?![a-z])|[^\W\d_][a-zà-ÿ]*)(\d*)", name)
    vertebrae = {(letter, digit) for letter in ("L", "l") for digit in "123456"}
    return any(_SIDES.fullmatch(word.lower()) and (word, number) not in vertebrae for word, number in words)
