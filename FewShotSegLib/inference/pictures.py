"""Training images from a few slices: the slices themselves, and augmented copies of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from FewShotSegLib.data.digests import sha256_of_array
from FewShotSegLib.data.exemplar import Exemplar
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.imaging.slices import LabelledSlice, background_slices, labelled_slices

GAMMA, GAIN, BIAS, BLUR = 0.4, 0.1, 0.05, 0.7  # augmentation ranges of intensity (0 to 1) and sharpness


@dataclass(frozen=True, eq=False)
class Picture:
    """A slice, or an augmented copy of one: image (S, S) float32 in [0, 1], labels (S, S) int32, and the (h, w) pixels
    of the square without padding; `source` is the slice index.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    content: tuple[int, int]
    source: int
    original: bool


def digest_of_piece(piece: LabelledSlice | Picture) -> str:
    """SHA-256 of a slice's image and labels, to detect duplicates."""
    return sha256_of_array(np.stack([piece.image, piece.labels]))


def distinct_slices(
    exemplars: Sequence[Exemplar], intensity: IntensitySpec, image_size: int, most: int
) -> dict[str, LabelledSlice]:
    """{digest: slice} of the exemplars' annotated slices and as many empty ones, `most` annotated ones in all; ordered
    by digest, so that neither the order of the exemplars nor duplicate slices matter.
    """
    share = max(most // len(exemplars), 1)
    pieces: dict[str, LabelledSlice] = {}
    for exemplar in exemplars:
        some = replace(exemplar, annotated_slices=_spread(exemplar, share))
        shown = labelled_slices(some, intensity, image_size)
        empty = background_slices(some, intensity, image_size, limit=max(len(shown), 1))
        for piece in (*shown, *empty):
            pieces[digest_of_piece(piece)] = piece
    return {digest: pieces[digest] for digest in sorted(pieces)}


def _spread(exemplar: Exemplar, most: int) -> tuple[int, ...]:
    """Up to `most` annotated slices, evenly spread, plus the largest one of each structure missing from these."""
    indices = exemplar.annotated_slices
    if len(indices) <= most:
        return indices
    chosen = {indices[i] for i in np.linspace(0, len(indices) - 1, most).round().astype(int)}
    areas = {index: np.bincount(exemplar.labels_on(index).ravel(), minlength=2) for index in indices}
    for value in exemplar.annotated_structures():
        area = {index: counts[value] if value < len(counts) else 0 for index, counts in areas.items()}
        if not any(area[index] for index in chosen):
            chosen.add(max(indices, key=lambda index: area[index]))
    return tuple(sorted(chosen))


def numbered(slices: Iterable[LabelledSlice]) -> list[Picture]:
    """Slices as `Picture`s, in order."""
    return [
        Picture(piece.image, piece.labels.astype(np.int32), piece.frame.content, number, True)
        for number, piece in enumerate(slices)
    ]


def pictures_of(slices: Sequence[Picture], at_least: int, seed: int) -> list[Picture]:
    """The slices, each followed by its copies: `at_least` images in all, with a copy of each unless there are many."""
    count = len(slices)
    copies = max(-(-at_least // count) - 1, 1 if count <= 2 * at_least else 0)
    pictures = []
    for slice_ in slices:
        pictures.append(slice_)
        pictures += [_copy(slice_, np.random.default_rng([seed, slice_.source, n])) for n in range(copies)]
    return pictures


def _copy(picture: Picture, rng: np.random.Generator) -> Picture:
    """An augmented copy with small rotation, scaling, translation, brightness change and blur, as between patients;
    never mirrored, so that left stays left.
    """
    size = picture.image.shape[0]
    angle, scale = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(0.85, 1.18)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.array(picture.content) - 1) / 2
    offset = centre - turn @ (centre + rng.uniform(-0.05, 0.05, 2) * size)
    image = ndimage.affine_transform(picture.image, turn, offset, order=1)
    image = np.clip(image, 0, 1) ** np.exp(rng.uniform(-GAMMA, GAMMA))
    image = np.clip(image * rng.uniform(1 - GAIN, 1 + GAIN) + rng.uniform(-BIAS, BIAS), 0, 1)
    image = ndimage.gaussian_filter(image, rng.uniform(0, BLUR)).astype(np.float32)
    labels = ndimage.affine_transform(picture.labels, turn, offset, order=0)
    beyond = np.ones((size, size), bool)
    beyond[: picture.content[0], : picture.content[1]] = False
    image[beyond], labels[beyond] = 0, 0
    return replace(picture, image=image, labels=labels, original=False)
