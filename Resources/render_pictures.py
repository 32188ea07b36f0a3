"""Draw the icon, the pictures of the sample patients, and the tour; run this after a change of any.

.venv/bin/python Resources/render_pictures.py, with what `make test` installs. The tour is made of the screenshots that
the story test takes (FEWSHOTSEG_SCREENSHOTS=Resources/Screenshots pytest Testing/Extension/test_story.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from PySide6.QtCore import Qt
from PySide6.QtGui import QImage, QPainter
from PySide6.QtSvg import QSvgRenderer

RESOURCES = Path(__file__).resolve().parent
ICONS = RESOURCES.parent / "FewShotSeg" / "Resources" / "Icons"
ICON_SIZE = 128
TOUR_WIDTH = 960  # pixels
TOUR_SECONDS = 2.5  # a picture
sys.path.insert(0, str(RESOURCES.parent))

from FewShotSegLib.data.structures import structure_colors  # noqa: E402 - a script, also without an installed library
from FewShotSegLib.demo.phantom import patient  # noqa: E402
from FewShotSegLib.visualization.overlays import overlay_png  # noqa: E402


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
    colors = structure_colors(truth.structures) if labelled else {}
    picture = overlay_png(shown, labels, labels, colors, upscale=2)
    (ICONS / f"FewShotSegPatient{number}.png").write_bytes(picture)


def draw_tour() -> None:
    """The screenshots one after the other, as one picture that moves."""
    pictures = []
    for path in sorted((RESOURCES / "Screenshots").glob("[0-9]-*.png")):
        picture = Image.open(path).convert("RGB")
        height = round(picture.height * TOUR_WIDTH / picture.width)
        pictures.append(picture.resize((TOUR_WIDTH, height), Image.Resampling.LANCZOS))
    first, *rest = (picture.quantize(128, dither=Image.Dither.NONE) for picture in pictures)
    first.save(
        RESOURCES / "Screenshots" / "tour.gif",
        save_all=True,
        append_images=rest,
        duration=round(1000 * TOUR_SECONDS),
        loop=0,
        optimize=True,
    )


if __name__ == "__main__":
    draw_tour()
    draw_icon()
    draw_patient(1, labelled=True)
    draw_patient(2, labelled=False)
