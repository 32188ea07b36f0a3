"""Pictures for the panel, compared pixel by pixel."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qt
import slicer

from FewShotSegSlicer.Panel import Pictures
from Testing.Extension.panels import dialogCalled, pixelsOf


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def test_a_pixmap_has_the_pixels_of_its_array_the_first_row_on_top(scene: Any, picture: np.ndarray) -> None:
    np.testing.assert_array_equal(pixelsOf(Pictures.pixmapOf(picture)), picture)
    np.testing.assert_array_equal(pixelsOf(Pictures.pixmapOf(picture[:, ::-1])), picture[:, ::-1])


def test_a_picture_comes_out_of_its_message_as_it_went_in(picture: np.ndarray) -> None:
    message = {"shape": list(picture.shape), "data": base64.b64encode(picture.tobytes()).decode()}
    np.testing.assert_array_equal(Pictures.received(message), picture)


def test_a_label_shows_a_picture_as_large_as_fits_in_its_proportions(scene: Any, picture: np.ndarray) -> None:
    label = qt.QLabel()
    label.setVisible(False)
    Pictures.showIn(label, Pictures.pixmapOf(picture), 70, 1000)
    assert (label.pixmap.width(), label.pixmap.height()) == (70, 50)
    assert not label.isHidden()
    Pictures.showIn(label, Pictures.pixmapOf(picture), 1000, 20)
    assert (label.pixmap.width(), label.pixmap.height()) == (28, 20)


def blended(grey: int, color: tuple[int, int, int]) -> list[int]:
    return [int(0.55 * grey + 0.45 * part) for part in color]


def test_a_mask_lies_upon_the_slice_in_one_colour() -> None:
    image, mask = np.array([[0, 100], [200, 255]], np.uint8), np.array([[True, False], [True, False]])
    found = Pictures.overlaid(image, mask)
    assert found.tolist() == [
        [blended(0, Pictures.KEPT), [100] * 3],
        [blended(200, Pictures.KEPT), [255] * 3],
    ]


def test_two_masks_show_what_each_has_alone_and_what_both_have() -> None:
    image = np.full((1, 4), 100, np.uint8)
    mask, other = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    colors = [blended(100, color) for color in (Pictures.KEPT, Pictures.ADDED, Pictures.REMOVED)]
    assert Pictures.overlaid(image, mask, other).tolist() == [[*colors, [100] * 3]]


def test_two_pictures_stand_beside_each_other_with_a_gap(picture: np.ndarray) -> None:
    found = Pictures.sideBySide(picture, picture[::-1], gap=2)
    np.testing.assert_array_equal(found[:, :7], picture)
    np.testing.assert_array_equal(found[:, 9:], picture[::-1])
    assert (found[:, 7:9] == 128).all()


@pytest.mark.parametrize(("sectionWidth", "width"), [(0, 380), (90, 380), (400, 366), (5000, 760)])
def test_a_picture_takes_the_width_of_its_section_once_that_is_laid_out(
    scene: Any, sectionWidth: int, width: int
) -> None:
    section = qt.QWidget()
    section.resize(sectionWidth, 10)
    assert Pictures.widthIn(section) == width


def test_a_window_stays_open_without_anybody_holding_it_and_goes_when_closed(scene: Any, tmp_path: Path) -> None:
    pixmap = qt.QPixmap(60, 40)
    pixmap.fill(qt.QColor(200, 0, 0))
    assert pixmap.save(str(tmp_path / "sheet.png"))
    for title in ("first", "second"):
        Pictures.showInDialog(tmp_path / "sheet.png", title)
    slicer.app.processEvents()
    for title in ("first", "second"):
        window = dialogCalled(title)
        assert window.findChild(qt.QLabel).pixmap.height() == 800
        window.close()
        qt.QApplication.sendPostedEvents(window, qt.QEvent.DeferredDelete)
    titles = [window.windowTitle for window in slicer.util.mainWindow().findChildren(qt.QDialog)]
    assert not {"first", "second"} & set(titles)
