"""The pictures that a few slices teach with."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from FewShotSegLib.inference.pictures import Picture, pictures_of


def a_slice(number: int = 0) -> Picture:
    """Bright on the right and below, with a structure on the right."""
    y, x = np.mgrid[:64, :64]
    image = (0.2 + 0.5 * (x > 40) + 0.3 * (y > 50)).astype(np.float32)
    return Picture(image, ((x > 45) & (y > 20) & (y < 40)).astype(np.int32), (64, 64), number, True)


def test_copies_are_never_mirrored() -> None:
    found = pictures_of([a_slice()], 20, 0)
    assert len(found) == 20
    for picture in found:
        row, column = ndimage.center_of_mass(picture.labels)
        assert column > 40
        assert 15 < row < 45


@pytest.mark.parametrize(("count", "expected"), [(1, 4), (2, 4), (3, 6), (5, 10), (9, 9)])
def test_few_slices_are_filled_up_with_copies(count: int, expected: int) -> None:
    found = pictures_of([a_slice(number) for number in range(count)], 4, 0)
    assert len(found) == expected
    assert [picture.source for picture in found if picture.original] == list(range(count))


def test_copies_differ_from_their_slice_and_from_each_other_but_not_from_run_to_run() -> None:
    found, again = (pictures_of([a_slice()], 3, 7) for _ in range(2))
    images = [picture.image for picture in found]
    assert not any(np.array_equal(images[i], images[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, again, strict=True))
    assert all(image.min() >= 0 and image.max() <= 1 and image.dtype == np.float32 for image in images)
