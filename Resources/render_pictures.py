"""Draw the icon and the pictures of the sample patients; run this after a change of either.

.venv/bin/python Resources/render_pictures.py, with what `make test` installs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PySide6.QtCore import Qt
from PySide6.QtGui import QImage, QPainter
from PySide6.QtSvg import QSvgRenderer

RESOURCES = Path(__file__).resolve().parent
ICONS = RESOURCES.parent / "FewShotSeg" / "Resources" / "Icons"
ICON_SIZE = 128
sys.path.insert(0, str(RESOURCES.parent))

from FewShotSegLib.demo.phantom import patient  # noqa: E402 - a script, also where the library is not installed
from FewShotSegLib.visualization.overlays import PALETTE, overlay_png  # noqa: E402


def draw_icon() -> None:
    image = QImage(ICON_SIZE, ICON_SIZE, QImage.Format.Format_ARGB32)
    image.fill(Qt.GlobalColor.transparent)
    painter = QPainter(image)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    QSvgRenderer(str(RESOURCES / "FewShotSeg.svg")).render(painter)
    painter.end()
    for path in (RESOURCES / "FewShotSeg.png", ICONS / "FewShotSeg.png"):
        image.save(str(path))


def draw_patient(number: int, labelled: bool) -> None:
    volume, truth = patient(np.random.default_rng(number))
    areas = np.array([[(part == value).sum() for value in truth.structures] for part in truth.volume.array])
    k = int(np.argmax(areas.min(axis=1)))  # the slice that shows every structure best
    body = np.s_[k, 20:140, :]
    shown = np.clip((volume.array[body] + 160.0) / 400.0, 0, 1)
    labels = truth.volume.array[body]
    colors = dict(zip(truth.structures, PALETTE, strict=False)) if labelled else {}
    picture = overlay_png(shown, labels, labels, colors, upscale=2)
    (ICONS / f"FewShotSegPatient{number}.png").write_bytes(picture)


if __name__ == "__main__":
    draw_icon()
    draw_patient(1, labelled=True)
    draw_patient(2, labelled=False)
