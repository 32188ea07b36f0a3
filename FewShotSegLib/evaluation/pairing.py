"""Which segmentation belongs to which reference, by the names of the files."""

from __future__ import annotations

from pathlib import Path

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import known_suffix
from FewShotSegLib.io.images import VOLUME_SUFFIXES
from FewShotSegLib.io.names import parsed, stem, without_channel
from FewShotSegLib.io.volumes import SEGMENTATION_SUFFIXES


def paired_files(pred_dir: Path, ref_dir: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Return {case: (prediction, reference)} and the cases with a reference only, both sorted by name."""
    predictions, references = _labelmaps_in(pred_dir, "predictions"), _labelmaps_in(ref_dir, "references")
    partners = {case: _partner(case, predictions, references) for case in sorted(predictions)}
    lonely = [predictions[case].name for case, partner in partners.items() if partner is None]
    if lonely:
        bare = [without_channel(case) for case in predictions]
        doubled = any(bare.count(case) > 1 and case in references for case in bare)
        raise InputError(
            f"No reference in {ref_dir} for {', '.join(lonely)}. "
            f"There are {', '.join(sorted(path.name for path in references.values())[:6])}."
            + (" Some seem to be channels of one case; keep the segmentation of one channel." if doubled else "")
        )
    pairs = {case: (predictions[case], references[partner]) for case, partner in partners.items() if partner}
    return pairs, sorted(set(references) - set(partners.values()))


def _partner(case: str, predictions: dict[str, Path], references: dict[str, Path]) -> str | None:
    """The reference of a prediction; either name may contain nnU-Net's channel number."""
    if case in references:
        return case
    # Cases may be numbered with four digits themselves: then the name without them is ambiguous.
    bare = without_channel(case)
    alike = [other for other in predictions if without_channel(other) == bare]
    found = [other for other in references if bare in (other, without_channel(other)) and other not in predictions]
    return found[0] if len(found) == len(alike) == 1 else None


def case_name(path: Path) -> str:
    """Return the name of the case a file belongs to: without format suffix and without endings like _img or _seg.

    >>> [case_name(Path(name)) for name in ("case_00_img.seg.nrrd", "case_00_lab.nii.gz", "v1.2-seg.mha")]
    ['case_00', 'case_00', 'v1.2']
    """
    return parsed(path).case or stem(path)


def _labelmaps_in(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"The folder of {what}, {folder}, is not there.")
    suffixes = {*VOLUME_SUFFIXES, *SEGMENTATION_SUFFIXES}
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and known_suffix(p).lower() in suffixes]
    found: dict[str, list[Path]] = {}
    for path in files:
        if not path.name.startswith(".") and parsed(path).role != "probability":
            found.setdefault(case_name(path), []).append(path)
    if not found:
        raise InputError(f"{folder} holds no {what}. Labelmaps are files like {', '.join(sorted(suffixes))}.")
    return {case: _the_labelmap(case, paths, what) for case, paths in found.items()}


def _the_labelmap(case: str, paths: list[Path], what: str) -> Path:
    """Data sets may store image and labels together: the image is skipped, anything else is ambiguous."""
    candidates = [path for path in paths if parsed(path).role != "image"] or paths
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise InputError(f'{len(candidates)} {what} belong to the case "{case}": {names}. Keep one of them.')
    return candidates[0]
