"""The work on one segmentation over one volume: its prompts, the masks that answer them, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from FewShotSegSlicer.Scene.SegmentWriter import SegmentWriter
from FewShotSegSlicer.Workers.Workers import Workers

from . import PromptTags
from .Asking import Asking
from .History import Mask, PromptStep, PropagationStep, SliceState, Step
from .LiveSignals import LiveSignals
from .Lookahead import Lookahead, neighbours
from .Masks import Masks
from .Prompts import Place, PromptStore, Slice, SlicePrompt
from .Propagation import Propagation
from .Question import Model, Question
from .Target import Target
from .ViewedSlices import ViewedSlices


@dataclass(frozen=True, eq=False)
class _Drag:
    """A point or a box that is being dragged; all of it is one step."""

    step: PromptStep
    newest: SlicePrompt | None = None
    """Where the mouse has come to while an answer is under way."""


class Session:
    """From the choice of the nodes until `close`. At most one slice has a preview: a mask that is not accepted yet."""

    def __init__(
        self,
        workers: Workers,
        clock: Callable[[], float],
        target: Target,
        model: Model,
        viewed: ViewedSlices,
        signals: LiveSignals,
    ) -> None:
        """Raise `InputError` where the segmentation cannot be written."""
        self.target, self._model, self._viewed = target, model, viewed
        self._clock, self._signals = clock, signals
        self.prompts = PromptStore()
        writer = SegmentWriter(target.segmentationNode, target.volumeNode)
        self.masks = Masks(writer, lambda place: signals.accepted(*place[1:]))
        self.touchedAt = clock()
        """When the user last did something here."""
        self._isTidy = True
        self._drag: _Drag | None = None
        self._lookahead = Lookahead(workers)
        self._asking = Asking(
            workers,
            self._lookahead,
            clock,
            questionOf=self._questionOf,
            isCurrent=self._isCurrent,
            onAnswer=self._show,
            onAnswered=self._finish,
            onFailed=self._giveUp,
            tell=signals.failed,
        )
        self._propagation = Propagation(
            workers,
            self.prompts,
            onDone=self._takePropagated,
            onFailed=self._failPropagation,
            onProgress=signals.progressed,
        )

    def close(self) -> None:
        """Let go of the nodes, which may have left the scene; what is shown is kept."""
        self._drag = None
        self.cancelPropagation()
        if self.target.areNodesThere:
            self.settle()
        self._asking.clear()
        self.target.forgetVolume()
        self.masks.writer.close()

    def leave(self) -> None:
        """Keep what is shown, and do not wait for what is under way."""
        self._drag = None
        self._asking.giveUp()
        if self.target.areNodesThere:
            self.settle()
            self._signals.changed()

    @property
    def isWaiting(self) -> bool:
        """Whether the answer to a click is under way."""
        return self._asking.isUnderWay

    @property
    def isPropagating(self) -> bool:
        """Whether propagation is under way."""
        return self._propagation.isUnderWay

    def chooseSegment(self, segmentId: str | None) -> None:
        """Work on another segment; the preview of the one before is accepted."""
        self.settle()
        self.target.segmentId = segmentId
        self.touchedAt = self._clock()

    def setModel(self, model: Model) -> None:
        """Have another model answer; a preview is asked for again."""
        self.cancelPropagation()
        self._model = model
        self._lookahead.forget()
        self._asking.giveUp()
        if self.masks.preview is not None:
            self._asking.oweAnew(self.masks.preview.place)

    def endDrag(self) -> None:
        """What is dragged from now on is another step."""
        self._drag = None

    # -------------------------------------------------------------------------------------------------------- editing

    def edit(self, axis: int, index: int, prompt: SlicePrompt, dragging: bool = False) -> None:
        """Replace the prompt of a slice, and see to its mask; with `dragging` more is to come, all of it one step."""
        place = (self.target.segmentId or "", axis, index)
        drag = self._drag if self._drag is not None and self._drag.step.place == place else None
        if dragging and drag is not None and self.isWaiting:
            # Asked for when the answer has come: otherwise no answer would ever be the newest.
            self._drag = _Drag(drag.step, newest=prompt)
            return
        step, isSame = drag.step if drag is not None else None, prompt == self.prompts.get(*place)
        if step is None and not isSame:
            self.cancelPropagation()
            step = PromptStep(*place, before=self._stateOf(place), after=SliceState(prompt))
            self.masks.history.push(step)
        self._drag = _Drag(step) if dragging and step is not None else None
        if step is not None and not isSame:
            self._put(step, prompt)

    def _stateOf(self, place: Place) -> SliceState:
        preview, isOwed = self.masks.preview, self._asking.isOwed(place)
        isShown = preview is not None and preview.place == place and not isOwed
        return SliceState(self.prompts.get(*place), preview.mask if preview and isShown else None, isOwed)

    def _put(self, step: PromptStep, prompt: SlicePrompt) -> None:
        """Make a prompt the slice's, as the outcome of a step, and see to its mask."""
        place = step.place
        step.after = SliceState(prompt, isOwed=not prompt.isEmpty)
        self.prompts.set(*place, prompt)
        self._touch(place)
        if prompt.isEmpty:
            self._asking.forgive(place)
            self.masks.drop(place)
        else:
            self._asking.ask(place)
        self.settle(exceptOn=place)  # while the worker is busy with the answer
        self.saveToScene()
        self._signals.changed()

    def _touch(self, place: Place) -> None:
        """Take note that a slice is being worked on."""
        self._isTidy = False
        self.touchedAt = self._clock()
        self._asking.acceptAtOnce(False)
        self._viewed.workOn(place[1:])

    # --------------------------------------------------------------------------------------------- asking and showing

    def _questionOf(self, place: Place) -> Question | None:
        target, prompt = self.target, self.prompts.get(*place)
        isShown = place[0] == target.segmentId and place[1:] in self._viewed
        if prompt.isEmpty or not isShown or not target.isThere:
            return None
        segmentation = target.segmentationNode.GetID()
        return Question(target.volumeName(), self._model, segmentation, place[0], target.structure, *place[1:], prompt)

    def _isCurrent(self, question: Question) -> bool:
        isVolumeSame = self.target.areNodesThere and self.target.isVolumeSent
        return isVolumeSame and question == self._questionOf(question.place)

    def _show(self, question: Question, mask: Mask | None) -> None:
        self.settle(exceptOn=question.place)
        self.masks.answer(question.place, SliceState(question.prompt, mask))

    def _finish(self, place: Place, seconds: float, isAcceptedAtOnce: bool) -> None:
        if isAcceptedAtOnce:
            self.masks.accept()
        self._signals.timed(seconds)
        drag = self._drag
        if drag is not None and drag.step.place == place and drag.newest is not None:
            self._drag = _Drag(drag.step)
            self._put(drag.step, drag.newest)
        self._signals.changed()

    def _giveUp(self, place: Place, message: str) -> None:
        self.masks.drop(place)
        self._signals.failed(message)
        self._signals.changed()

    def settle(self, exceptOn: Place | None = None) -> None:
        """Accept the preview of a slice that is left, or drop it if it is older than the slice's prompts."""
        masks = self.masks
        if masks.preview is None or masks.preview.place == exceptOn:
            return
        self._isTidy = False
        with self._signals.tellingErrors():  # the segmentation may not be writable any more
            masks.drop(masks.preview.place) if self._asking.isOwed(masks.preview.place) else masks.accept()

    # ---------------------------------------------------------------------------------------------- accept, undo, redo

    def accept(self) -> None:
        """Keep the mask that is shown; when an answer is still under way, keep that as soon as it is there."""
        self._drag = None
        preview = self.masks.preview
        if self.isWaiting or (preview is not None and self._asking.isOwed(preview.place)):
            self._asking.acceptAtOnce()
        else:
            self.masks.accept()
            self._isTidy = False
            self._signals.changed()

    def undo(self) -> None:
        """Take back the last change of prompts together with what it did to the segment, wherever that was."""
        self.cancelPropagation()
        self._drag = None
        try:
            step = self.masks.undo()
        except LookupError as error:
            self._signals.failed(f"{error} This cannot be undone any more.")
            step = None
        self._goTo(step, isBack=True)

    def redo(self) -> None:
        """Do again what was taken back last."""
        self.cancelPropagation()
        self._drag = None
        self._goTo(self.masks.redo(), isBack=False)

    def _goTo(self, step: Step | None, isBack: bool) -> None:
        """Look at the slice of a step, and bring it into its state before or after the step."""
        if step is not None:
            self.target.segmentId = step.segmentId
            self._touch(step.place)
            self._signals.moved(*step.place)
        if isinstance(step, PropagationStep):
            self.prompts.setPropagated(step.segmentId, step.before if isBack else step.after)
        elif step is not None:
            self._restore(step.place, step.before if isBack else step.after)
        self.saveToScene()
        self._signals.changed()

    def _restore(self, place: Place, state: SliceState) -> None:
        self.prompts.set(*place, state.prompt)
        self._asking.forgive(place)
        self.masks.show(place, state.mask)
        if state.isOwed:
            self._asking.ask(place)

    # ---------------------------------------------------------------------------------------------------- propagation

    def propagate(self, axis: int, direction: int, count: int) -> None:
        """Follow the segment from its prompted slices to their neighbours."""
        self.cancelPropagation()
        self.settle()
        self._propagation.start(self.target, self._model, axis, direction, count)
        self._signals.changed()

    def cancelPropagation(self) -> None:
        """Stop propagating; nothing is written."""
        if self._propagation.cancel():
            self._signals.changed()

    def _takePropagated(self, step: PropagationStep | None) -> None:
        if step is None:
            self._signals.failed("Propagation found nothing beyond the slices that have prompts or masks already.")
        else:
            self.masks.history.push(step)
            self.masks.acceptMany(step)
            self._propagation.mark(self.target, step)
            self._isTidy = False
            self.saveToScene()
        self._signals.changed()

    def _failPropagation(self, message: str) -> None:
        self._signals.failed(message)
        self._signals.changed()

    # -------------------------------------------------------------------------------------- when there is time for it

    def settleUnseen(self) -> None:
        """Settle the preview once no view shows its slice any more."""
        if self.masks.preview is not None and self.masks.preview.place[1:] not in self._viewed:
            self.settle()
            self._signals.changed()

    def askAhead(self, isIdle: bool) -> None:
        """Ask for a mask that is owed; when none is, have slices encoded: neighbours too when there is time.

        `InputError` where the volume cannot be worked on as it is now.
        """
        if not self._asking.askOwed(first=self._viewed.active):
            self._lookahead.encode(self.target.volumeName(), self._model, self._slicesAhead(isIdle))

    def _slicesAhead(self, isIdle: bool) -> list[Slice]:
        viewed, active = self._viewed.inOrder(), self._viewed.active
        if not isIdle or active is None or active not in viewed:
            return viewed
        return [*viewed, *neighbours(*active, self.target.shape[active[0]])]

    def tidy(self) -> None:
        """Do what can wait until the user pauses."""
        if not self._isTidy:
            self._isTidy = True
            self.masks.writer.idle()

    def forgetAnswers(self) -> None:
        """The workers were closed: nobody will answer."""
        self._asking.giveUp()
        self._lookahead.forget()
        self.cancelPropagation()

    def forgetLostSegments(self) -> None:
        """Let go of segments that were removed."""
        lost = [segmentId for segmentId in self.prompts.segmentIds() if self.target.segment(segmentId) is None]
        for segmentId in lost:
            self.prompts.remove(segmentId)
            self.masks.forget(segmentId)
            self._asking.forgiveSegment(segmentId)
        if lost:
            self._signals.changed()

    # ---------------------------------------------------------------------------------------------------------- scene

    def saveToScene(self) -> None:
        """Write the prompts into tags of their segments, which are saved with the segmentation.

        Done after every change: it takes a tenth of a millisecond, and Slicer does not tell before it saves.
        """
        PromptTags.save(self.prompts, self.target.segmentationNode)

    def restoreFromScene(self) -> None:
        """Read the prompts from the tags of the segments; those that do not fit the volume are left out, and told."""
        for problem in PromptTags.restore(self.prompts, self.target):
            self._signals.failed(problem)
        self._signals.changed()
