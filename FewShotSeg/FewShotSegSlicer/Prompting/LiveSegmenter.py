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

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Scene.Geometry import checkedSlice
from FewShotSegSlicer.Scene.SegmentWriter import SegmentWriter
from FewShotSegSlicer.Signal import Signal
from FewShotSegSlicer.Workers.Workers import Workers

from . import PromptTags
from .History import PromptStep, PropagationStep, SliceState, Step
from .Lookahead import Lookahead, neighbours
from .Masks import Masks, Place
from .Prompts import PromptStore, SlicePrompt
from .Propagation import Propagation
from .Target import Model, Question, Target

SCROLLING_S = 0.15  # since the last change of slice: still scrolling
IDLE_S = 0.4  # since the last click or change of slice: time for what nobody waits for

Slice = tuple[int, int]  # axis, index


class LiveSegmenter:
    """The prompts of a segmentation and the masks that answer them.

    Methods raise `InputError` for what cannot be done; what goes wrong later is told by `failed`.
    """

    def __init__(self, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        self.changed = Signal()
        """(): prompts, masks or what can be undone changed."""
        self.failed = Signal()
        """(message)"""
        self.timed = Signal()
        """(seconds from a click to its mask in the segment)"""
        self.moved = Signal()
        """(segmentId, axis, index): undo or redo changed something there."""
        self.progressed = Signal()
        """(the worker's progress message) during propagation"""
        self.prompts = PromptStore()
        self._workers, self._clock = workers, clock
        self._target: Target | None = None
        self._masks: Masks | None = None
        self._model = Model()
        self._lookahead = Lookahead(workers)
        self._propagation = Propagation(
            workers,
            self.prompts,
            onDone=self._takePropagated,
            onFailed=self._failPropagation,
            onProgress=self.progressed,
        )
        self._viewed: dict[str, Slice] = {}
        self._active: Slice | None = None
        self._owed: dict[Place, float] = {}  # prompts whose answer is still to come -> when they were given
        self._waiting: Question | None = None
        self._retried: Question | None = None
        self._refused: Question | None = None
        self._drag: PromptStep | None = None
        self._dragged: SlicePrompt | None = None  # where the mouse has come to while the last answer is under way
        self._acceptsAnswer = False
        self._generation = workers.generation
        self._complaint = ""  # of the last poll, not to be repeated with every one
        self._scrolledAt = self._touchedAt = clock()
        self._isTidy = True

    # -------------------------------------------------------------------------------------------------- what is there

    @property
    def target(self) -> Target | None:
        return self._target

    @property
    def segmentId(self) -> str | None:
        return self._target.segmentId if self._target is not None else None

    @property
    def activeSlice(self) -> Slice | None:
        """(axis, index) of the slice that was last clicked on or scrolled to."""
        return self._active

    @property
    def writer(self) -> SegmentWriter | None:
        """What writes into the segmentation; its options (overwrite mode, editable area) are the user's."""
        return self._masks.writer if self._masks is not None else None

    @property
    def hasPreview(self) -> bool:
        """Whether a mask is shown that is not accepted yet."""
        return self._masks is not None and self._masks.preview is not None

    @property
    def isWaiting(self) -> bool:
        """Whether the answer to a click is under way."""
        return self._waiting is not None

    @property
    def isPropagating(self) -> bool:
        return self._propagation.isUnderWay

    @property
    def canUndo(self) -> bool:
        return self._masks is not None and self._masks.history.last is not None

    @property
    def canRedo(self) -> bool:
        return self._masks is not None and self._masks.history.next is not None

    def promptOn(self, axis: int, index: int) -> SlicePrompt:
        """Return the prompt of the current segment on a slice."""
        return self.prompts.get(self.segmentId or "", axis, index)

    # ------------------------------------------------------------------------------------------------------- choosing

    def setTarget(self, volumeNode: Any, segmentationNode: Any, segmentId: str | None) -> None:
        """Work on a segment of a segmentation, over a volume. None for a node, or `InputError`: work on nothing.

        What is shown is kept. Undo goes on across the segments of a segmentation, but not into another one.
        """
        target = self._target
        self.cancelPropagation()
        self._drag = None
        if target is not None and (target.volumeNode, target.segmentationNode) == (volumeNode, segmentationNode):
            if target.segmentId == segmentId:
                return
            self._settle()
            target.segmentId = segmentId
        else:
            self._leaveNodes()
            if volumeNode is not None and segmentationNode is not None:
                self._masks = Masks(SegmentWriter(segmentationNode, volumeNode))  # refuses grids that do not fit
                self._target = Target(self._workers, volumeNode, segmentationNode, segmentId)
                self.restoreFromScene()
        self._touchedAt = self._clock()
        self.changed()

    def _leaveNodes(self) -> None:
        target, masks = self._target, self._masks
        if target is not None and masks is not None:
            if target.areNodesThere:
                self._settle()
            target.forgetVolume()
            masks.writer.close()
        self._target = self._masks = self._waiting = self._active = None
        self._viewed.clear()
        self._owed.clear()
        self._lookahead.forget()
        self.prompts.clear()

    def setModel(self, adapterPath: str | None, base: str | None = None) -> None:
        """Answer with an adapter, or with a base model alone; a preview is asked for again."""
        self.cancelPropagation()
        self._model = Model(adapterPath, base, self._model.choice + 1)
        self._lookahead.forget()
        self._waiting = None
        if self._masks is not None and self._masks.preview is not None:
            self._owed.setdefault(self._masks.preview.where, self._clock())

    def setSlice(self, axis: int, index: int, view: str = "") -> None:
        """Say which slice a view shows; cheap, to be called at every change."""
        if self._viewed.get(view) == (axis, index):
            return
        isScrolled = view in self._viewed
        self._viewed[view] = (axis, index)
        if isScrolled or not view or self._active is None:  # of views that appear together, the first
            self._active = (axis, index)
        if view:
            self._viewed.pop("", None)  # where the console worked without views
        self._scrolledAt = self._clock()

    def closeView(self, view: str) -> None:
        """Say that a view shows no slice of the volume any more."""
        if self._viewed.pop(view, None) is not None:
            self._scrolledAt = self._clock()

    def leave(self) -> None:
        """Stop here, as when the module is left: what is shown is kept, what is under way is not waited for."""
        self.cancelPropagation()
        self._viewed.clear()
        self._drag = self._waiting = None
        if self._target is not None and self._target.areNodesThere:
            self._settle()
            self.changed()

    # -------------------------------------------------------------------------------------------------------- editing

    def addPoint(self, axis: int, index: int, point_ras: Sequence[float], positive: bool) -> None:
        """Add a point inside (positive) or outside the structure."""
        point = self._ready(axis, index).pointOnSlice(axis, index, point_ras)
        self._edit(axis, index, self.promptOn(axis, index).withPoint(point, positive))

    def movePoint(self, axis: int, index: int, number: int, point_ras: Sequence[float], dragging: bool = False) -> None:
        """Move a point, counted from 0. With `dragging` more is to come: all of it becomes one step."""
        point = self._ready(axis, index).pointOnSlice(axis, index, point_ras)
        self._edit(axis, index, self.promptOn(axis, index).withPointMoved(number, point), dragging)

    def removePoint(self, axis: int, index: int, number: int) -> None:
        self._ready(axis, index)
        self._edit(axis, index, self.promptOn(axis, index).withoutPoint(number))

    def setBox(self, axis: int, index: int, box_ras: Sequence[Sequence[float]] | None, dragging: bool = False) -> None:
        """Set the box by two opposite corners, cut to the volume; None removes it. `dragging` as in `movePoint`."""
        target = self._ready(axis, index)
        box = None if box_ras is None else target.boxOnSlice(axis, index, box_ras)
        self._edit(axis, index, self.promptOn(axis, index).withBox(box), dragging)

    def clear(self, axis: int, index: int) -> None:
        """Remove the prompts of a slice and the preview they brought; what was accepted stays."""
        self._ready(axis, index)
        self._edit(axis, index, SlicePrompt())

    def _ready(self, axis: int, index: int) -> Target:
        target = self._target
        if target is None or not target.areNodesThere or not target.isSegmentThere:
            raise InputError("There is nothing to put a prompt on: choose a volume and a segment first.")
        checkedSlice(target.volumeNode, axis, index)
        target.volumeName()  # a volume that cannot be worked on is refused before anything is changed
        return target

    def _edit(self, axis: int, index: int, prompt: SlicePrompt, dragging: bool = False) -> None:
        assert self._masks is not None
        where = (self.segmentId or "", axis, index)
        step = self._drag if self._drag is not None and self._drag.where == where else None
        if dragging and step is not None and self._waiting is not None:
            self._dragged = prompt  # asked for when the answer has come, or no answer would ever be the newest
            return
        isSame = prompt == self.prompts.get(*where)
        if step is None and not isSame:
            self.cancelPropagation()
            step = PromptStep(*where, before=self._stateOf(where), after=SliceState(prompt))
            self._masks.history.push(step)
        self._drag, self._dragged = (step if dragging else None), None
        if step is not None and not isSame:
            self._put(step, prompt)

    def _stateOf(self, where: Place) -> SliceState:
        assert self._masks is not None
        preview, isOwed = self._masks.preview, where in self._owed
        isShown = preview is not None and preview.where == where and not isOwed
        return SliceState(self.prompts.get(*where), preview.mask if preview and isShown else None, isOwed)

    def _put(self, step: PromptStep, prompt: SlicePrompt) -> None:
        """Make a prompt the slice's, as the outcome of a step, and see to its mask."""
        where = step.where
        step.after = SliceState(prompt, isOwed=not prompt.isEmpty)
        self.prompts.set(*where, prompt)
        self._touch(where)
        if prompt.isEmpty:
            self._owed.pop(where, None)
            self._drop(where)
        else:
            self._owed[where] = self._clock()
            self._ask(where)
        self._settle(unless=where)  # while the worker is busy with the answer
        self.saveToScene()
        self.changed()

    def _touch(self, where: Place) -> None:
        """Make a slice the active one; without a view that shows it, as from the console, it counts as viewed."""
        self._isTidy = self._acceptsAnswer = False
        self._touchedAt = self._clock()
        self._active = where[1:]
        if self._active not in self._viewed.values():
            self._viewed[""] = self._active

    # --------------------------------------------------------------------------------------------- asking and showing

    def _question(self, where: Place) -> Question | None:
        """Return what would be asked now to get the mask of a slice; None where none is wanted."""
        target, prompt = self._target, self.prompts.get(*where)
        if target is None or not target.areNodesThere or not target.isSegmentThere:
            return None
        if prompt.isEmpty or where[0] != target.segmentId or where[1:] not in self._viewed.values():
            return None
        segmentation = target.segmentationNode.GetID()
        return Question(target.volumeName(), self._model, segmentation, where[0], target.structure, *where[1:], prompt)

    def _ask(self, where: Place) -> None:
        question = self._question(where)
        if question is None:
            return
        self._waiting, self._refused = question, None
        self._workers.request(
            "prompt",
            question.request(),
            onResult=lambda result: self._take(question, result),
            onError=lambda kind, message: self._fail(question, kind, message),
            onSuperseded=lambda: self._isStillWanted(question),
        )

    def _isStillWanted(self, question: Question) -> bool:
        """Take note that a question is no longer under way; returns whether its answer is the one to show."""
        if self._waiting == question:
            self._waiting = None
        target = self._target
        isVolumeSame = target is not None and target.areNodesThere and target.isVolumeSent
        return isVolumeSame and question.where in self._owed and question == self._question(question.where)

    def _take(self, question: Question, result: dict[str, Any]) -> None:
        if not self._isStillWanted(question):
            return
        assert self._masks is not None
        where = question.where
        mask = Prompt.from_dict({key: result[key] for key in ("axis", "index", "mask")}).mask
        self._lookahead.know(question.volume, question.model, where[1:])
        self._settle(unless=where)
        try:
            self._masks.answer(where, SliceState(question.prompt, mask))
        except InputError as error:  # the segmentation cannot be written any more
            self._refused = question
            self.failed(str(error))
            return
        asked = self._owed.pop(where)
        self._retried = None
        if self._acceptsAnswer:
            self._masks.accept()
            self._acceptsAnswer = False
        self.timed(self._clock() - asked)
        if self._drag is not None and self._drag.where == where and self._dragged is not None:
            prompt, self._dragged = self._dragged, None
            self._put(self._drag, prompt)
        self.changed()

    def _fail(self, question: Question, kind: str, message: str) -> None:
        isWanted = self._isStillWanted(question)
        if kind == "dead":
            self._lookahead.forget()
        if not isWanted or kind == "cancelled":
            return
        if kind == "dead" and question != self._retried:
            self._retried = question
            self.failed(f"{message} Your click is being answered again.")
            self._ask(question.where)
            return
        self._refused = question
        self._acceptsAnswer = False
        self._drop(question.where)
        self.failed(message)
        self.changed()

    def _drop(self, where: Place) -> None:
        assert self._masks is not None
        self._masks.drop(where)

    def _settle(self, unless: Place | None = None) -> None:
        """Accept the preview of a slice that is left, or drop it if it is older than the slice's prompts."""
        preview = self._masks.preview if self._masks is not None else None
        if self._masks is None or preview is None or preview.where == unless:
            return
        self._isTidy = False
        try:
            self._masks.drop(preview.where) if preview.where in self._owed else self._masks.accept()
        except InputError as error:  # the segmentation cannot be written any more
            self.failed(str(error))

    # ---------------------------------------------------------------------------------------------- accept, undo, redo

    def accept(self) -> None:
        """Keep the mask that is shown; when an answer is still under way, keep that as soon as it is there."""
        self._drag = None
        if self._masks is None:
            return
        preview = self._masks.preview
        if self.isWaiting or (preview is not None and preview.where in self._owed):
            self._acceptsAnswer = True
        else:
            self._masks.accept()
            self._isTidy = False
            self.changed()

    def undo(self) -> None:
        """Take back the last change of prompts together with what it did to the segment, wherever that was."""
        if self._masks is None:
            return
        self.cancelPropagation()
        self._drag = None
        try:
            step = self._masks.undo()
        except LookupError as error:
            self.failed(f"{error} This cannot be undone any more.")
            step = None
        self._goTo(step, isBack=True)

    def redo(self) -> None:
        """Do again what was taken back last."""
        if self._masks is None:
            return
        self.cancelPropagation()
        self._drag = None
        self._goTo(self._masks.redo(), isBack=False)

    def _goTo(self, step: Step | None, isBack: bool) -> None:
        """Look at the slice of a step, and bring it into its state before or after the step."""
        assert self._target is not None
        if step is not None:
            self._target.segmentId = step.segmentId
            self._touch(step.where)
            self.moved(*step.where)
        if isinstance(step, PropagationStep):
            self.prompts.setPropagated(step.segmentId, step.before if isBack else step.after)
        elif step is not None:
            self._restore(step.where, step.before if isBack else step.after)
        self.saveToScene()
        self.changed()

    def _restore(self, where: Place, state: SliceState) -> None:
        assert self._masks is not None
        self.prompts.set(*where, state.prompt)
        self._owed.pop(where, None)
        self._masks.show(where, state.mask)
        if state.isOwed:
            self._owed[where] = self._clock()
            self._ask(where)

    # ---------------------------------------------------------------------------------------------------- propagation

    def propagate(self, direction: Literal[-1, 0, 1], count: int) -> None:
        """Follow the segment from its prompted slices to up to `count` slices below (-1), above (1) or both ways (0).

        Slices with prompts, or with a mask that propagation did not make, are left alone; so a correction there leads
        the next propagation. A click stops it.
        """
        if self._active is None:
            raise InputError("Propagation starts from slices with a prompt: click on one first.")
        target = self._ready(*self._active)
        self.cancelPropagation()
        self._settle()
        self._propagation.start(target, self._model, self._active[0], direction, count)
        self.changed()

    def cancelPropagation(self) -> None:
        """Stop propagating; nothing is written."""
        if self._propagation.cancel():
            self.changed()

    def _takePropagated(self, step: PropagationStep | None) -> None:
        assert self._masks is not None
        assert self._target is not None
        if step is None:
            self.failed("Propagation found nothing beyond the slices that have prompts or masks already.")
        else:
            self._masks.history.push(step)
            self._masks.acceptMany(step)
            self._propagation.mark(self._target, step)
            self._isTidy = False
            self.saveToScene()
        self.changed()

    def _failPropagation(self, message: str) -> None:
        self.failed(message)
        self.changed()

    # -------------------------------------------------------------------------------------------------------- polling

    def poll(self) -> None:
        """Do what is due: to be called whenever `Workers.poll` was. Never waits."""
        self._forgetLost()
        if self._generation != self._workers.generation:  # they were closed: nobody will answer
            self._generation, self._waiting = self._workers.generation, None
            self._lookahead.forget()
            self.cancelPropagation()
        now, target, masks = self._clock(), self._target, self._masks
        if target is None or masks is None or not target.isSegmentThere or now - self._scrolledAt < SCROLLING_S:
            return
        if masks.preview is not None and masks.preview.where[1:] not in self._viewed.values():
            self._settle()
            self.changed()
        if self._waiting is not None or self.isPropagating:
            return
        isIdle = now - max(self._scrolledAt, self._touchedAt) >= IDLE_S
        try:
            if not self._askOwed():
                self._lookahead.encode(target.volumeName(), self._model, self._slicesAhead(isIdle))
            self._complaint = ""
        except InputError as error:  # the volume cannot be worked on as it is now
            if str(error) != self._complaint:
                self._complaint = str(error)
                self.failed(self._complaint)
        if isIdle and not self._isTidy:
            self._isTidy = True
            masks.writer.idle()

    def _askOwed(self) -> bool:
        """Ask for the mask of a viewed slice whose prompts have none yet; returns whether there was one."""
        for where in sorted(self._owed, key=lambda where: where[1:] != self._active):
            question = self._question(where)
            if question is not None and question != self._refused:
                self._owed[where] = self._clock()
                self._ask(where)
                return True
        return False

    def _slicesAhead(self, isIdle: bool) -> list[Slice]:
        """Return the viewed slices, the active one first, and when there is time its neighbours."""
        viewed = sorted(self._viewed.values(), key=lambda where: where != self._active)
        if not isIdle or self._active not in viewed:
            return viewed
        assert self._target is not None
        return [*viewed, *neighbours(*self._active, self._target.shape[self._active[0]])]

    def _forgetLost(self) -> None:
        """Let go of nodes and segments that were removed."""
        target, masks = self._target, self._masks
        if target is None or masks is None:
            return
        if not target.areNodesThere:
            self.setTarget(None, None, None)
            return
        lost = [segmentId for segmentId in self.prompts.segmentIds() if target.segment(segmentId) is None]
        for segmentId in lost:
            self.prompts.remove(segmentId)
            masks.forget(segmentId)
            self._owed = {where: since for where, since in self._owed.items() if where[0] != segmentId}
        if lost:
            self.changed()

    # ---------------------------------------------------------------------------------------------------------- scene

    def saveToScene(self) -> None:
        """Write the prompts into tags of their segments, which are saved with the segmentation.

        Done after every change: it takes a tenth of a millisecond, and Slicer does not tell before it saves.
        """
        if self._target is not None:
            PromptTags.save(self.prompts, self._target.segmentationNode)

    def restoreFromScene(self) -> None:
        """Read the prompts from the tags of the segments; those that do not fit the volume are left out, and told."""
        if self._target is not None:
            for problem in PromptTags.restore(self.prompts, self._target):
                self.failed(problem)
            self.changed()
