"""Which segmentation belongs to which reference, by the names of the files."""

from __future__ import annotations

import re
from pathlib import Path

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import known_suffix
from FewShotSegLib.io.images import SAVE_SUFFIXES, VOLUME_SUFFIXES


def paired_files(pred_dir: Path, ref_dir: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Return {case: (prediction, reference)} and the cases that have a reference only, both in order of name."""
    predictions, references = _labelmaps_in(pred_dir, "predictions"), _labelmaps_in(ref_dir, "references")
    lonely = sorted(set(predictions) - set(references))
    if lonely:
        raise InputError(
            f"No reference in {ref_dir} for {', '.join(predictions[case].name for case in lonely)}. "
            f"There are {', '.join(sorted(path.name for path in references.values())[:6])}."
        )
    pairs = {case: (predictions[case], references[case]) for case in sorted(predictions)}
    return pairs, sorted(set(references) - set(predictions))


_ENDING = re.compile(
    r"[ _.-](?P<word>img|image|lab|labels?|seg|segmentation|mask|pred|prediction|gt|ref|reference)$", re.I
)


_IMAGE_WORDS = {"img", "image"}


_PROBABILITY = re.compile(r"[ _.-]prob(abilit(y|ies))?s?$", re.IGNORECASE)


def case_name(path: Path) -> str:
    """Return the name of the case a file belongs to: without format suffix and without endings like _img or _seg.

    >>> [case_name(Path(name)) for name in ("case_00_img.seg.nrrd", "case_00_lab.nii.gz", "v1.2-seg.mha")]
    ['case_00', 'case_00', 'v1.2']
    """
    stem = path.name[: len(path.name) - len(known_suffix(path))]
    while (match := _ENDING.search(stem)) and match.start() > 0:
        stem = stem[: match.start()]
    return stem


def _labelmaps_in(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"The folder of {what}, {folder}, is not there.")
    suffixes = set(VOLUME_SUFFIXES) | set(SAVE_SUFFIXES)
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and known_suffix(p).lower() in suffixes]
    found: dict[str, list[Path]] = {}
    for path in files:
        if not path.name.startswith(".") and not _PROBABILITY.search(_stem(path)):
            found.setdefault(case_name(path), []).append(path)
    if not found:
        raise InputError(f"{folder} holds no {what}. Labelmaps are files like {', '.join(sorted(suffixes))}.")
    return {case: _the_labelmap(case, paths, what) for case, paths in found.items()}


def _the_labelmap(case: str, paths: list[Path], what: str) -> Path:
    """Data sets keep image and labels side by side: the image steps back, anything else is ambiguous."""
    candidates = [path for path in paths if not _is_image(path)] or paths
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise InputError(f'{len(candidates)} {what} belong to the case "{case}": {names}. Keep one of them.')
    return candidates[0]


def _is_image(path: Path) -> bool:
    match = _ENDING.search(_stem(path))
    return match is not None and match["word"].lower() in _IMAGE_WORDS and known_suffix(path).lower() != ".seg.nrrd"


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(known_suffix(path))]
