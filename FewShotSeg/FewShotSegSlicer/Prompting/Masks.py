"""The masks in the segments of one segmentation: the preview, what was accepted, and the way back and forth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from FewShotSegSlicer.Scene.SegmentWriter import SegmentWriter

from .History import History, Mask, PromptStep, PropagationStep, SliceState, Step
from .Prompts import Place


@dataclass(frozen=True, eq=False)
class Preview:
    """A mask in the segment that is not accepted yet, and the step that brought it."""

    place: Place
    mask: Mask
    step: PromptStep | None


class Masks:
    """Keeps what the writer can take back in step with the history.

    At most one slice has a preview, and it belongs to the last step. So what was accepted is taken back in the order of
    the steps.
    """

    def __init__(self, writer: SegmentWriter, onAccepted: Callable[[Place], None] = lambda place: None) -> None:
        self.writer = writer
        self._onAccepted = onAccepted
        self.history = History()
        self.preview: Preview | None = None

    def answer(self, place: Place, state: SliceState) -> None:
        """Show the mask that answers a prompt; it completes the step that asked.

        When other steps were made since, because the slice had been left, it is a step of its own: it comes after them.
        """
        step = self.history.last
        if not isinstance(step, PromptStep) or step.place != place:
            step = PromptStep(*place, before=SliceState(state.prompt), after=state)
            self.history.push(step)
        step.after = state
        self.show(place, state.mask)

    def show(self, place: Place, mask: Mask | None) -> None:
        """Show a mask as the preview; None shows what was accepted."""
        if mask is None:
            self.drop(place)
            return
        step = self.history.last
        self.writer.showLive(*place, mask)
        self.preview = Preview(place, mask, step if isinstance(step, PromptStep) else None)

    def drop(self, place: Place) -> None:
        """Take the preview of this slice away, if there is one."""
        if self.preview is not None and self.preview.place == place:
            self.preview = None
            self.writer.restore(*place)

    def accept(self) -> None:
        """Accept the preview, if there is one."""
        preview, self.preview = self.preview, None
        if preview is not None:
            self.writer.accept(*preview.place, preview.mask)
            if preview.step is not None:
                preview.step.isAccepted = True
            self._onAccepted(preview.place)

    def acceptMany(self, step: PropagationStep) -> None:
        """Accept the masks of a propagation."""
        self.writer.acceptSlices(step.segmentId, step.axis, step.masks)

    def undo(self) -> Step | None:
        """Take what was accepted in the last step back and return it; None when there is no step.

        The preview is the caller's to change. `LookupError` if the writer has forgotten: the history starts anew.
        """
        step = self.history.undo()
        if step is not None and (isinstance(step, PropagationStep) or step.isAccepted):
            if not self.writer.undo():
                self.history.clear()
                raise LookupError("The segment was changed too often since.")
            if isinstance(step, PromptStep):
                step.isAccepted = False
        return step

    def redo(self) -> Step | None:
        """Write again what propagation wrote, and return the step that is done again; None when there is none.

        A preview is accepted where it was before this step; otherwise it is what the step, and the caller, changes.
        """
        step = self.history.next
        wasPreviewed = isinstance(step, PromptStep) and step.before.mask is not None
        if step is not None and not wasPreviewed:
            self.accept()
        self.history.redo()
        if isinstance(step, PropagationStep):
            self.acceptMany(step)
        return step

    def forget(self, segmentId: str) -> None:
        """Let go of a segment that was removed."""
        self.history.clear()
        if self.preview is not None and self.preview.place[0] == segmentId:
            self.preview = None
