"""Prompts -> the newest mask -> the segment, with everything taken back and done again in one step. No Qt.

What is on the screen is the mask of the prompts on the screen: an answer is used only while its question would be asked
again word for word (prompts, slice, volume, model, segment). At most one slice has a preview; moving on to another one
accepts it, or drops it when it is older than the slice's prompts.

    live = LiveSegmenter(workers)
    live.setTarget(volumeNode, segmentationNode, segmentId)
    live.setSlice(0, 42)
    live.addPoint(0, 42, (10.0, -35.0, 120.0), positive=True)
    ...                                                         # workers.poll(); live.poll(), from a timer
    live.accept()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene.Geometry import checkedSlice
from FewShotSegSlicer.Scene.SegmentWriter import SegmentWriter
from FewShotSegSlicer.Workers.Workers import Workers

from .LiveSignals import LiveSignals
from .Prompts import Point, PromptStore, Slice, SlicePrompt, sampled
from .Question import Model
from .Session import Session
from .Target import Target
from .ViewedSlices import ViewedSlices

SCROLLING_S = 0.15  # since the last change of slice: still scrolling
IDLE_S = 0.4  # since the last click or change of slice: time for what nobody waits for


class LiveSegmenter:
    """The prompts of a segmentation and the masks that answer them.

    Methods raise `InputError` for what cannot be done; what goes wrong later is told by `failed`.
    """

    def __init__(self, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        self.signals = signals = LiveSignals()
        self.changed, self.failed, self.timed = signals.changed, signals.failed, signals.timed
        self.moved, self.progressed, self.accepted = signals.moved, signals.progressed, signals.accepted
        self._workers, self._clock = workers, clock
        self._session: Session | None = None
        self._model = Model()
        self._viewed = ViewedSlices(clock)
        self._generation = workers.generation
        self._complaint = ""  # of the last poll, not to be repeated with every one

    # -------------------------------------------------------------------------------------------------- what is there

    @property
    def target(self) -> Target | None:
        """What is worked on, None when nothing is."""
        return self._session.target if self._session is not None else None

    @property
    def segmentId(self) -> str | None:
        """The segment that is worked on."""
        return self._session.target.segmentId if self._session is not None else None

    @property
    def prompts(self) -> PromptStore:
        """The prompts of the segmentation that is worked on."""
        return self._session.prompts if self._session is not None else PromptStore()

    @property
    def activeSlice(self) -> Slice | None:
        """(axis, index) of the slice that was last clicked on or scrolled to."""
        return self._viewed.active

    @property
    def writer(self) -> SegmentWriter | None:
        """What writes into the segmentation; its options (overwrite mode, editable area) are the user's."""
        return self._session.masks.writer if self._session is not None else None

    @property
    def hasPreview(self) -> bool:
        """Whether a mask is shown that is not accepted yet."""
        return self._session is not None and self._session.masks.preview is not None

    @property
    def isWaiting(self) -> bool:
        """Whether the answer to a click is under way."""
        return self._session is not None and self._session.isWaiting

    @property
    def isPropagating(self) -> bool:
        """Whether propagation is under way."""
        return self._session is not None and self._session.isPropagating

    @property
    def canUndo(self) -> bool:
        """Whether there is a step to take back."""
        return self._session is not None and self._session.masks.history.last is not None

    @property
    def canRedo(self) -> bool:
        """Whether there is a step to do again."""
        return self._session is not None and self._session.masks.history.next is not None

    def promptOn(self, axis: int, index: int) -> SlicePrompt:
        """Return the prompt of the current segment on a slice."""
        return self.prompts.get(self.segmentId or "", axis, index)

    # ------------------------------------------------------------------------------------------------------- choosing

    def setTarget(self, volumeNode: Any, segmentationNode: Any, segmentId: str | None) -> None:
        """Work on a segment of a segmentation, over a volume. None for a node, or `InputError`: work on nothing.

        What is shown is kept. Undo goes on across the segments of a segmentation, but not into another one.
        """
        session = self._session
        if session is not None:
            session.cancelPropagation()
            session.endDrag()
        if session is not None and session.target.isOf(volumeNode, segmentationNode):
            if session.target.segmentId == segmentId:
                return
            session.chooseSegment(segmentId)
        else:
            self._closeSession()
            if volumeNode is not None and segmentationNode is not None:
                target = Target(self._workers, volumeNode, segmentationNode, segmentId)
                self._session = Session(self._workers, self._clock, target, self._model, self._viewed, self.signals)
                self._session.restoreFromScene()
        self.changed()

    def _closeSession(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._viewed.forget()

    def setModel(self, adapterPath: str | None, base: str | None = None) -> None:
        """Answer with an adapter, or with a base model alone; a preview is asked for again."""
        self._model = Model(adapterPath, base, self._model.choice + 1)
        if self._session is not None:
            self._session.setModel(self._model)

    def setSlice(self, axis: int, index: int, view: str = "") -> None:
        """Say which slice a view shows; cheap, to be called at every change."""
        self._viewed.show((axis, index), view)

    def closeView(self, view: str) -> None:
        """Say that a view shows no slice of the volume any more."""
        self._viewed.close(view)

    def leave(self) -> None:
        """Stop here, as when the module is left: what is shown is kept, what is under way is not waited for."""
        self.cancelPropagation()
        self._viewed.closeAll()
        if self._session is not None:
            self._session.leave()

    # -------------------------------------------------------------------------------------------------------- editing

    def addPoint(self, axis: int, index: int, point_ras: Sequence[float], positive: bool) -> None:
        """Add a point inside (positive) or outside the structure."""
        session = self._ready(axis, index)
        point = session.target.pointOnSlice(axis, index, point_ras)
        session.edit(axis, index, self.promptOn(axis, index).withPoint(point, positive))

    def addScribble(self, axis: int, index: int, line_ras: Sequence[Point], positive: bool) -> None:
        """Add a freehand line inside or outside the structure as points along it, in one step. It continues a point
        that is there already, where it begins."""
        session, prompt = self._ready(axis, index), self.promptOn(axis, index)
        for point_ras in sampled(line_ras)[1:]:
            prompt = prompt.withPoint(session.target.pointOnSlice(axis, index, point_ras), positive)
        session.edit(axis, index, prompt)

    def movePoint(self, axis: int, index: int, number: int, point_ras: Sequence[float], dragging: bool = False) -> None:
        """Move a point, counted from 0. With `dragging` more is to come: all of it becomes one step."""
        session = self._ready(axis, index)
        point = session.target.pointOnSlice(axis, index, point_ras)
        session.edit(axis, index, self.promptOn(axis, index).withPointMoved(number, point), dragging)

    def removePoint(self, axis: int, index: int, number: int) -> None:
        """Remove a point, counted from 0."""
        self._ready(axis, index).edit(axis, index, self.promptOn(axis, index).withoutPoint(number))

    def setBox(self, axis: int, index: int, box_ras: Sequence[Sequence[float]] | None, dragging: bool = False) -> None:
        """Set the box by two opposite corners, cut to the volume; None removes it. `dragging` as in `movePoint`."""
        session = self._ready(axis, index)
        box = None if box_ras is None else session.target.boxOnSlice(axis, index, box_ras)
        session.edit(axis, index, self.promptOn(axis, index).withBox(box), dragging)

    def clear(self, axis: int, index: int) -> None:
        """Remove the prompts of a slice and the preview they brought; what was accepted stays."""
        self._ready(axis, index).edit(axis, index, SlicePrompt())

    def _ready(self, axis: int, index: int) -> Session:
        session = self._session
        if session is None or not session.target.isThere:
            raise InputError("There is nothing to put a prompt on: choose a volume and a segment first.")
        checkedSlice(session.target.volumeNode, axis, index)
        session.target.volumeName()  # a volume that cannot be worked on is refused before anything is changed
        return session

    def accept(self) -> None:
        """Keep the mask that is shown; when an answer is still under way, keep that as soon as it is there."""
        if self._session is not None:
            self._session.accept()

    def undo(self) -> None:
        """Take back the last change of prompts together with what it did to the segment, wherever that was."""
        if self._session is not None:
            self._session.undo()

    def redo(self) -> None:
        """Do again what was taken back last."""
        if self._session is not None:
            self._session.redo()

    def propagate(self, direction: Literal[-1, 0, 1], count: int) -> None:
        """Follow the segment from its prompted slices to up to `count` slices below (-1), above (1) or both ways (0).

        Slices with prompts, or with a mask that propagation did not make, are left alone; so a correction there leads
        the next propagation. A click stops it.
        """
        active = self._viewed.active
        if active is None:
            raise InputError("Propagation starts from slices with a prompt: click on one first.")
        self._ready(*active).propagate(active[0], direction, count)

    def cancelPropagation(self) -> None:
        """Stop propagating; nothing is written."""
        if self._session is not None:
            self._session.cancelPropagation()

    # -------------------------------------------------------------------------------------------------------- polling

    def poll(self) -> None:
        """Do what is due: to be called whenever `Workers.poll` was. Never waits."""
        self._letGo()
        now, session = self._clock(), self._session
        if session is None or not session.target.isSegmentThere or now - self._viewed.changedAt < SCROLLING_S:
            return
        session.settleUnseen()
        if session.isWaiting or session.isPropagating:
            return
        isIdle = now - max(self._viewed.changedAt, session.touchedAt) >= IDLE_S
        try:
            session.askAhead(isIdle)
            self._complaint = ""
        except InputError as error:  # the volume cannot be worked on as it is now
            if str(error) != self._complaint:
                self._complaint = str(error)
                self.failed(self._complaint)
        if isIdle:
            session.tidy()

    def _letGo(self) -> None:
        """Let go of nodes and segments that were removed, and of answers that will not come."""
        if self._session is not None and not self._session.target.areNodesThere:
            self.setTarget(None, None, None)
        if self._session is not None:
            self._session.forgetLostSegments()
        if self._generation != self._workers.generation:
            self._generation = self._workers.generation
            if self._session is not None:
                self._session.forgetAnswers()

    # ---------------------------------------------------------------------------------------------------------- scene

    def saveToScene(self) -> None:
        """Write the prompts into tags of their segments, which are saved with the segmentation."""
        if self._session is not None:
            self._session.saveToScene()
