"""Asks the prompt worker for the masks that prompts are still owed, and hands over only what is still wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Workers.Workers import Workers

from .History import Mask
from .Lookahead import Lookahead
from .Prompts import Place, Slice
from .Question import Model, Question


@dataclass(frozen=True)
class Pending:
    """How things stand between the prompts and the worker: replaced as a whole, so that no half of it is ever old."""

    question: Question | None = None
    """Under way: neither answered nor given up."""
    retried: Question | None = None
    """Was asked again after the worker had died; once is enough."""
    refused: Question | None = None
    """Has no answer; the same is not asked again of itself."""
    isAcceptedAtOnce: bool = False
    """Whether the next mask is accepted as soon as it is there."""

    def asked(self, question: Question) -> Pending:
        """A question is under way, in place of any before."""
        return replace(self, question=question, refused=None)

    def ended(self, question: Question) -> Pending:
        """A question is not under way any more; a newer one may be."""
        return replace(self, question=None) if question == self.question else self

    def answered(self) -> Pending:
        """The mask is there."""
        return replace(self, retried=None, isAcceptedAtOnce=False)


class Asking:
    """Remembers which prompts are owed an answer. What becomes of it is told to

    - onAnswer(question, mask), which raises `InputError` where the mask cannot be shown; then
      onAnswered(place, seconds since the prompt was given, whether to accept the mask at once),
    - onFailed(place, message): it is not asked again of itself,
    - tell(message): something that the user should know meanwhile.
    """

    def __init__(
        self,
        workers: Workers,
        lookahead: Lookahead,
        clock: Callable[[], float],
        *,
        questionOf: Callable[[Place], Question | None],
        isCurrent: Callable[[Question], bool],
        onAnswer: Callable[[Question, Mask | None], None],
        onAnswered: Callable[[Place, float, bool], None],
        onFailed: Callable[[Place, str], None],
        tell: Callable[[str], None],
    ) -> None:
        """`questionOf(place)` is what to ask to get the mask of a slice, None where none is wanted; `isCurrent` whether
        a question would be asked again word for word."""
        self._workers, self._lookahead, self._clock = workers, lookahead, clock
        self._questionOf, self._isCurrent = questionOf, isCurrent
        self._onAnswer, self._onAnswered = onAnswer, onAnswered
        self._onFailed, self._tell = onFailed, tell
        self._owed: dict[Place, float] = {}  # -> when the prompt was given
        self._pending = Pending()
        self._advised: set[Model] = set()  # of which the user knows that they are slow here

    @property
    def isUnderWay(self) -> bool:
        """Whether an answer is under way."""
        return self._pending.question is not None

    def isOwed(self, place: Place) -> bool:
        """Whether the answer to the prompt of a slice is still to come."""
        return place in self._owed

    def ask(self, place: Place) -> None:
        """Owe an answer to the prompt of a slice from now on, and ask for it if that is possible now."""
        self._owed[place] = self._clock()
        self._ask(place)

    def askOwed(self, first: Slice | None) -> bool:
        """Ask for the mask of a slice that is owed one, beginning with `first`; returns whether there was one."""
        for place in sorted(self._owed, key=lambda place: place[1:] != first):
            question = self._questionOf(place)
            if question is not None and question != self._pending.refused:
                self._owed[place] = self._clock()
                self._send(question)
                return True
        return False

    def oweAnew(self, place: Place) -> None:
        """The mask of a slice is not the right one any more, as after another model was chosen."""
        self._owed.setdefault(place, self._clock())

    def forgive(self, place: Place) -> None:
        """Nothing is owed to a slice any more."""
        self._owed.pop(place, None)

    def forgiveSegment(self, segmentId: str) -> None:
        """Nothing is owed to a segment any more."""
        self._owed = {place: since for place, since in self._owed.items() if place[0] != segmentId}

    def acceptAtOnce(self, isAcceptedAtOnce: bool = True) -> None:
        """Say whether the next mask is accepted as soon as it is there."""
        self._pending = replace(self._pending, isAcceptedAtOnce=isAcceptedAtOnce)

    def giveUp(self) -> None:
        """Do not wait for the answer that is under way; it stays owed."""
        self._pending = replace(self._pending, question=None)

    def clear(self) -> None:
        """Forget everything: something else is worked on."""
        self._owed.clear()
        self._pending = Pending()

    def _ask(self, place: Place) -> None:
        question = self._questionOf(place)
        if question is not None:
            self._send(question)

    def _send(self, question: Question) -> None:
        self._pending = self._pending.asked(question)
        self._workers.request(
            "prompt",
            question.request(),
            onResult=lambda result: self._take(question, result),
            onError=lambda kind, message: self._fail(question, kind, message),
            onSuperseded=lambda: self._isStillWanted(question),
        )

    def _isStillWanted(self, question: Question) -> bool:
        """Take note that a question is no longer under way; returns whether its answer is the one to show."""
        self._pending = self._pending.ended(question)
        return self.isOwed(question.place) and self._isCurrent(question)

    def _take(self, question: Question, result: dict[str, Any]) -> None:
        if not self._isStillWanted(question):
            return
        mask = Prompt.from_dict({key: result[key] for key in ("axis", "index", "mask")}).mask
        self._lookahead.know(question.volume, question.model, question.place[1:])
        try:
            self._onAnswer(question, mask)
        except InputError as error:  # the segmentation cannot be written any more
            self._pending = replace(self._pending, refused=question)
            self._tell(str(error))
            return
        since, isAcceptedAtOnce = self._owed.pop(question.place), self._pending.isAcceptedAtOnce
        self._pending = self._pending.answered()
        self._onAnswered(question.place, self._clock() - since, isAcceptedAtOnce)
        if result.get("advice") and question.model not in self._advised:
            self._advised.add(question.model)
            self._tell(result["advice"])

    def _fail(self, question: Question, kind: str, message: str) -> None:
        isWanted = self._isStillWanted(question)
        if kind == "dead":
            self._lookahead.forget()
        if not isWanted or kind == "cancelled":
            return
        if kind == "dead" and question != self._pending.retried:
            self._pending = replace(self._pending, retried=question)
            self._tell(f"{message} Your click is being answered again.")
            self._ask(question.place)
            return
        self._pending = replace(self._pending, refused=question, isAcceptedAtOnce=False)
        self._onFailed(question.place, message)
