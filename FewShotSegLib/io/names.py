"""File name conventions: the case of a file, and whether it is an image, a labelmap or probabilities.

The only place with such rules. `patient_img.nii.gz`, `patient_lab.nii.gz`, `patient-seg.nrrd`, `patient.seg.nrrd`,
`img0001.nii` and `label0001.nii`, `patient liver.probability.nrrd`; and nnU-Net's `patient_0000.nii.gz`, the first
channel of an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .files import known_suffix

Role = Literal["image", "labelmap", "probability", "unknown"]
PROBABILITY = ".probability"  # stem suffix of the probability maps that this program writes

_WORDS: dict[str, Role] = {
    **dict.fromkeys(("img", "image", "images"), "image"),
    **dict.fromkeys(
        ("lab", "label", "labels", "labelmap", "seg", "segmentation", "mask", "gt", "ref", "reference"), "labelmap"
    ),
    **dict.fromkeys(("pred", "prediction"), "labelmap"),
    **dict.fromkeys(("prob", "probs", "probability", "probabilities"), "probability"),
}
_ENDING = re.compile(rf"(?:^|[ _.-])(?P<word>{'|'.join(sorted(_WORDS, key=len, reverse=True))})$", re.IGNORECASE)
_BEGINNING = re.compile(r"^(?P<word>img|image|lab|label|seg|mask)[ _.-]?(?=\d+$)", re.IGNORECASE)
_CHANNEL = re.compile(r"_\d{4}$")


@dataclass(frozen=True)
class FileName:
    """The case of a file; "" if the name is only a word such as "image"."""

    case: str
    role: Role


def stem(path: Path) -> str:
    """Return the name of a file without its format suffix, that of a folder unchanged.

    >>> stem(Path("v1.2 patient.nii.gz"))
    'v1.2 patient'
    """
    if path.name in ("", ".."):  # "." and the like: the name of the actual folder
        path = path.resolve()
    if path.is_dir():
        return path.name or "volume"
    return path.name[: len(path.name) - len(known_suffix(path))]


def parsed(path: Path) -> FileName:
    """Parse the name of a file; the last keyword determines its role.

    >>> [parsed(Path(name)) for name in ("case_00_img.nrrd", "v1.2-seg.mha")]
    [FileName(case='case_00', role='image'), FileName(case='v1.2', role='labelmap')]
    >>> parsed(Path("label0001.nii.gz")), parsed(Path("p07_FLAIR.nii"))
    (FileName(case='0001', role='labelmap'), FileName(case='p07_FLAIR', role='unknown'))
    """
    case = stem(path)
    role: Role = "labelmap" if known_suffix(path).lower().startswith((".seg.", ".rtstruct.")) else "unknown"
    while match := _ENDING.search(case):
        role = _WORDS[match["word"].lower()] if role == "unknown" else role
        case = case[: match.start()]
    if match := _BEGINNING.match(case):
        role = _WORDS[match["word"].lower()] if role == "unknown" else role
        case = case[match.end() :]
    return FileName(case, role)


def without_channel(case: str) -> str:
    """Return the case of an image without nnU-Net's channel number.

    >>> without_channel("la_003_0000")
    'la_003'
    """
    return _CHANNEL.sub("", case)


def channel_number(case: str) -> int | None:
    """Return the channel given by nnU-Net's number at the end of a name, None without number.

    >>> channel_number("la_003_0001"), channel_number("la_003")
    (1, None)
    """
    match = _CHANNEL.search(case)
    return int(match[0][1:]) if match else None


def belonging(case: str, others: Iterable[str]) -> list[str]:
    """Return those of the other cases that match this one; several if ambiguous.

    The same name; or one that differs by nnU-Net's channel number; or one that is followed by another word: "p07" may
    be "p07_FLAIR", but "case_1" is not "case_10".
    """
    others = list(others)
    for same in (
        [other for other in others if other == case],
        [other for other in others if without_channel(other) == case or other == without_channel(case)],
        [other for other in others if case and re.match(re.escape(case) + "[._ -]", other)],
    ):
        if same:
            return same
    return []
