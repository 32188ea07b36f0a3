"""Pictures: read to their end, and masks of every kind that labelling tools and image editors save."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.pictures import check_picture
from FewShotSegLib.io.volumes import load_labelmap, load_volume

LABELS = np.zeros((40, 50), np.uint8)
LABELS[5:15, 5:20], LABELS[20:35, 25:45] = 1, 2
GREY = (np.random.default_rng(0).integers(0, 90, LABELS.shape) + 60 * LABELS).astype(np.uint8)
TWO = (LABELS > 0).astype(np.uint8) * 255


def pages(stack: np.ndarray) -> bytes:
    """An uncompressed TIFF file, each directory behind its picture (TIFF 6.0, section 2)."""
    content, last = bytearray(b"II*\0\0\0\0\0"), 4
    for page in stack:
        at = len(content)
        content += page.tobytes()
        here, (height, width) = len(content), page.shape
        tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
        tags += [(273, 4, 1, at), (277, 3, 1, 1), (278, 3, 1, height), (279, 4, 1, page.size)]
        content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
        struct.pack_into("<I", content, last, here)
        last = len(content) - 4
    return bytes(content)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
def test_a_picture_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.fromarray(GREY).save(path)
    content = path.read_bytes()
    check_picture(path, name)
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match="cannot be read"):
            load_volume(path)


def test_pages_missing_at_the_end_are_noticed(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (7, 40, 50)).astype(np.uint8)
    content = pages(stack)
    (tmp_path / "a.tif").write_bytes(content)
    assert np.array_equal(load_volume(tmp_path / "a.tif").array, stack)
    for length in range(9, len(content), 1303):
        (tmp_path / "a.tif").write_bytes(content[:length])
        with pytest.raises(InputError, match="damaged or was cut short"):
            load_volume(tmp_path / "a.tif")


def test_pages_in_a_circle_are_refused(tmp_path: Path) -> None:
    content = bytearray(pages(GREY[np.newaxis]))
    content[-4:] = content[4:8]
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        check_picture(tmp_path / "a.tif", "a.tif")


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for at in range(50, len(content) - 20, 61):
        (tmp_path / "a.png").write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        with pytest.raises(InputError, match="damaged"):
            load_volume(tmp_path / "a.png")


def test_grey_with_transparency_is_grey_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alpha = np.full_like(GREY, 255)
    Image.fromarray(np.dstack([GREY, alpha])).save(tmp_path / "a.png")
    assert np.array_equal(load_volume(tmp_path / "a.png").array[0], GREY)
    assert not caplog.records
    alpha[0] = 0
    Image.fromarray(np.dstack([GREY, alpha])).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(load_volume(tmp_path / "a.png").array[0], GREY)
    assert "transparent in places" in caplog.text


def palette_picture() -> Any:
    picture = Image.fromarray(LABELS).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    return picture


def test_the_numbers_of_a_palette_are_labels(tmp_path: Path) -> None:
    palette_picture().save(tmp_path / "a.png")
    assert np.array_equal(load_labelmap(tmp_path / "a.png").volume.array[0], LABELS)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "RGB", "RGBA"])
def test_a_mask_is_read_from_every_kind_of_picture(mode: str, tmp_path: Path) -> None:
    Image.fromarray(TWO).convert(mode).save(tmp_path / "a.png")
    found = load_labelmap(tmp_path / "a.png")
    assert np.array_equal(found.volume.array[0] > 0, TWO > 0)
    assert len(found.structures) == 1


@pytest.mark.parametrize("values", [(1, 2), (128, 255), (10, 200)])
def test_labels_as_grey_values_stay_as_they_are(values: tuple[int, int], tmp_path: Path) -> None:
    array = np.array([0, *values], np.uint8)[LABELS]
    Image.fromarray(array).save(tmp_path / "a.png")
    assert np.array_equal(load_labelmap(tmp_path / "a.png").volume.array[0], array)


def test_single_pixels_of_a_label_stay(tmp_path: Path) -> None:
    array = LABELS.copy()
    array[0, 0], array[0, 2] = 3, 4
    Image.fromarray(array).save(tmp_path / "a.png")
    assert np.array_equal(load_labelmap(tmp_path / "a.png").volume.array[0], array)


@pytest.mark.parametrize("name", ["a.jpg", "soft.png"])
def test_a_mask_with_soft_edges_becomes_its_two_values_and_is_told(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = Image.fromarray(TWO)
    if name == "a.jpg":
        picture.save(tmp_path / name, quality=80)
    else:
        picture.filter(ImageFilter.GaussianBlur(1)).save(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        found = load_labelmap(tmp_path / name)
    assert found.structures == {255: "255"}
    assert np.count_nonzero((found.volume.array[0] > 0) != (TWO > 0)) <= 12  # corners
    assert "soft edges" in caplog.text


@pytest.mark.parametrize("kind", ["photograph.png", "photograph.jpg", "labels.jpg", "colours.png"])
def test_what_names_no_labels_is_refused_with_what_to_do(kind: str, tmp_path: Path) -> None:
    if kind == "colours.png":
        palette_picture().convert("RGB").save(tmp_path / kind)
    elif kind == "labels.jpg":
        Image.fromarray(LABELS * 20).save(tmp_path / kind)
    else:
        Image.fromarray(GREY).save(tmp_path / kind)
    with pytest.raises(InputError, match=r"is no labelmap: .*save"):
        load_labelmap(tmp_path / kind)
