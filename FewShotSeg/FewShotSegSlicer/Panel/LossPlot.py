"""Loss and Dice of a training that runs, painted into a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

_LOSS, _DICE = (61, 127, 209), (46, 158, 79)  # readable on light and dark themes
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 32, 22, 16  # pixels around the curves
_SMOOTHING = 0.9  # of the loss, which jumps from batch to batch
_MOST_POINTS = 400

Curve = list[tuple[float, float]]


class LossPlot:
    """Shows the smoothed loss, scaled to its start, and the Dice on validation samples, between 0 and 1."""

    def __init__(self, label: Any) -> None:
        self._label = label
        self.clear()

    def clear(self) -> None:
        """Begin again without curves."""
        self.stage = ""
        self.loss: Curve = []
        self.dice: Curve = []
        self._total = 1
        self._label.clear()

    def add(self, progress: Mapping[str, Any]) -> None:
        """Take a progress message of a training; a new stage begins new curves."""
        step, metrics = progress["step"], progress.get("metrics", {})
        if "loss" not in metrics:
            return
        if progress["message"] != self.stage:
            self.clear()
            self.stage = progress["message"]
        self._total = max(progress["total"], 1)
        before = self.loss[-1][1] if self.loss else metrics["loss"]
        self.loss.append((step, _SMOOTHING * before + (1 - _SMOOTHING) * metrics["loss"]))
        if len(self.loss) > _MOST_POINTS:
            del self.loss[1:-1:2]
        if "score" in metrics:
            self.dice.append((step, metrics["score"]))
        self.paint()

    def paint(self) -> None:
        size = self._label.size
        pixmap = qt.QPixmap(max(size.width(), 160), max(size.height(), 100))
        pixmap.fill(qt.QColor(0, 0, 0, 0))
        painter = qt.QPainter()
        painter.begin(pixmap)
        try:
            painter.setRenderHint(qt.QPainter.Antialiasing)
            self._paintOn(painter, pixmap.width(), pixmap.height())
        finally:
            painter.end()  # Qt ends the process when a pixmap goes before its painter
        self._label.setPixmap(pixmap)

    def _paintOn(self, painter: Any, width: int, height: int) -> None:
        text = self._label.palette.color(qt.QPalette.WindowText)
        self._paintGrid(painter, text, width, height)
        highest = max((value for _step, value in self.loss), default=1.0) or 1.0
        self._paintCurve(painter, [(x, y / highest) for x, y in self.loss], _LOSS, width, height)
        self._paintCurve(painter, self.dice, _DICE, width, height)
        self._paintLegend(painter, text)

    def _paintGrid(self, painter: Any, text: Any, width: int, height: int) -> None:
        line, right = qt.QColor(text.red(), text.green(), text.blue(), 50), width - _RIGHT
        bottom, span = height - _BOTTOM, height - _BOTTOM - _TOP
        for part in (0.0, 0.5, 1.0):
            y = round(bottom - part * span)
            painter.setPen(line)
            painter.drawLine(_LEFT, y, right, y)
            painter.setPen(text)
            painter.drawText(right + 5, y + 4, f"{part:.1f}")
        painter.drawText(_LEFT, height - 3, "0")
        total = _("{count} steps").format(count=self._total)
        painter.drawText(right - 90, height - 17, 90, 16, qt.Qt.AlignRight | qt.Qt.AlignVCenter, total)

    def _paintLegend(self, painter: Any, text: Any) -> None:
        legend = [(_LOSS, _("loss {value:.3f}").format(value=self.loss[-1][1]))] if self.loss else []
        if self.dice:
            legend.append((_DICE, _("Dice {value:.3f} on validation samples").format(value=self.dice[-1][1])))
        x = _LEFT
        for color, words in legend:
            painter.setPen(_pen(color, 3))
            painter.drawLine(x, 9, x + 14, 9)
            painter.setPen(text)
            painter.drawText(x + 19, 13, words)
            x += 34 + 7 * len(words)

    def _paintCurve(
        self, painter: Any, points: Sequence[tuple[float, float]], color: Sequence[int], width: int, height: int
    ) -> None:
        if not points:
            return
        places = [
            (
                _LEFT + step / self._total * (width - _LEFT - _RIGHT),
                height - _BOTTOM - min(max(value, 0.0), 1.0) * (height - _BOTTOM - _TOP),
            )
            for step, value in points
        ]
        path = qt.QPainterPath()
        path.moveTo(*places[0])
        for x, y in places[1:]:
            path.lineTo(x, y)
        painter.setPen(_pen(color, 2))
        painter.drawPath(path)
        x, y = places[-1]
        painter.setBrush(qt.QColor(*color))
        painter.drawEllipse(round(x) - 1, round(y) - 1, 3, 3)  # a first value alone is no line yet
        painter.setBrush(qt.QBrush())  # PythonQt has no setBrush(NoBrush)


def _pen(color: Sequence[int], width: int) -> Any:
    pen = qt.QPen(qt.QColor(*color))
    pen.setWidth(width)
    return pen
