"""A combo box whose entries stand for values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Chooser:
    """Entries are (text, value); values are compared by ==. `onChoice` is called when the value has changed."""

    def __init__(self, box: Any, onChoice: Callable[[], Any] | None = None) -> None:
        self._box, self._onChoice = box, onChoice
        self._values: list[Any] = []
        self._chosen: Any = None
        box.connect("currentIndexChanged(int)", self._onIndex)

    @property
    def value(self) -> Any:
        """The chosen value, None when there is nothing to choose from."""
        return self._chosen

    def offer(self, entries: Sequence[tuple[str, Any]]) -> None:
        """Replace the entries; the choice stays if it is still there, else it becomes the first."""
        texts = [text for text, _value in entries]
        shown = [self._box.itemText(i) for i in range(self._box.count)]
        values = [value for _text, value in entries]
        if texts == shown and values == self._values:
            return
        self._values = values
        self._box.blockSignals(True)
        self._box.clear()
        self._box.addItems(texts)
        if values:
            self._box.setCurrentIndex(values.index(self._chosen) if self._chosen in values else 0)
        self._box.blockSignals(False)
        self._onIndex(self._box.currentIndex)

    def choose(self, value: Any) -> bool:
        """Choose a value; False when it is not offered."""
        if value not in self._values:
            return False
        self._box.setCurrentIndex(self._values.index(value))
        return True

    def _onIndex(self, index: int) -> None:
        chosen = self._values[index] if 0 <= index < len(self._values) else None
        if chosen != self._chosen:
            self._chosen = chosen
            if self._onChoice is not None:
                self._onChoice()
