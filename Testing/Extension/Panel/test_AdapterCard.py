"""The card of an adapter in words."""

from __future__ import annotations

import qt

from Testing.Extension.panels import Case


def test_the_card_says_what_an_adapter_is_worth(case: Case, adapter: str) -> None:
    card = qt.QTextDocument()
    card.setHtml(case.ui.cardLabel.text)
    text = card.toPlainText()
    for words in (
        "disc, square",
        "tiny",
        "2 annotated slices of CT.nrrd",
        "lora, 400 steps, best after 360",
        "disc 0.91, square 0.77 (left-out exemplars (2 folds))",
        "⚠ With clicks the adapter is worse than the base model.",
    ):
        assert words in text
