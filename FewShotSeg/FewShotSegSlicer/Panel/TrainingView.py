"""How a job of section 3 goes on: progress, curves, a picture, and the two ways to end it early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

from FewShotSegSlicer.Workers.Run import Run, durationInWords

from .LossPlot import LossPlot
from .Pictures import pixmapOf, received, showIn, widthIn
from .Status import allow, unless

_PICTURE_HEIGHT = 180


class TrainingView:
    """Shows one `Run` at a time, in the frame of the panel that is only there while it runs."""

    def __init__(self, ui: Any) -> None:
        self.ui = ui
        self.plot = LossPlot(ui.plotLabel)
        self.run: Run | None = None
        self._isEnding = False
        self.update()

    @property
    def isRunning(self) -> bool:
        """Whether the run that is shown goes on."""
        return self.run is not None and self.run.isRunning

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about the run that ended last."""
        return self.run.warnings if self.run is not None else ()

    def watch(self, run: Run, sentence: str, hasCurves: bool = False) -> None:
        """Show a run from now on, beginning with a sentence."""
        self.run, self._isEnding = run, False
        self.plot.clear()
        self.ui.plotLabel.setVisible(hasCurves)
        self.ui.stopButton.setVisible(hasCurves)
        self.ui.heldOutLabel.setVisible(False)
        self.ui.trainingProgressBar.setValue(0)
        self.ui.trainingLabel.setText(sentence)
        self.update()

    def onProgress(self, message: Mapping[str, Any]) -> None:
        """Take a `RunProgress`."""
        if "picture" in message:
            picture, width = pixmapOf(received(message["picture"])), widthIn(self.ui.adaptSection)
            showIn(self.ui.heldOutLabel, picture, width, _PICTURE_HEIGHT)
        if not self._isEnding:
            self.ui.trainingLabel.setText(_progressInWords(message))
        self.ui.trainingProgressBar.setValue(round(100 * (message["fraction"] or 0.0)))
        self.plot.add(message)
        self.update()

    def stopAndKeepBest(self) -> None:
        """End the training well, with the best so far."""
        if self.run is not None:
            self.run.stopAndKeepBest()
            self._end(_("Stopping; the best checkpoint is kept..."))

    def cancel(self) -> None:
        """Give the run up."""
        if self.run is not None:
            self.run.cancel()
            self._end(_("Cancelling..."))

    def _end(self, sentence: str) -> None:
        self._isEnding = True
        self.ui.trainingLabel.setText(sentence)
        self.update()

    def update(self) -> None:
        """Show the frame while there is a run, and allow to stop once there is something to keep."""
        canKeep = self.run is not None and self.run.canKeepBest and not self._isEnding
        allow(self.ui.stopButton, unless(canKeep, _("there is nothing to keep yet")))
        self.ui.trainingFrame.setVisible(self.isRunning)


def _progressInWords(message: Mapping[str, Any]) -> str:
    if not message["total"]:
        return message["message"]
    words = _("{stage}: step {step} of {total}").format(
        stage=message["message"].capitalize(), step=message["step"], total=message["total"]
    )
    if message["remaining_s"] is not None:
        words += _(", about {time} left").format(time=durationInWords(message["remaining_s"]))
    return words
