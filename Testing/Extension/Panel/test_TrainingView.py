"""A training as it is watched and ended."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from FewShotSegSlicer.Workers.Run import RunProgress
from Testing.Extension.panels import Case


def test_a_training_shows_its_progress_curves_and_picture(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.press(case.ui.adaptButton)
    run = case.runs["adapt"]
    picture = np.full((16, 64, 3), 77, np.uint8)
    sent = {"shape": list(picture.shape), "data": base64.b64encode(picture.tobytes()).decode()}
    for step in (1, 2, 3):
        run.progress(step=step, total=4, message="adapting", metrics={"loss": 1.0 / step, "score": 0.2 * step})
    run.progress(step=4, total=4, message="adapting", metrics={"loss": 0.2}, picture=sent)
    assert case.ui.trainingFrame.visible
    assert case.ui.trainingProgressBar.value == 100
    assert case.ui.trainingLabel.text == "Adapting: step 4 of 4, about 1 min 35 s left"
    assert len(case.panel.adapt.training.plot.loss) == 4
    assert case.panel.adapt.training.plot.dice == [(1, 0.2), (2, 0.4), (3, pytest.approx(0.6))]
    assert not case.ui.plotLabel.pixmap.isNull()
    assert not case.ui.heldOutLabel.pixmap.isNull()


def test_a_training_is_stopped_well_or_given_up(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.press(case.ui.adaptButton)
    run = case.runs["adapt"]
    run.canKeepBest = False
    run.progress(step=1, total=4, message="estimating 1/2", metrics={"loss": 1.0})
    assert not case.ui.stopButton.enabled
    run.canKeepBest = True
    run.progress(step=1, total=4, message="adapting", metrics={"loss": 1.0})
    case.press(case.ui.stopButton)
    assert run.told == ["stopAndKeepBest"]
    assert not case.ui.stopButton.enabled
    case.press(case.ui.cancelButton)
    run.failed("cancelled", "Cancelled.")
    assert "nothing was kept" in case.ui.adaptStatusLabel.text
    assert not case.ui.trainingFrame.visible
    assert case.ui.adaptButton.enabled


def test_a_job_without_curves_shows_words_and_a_bar(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.press(case.ui.measureButton)
    assert case.ui.trainingLabel.text == "Timing the first steps..."
    assert not case.ui.plotLabel.visible
    assert not case.ui.stopButton.visible
    case.panel.adapt.training.onProgress(
        RunProgress({"step": 0, "total": 0, "message": "Loading.", "metrics": {}}, fraction=None, remaining_s=None)
    )
    assert (case.ui.trainingLabel.text, case.ui.trainingProgressBar.value) == ("Loading.", 0)


def test_once_it_is_being_ended_its_words_stay(readyToAdapt: Case) -> None:
    case = readyToAdapt
    case.press(case.ui.adaptButton)
    run = case.runs["adapt"]
    run.progress(step=1, total=4, message="adapting", metrics={"loss": 1.0})
    case.press(case.ui.stopButton)
    run.progress(step=2, total=4, message="adapting", metrics={"loss": 0.5})
    assert case.ui.trainingLabel.text == "Stopping; the best checkpoint is kept..."
    assert case.ui.trainingProgressBar.value == 50
    run.done("organs.safetensors")
    case.press(case.ui.adaptButton)
    assert case.ui.trainingLabel.text == "Starting..."
    assert case.panel.adapt.training.plot.loss == []
