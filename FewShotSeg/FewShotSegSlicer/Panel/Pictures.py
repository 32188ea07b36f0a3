"""Small pictures for the panel: arrays as pixmaps, and two masks of the same slice compared."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from FewShotSegSlicer.Scene.Geometry import Array

ADDED, REMOVED, KEPT = (46, 204, 113), (231, 76, 60), (241, 196, 15)
_WIDEST = 380  # pixels; the module panel is seldom wider than 400
_BESIDE = 34  # pixels beside a picture: margins, and a scroll bar that may come with it


def pixmapOf(rgb: Array) -> Any:
    """A qt.QPixmap of an image, uint8 (H, W, 3), first row on top."""
    height, width, _channels = rgb.shape
    image = vtk.vtkImageData()
    image.SetDimensions(width, height, 1)
    # VTK counts rows from below.
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(rgb[::-1]).reshape(-1, 3), deep=True))
    picture = qt.QImage()
    slicer.qMRMLUtils().vtkImageDataToQImage(image, picture)
    return qt.QPixmap.fromImage(picture)


def received(picture: Mapping[str, Any]) -> Array:
    """The image, uint8 (H, W, 3), of a progress message."""
    return np.frombuffer(base64.b64decode(picture["data"]), np.uint8).reshape(picture["shape"])


def widthIn(section: Any) -> int:
    """Pixels that a picture in a section of the panel may take."""
    return min(section.width - _BESIDE, 2 * _WIDEST) if section.width > 100 else _WIDEST


def showIn(label: Any, pixmap: Any, width: int, height: int) -> None:
    """Show a pixmap in a label, as large as fits into the given pixels."""
    label.setPixmap(pixmap.scaled(width, height, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation))
    label.setVisible(True)


def showInDialog(path: str | Path, title: str, width: int = 1200, height: int = 800) -> None:
    """Show a picture file in a window of its own, which goes when it is closed; till then it belongs to Slicer's."""
    window = qt.QDialog(slicer.util.mainWindow())
    window.setAttribute(qt.Qt.WA_DeleteOnClose)
    window.setWindowTitle(title)
    label = qt.QLabel(window)
    showIn(label, qt.QPixmap(str(path)), width, height)
    qt.QVBoxLayout(window).addWidget(label)
    window.show()


def overlaid(image: Array, mask: Array, other: Array | None = None) -> Array:
    """A slice, uint8 (H, W), with the mask (H, W) upon it, as (H, W, 3). Compared to another mask, what only the mask
    has is green, and what only the other has is red.
    """
    picture = np.repeat(image[..., None], 3, axis=2).astype(np.float32)
    parts = (
        [(mask, KEPT)] if other is None else [(mask & other, KEPT), (mask & ~other, ADDED), (other & ~mask, REMOVED)]
    )
    for part, color in parts:
        picture[part] = 0.55 * picture[part] + 0.45 * np.array(color, np.float32)
    return picture.astype(np.uint8)


def sideBySide(left: Array, right: Array, gap: int = 4) -> Array:
    """Two images (H, W, 3) of the same size beside each other."""
    between = np.full((left.shape[0], gap, 3), 128, np.uint8)
    return np.concatenate([left, between, right], axis=1)
