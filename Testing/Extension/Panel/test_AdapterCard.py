"""The card of an adapter in words."""

from __future__ import annotations

from typing import Any

import qt

from FewShotSegSlicer.Panel import AdapterCard
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


CARD = {
    "name": "organs",
    "method": "uda",
    "base_model": "",
    "structures": {"10": "spleen", "2": "liver"},
    "metrics": {},
    "provenance": {},
}


def plain(card: dict[str, Any]) -> str:
    document = qt.QTextDocument()
    document.setHtml(AdapterCard.textOf(card))
    return " ".join(document.toPlainText().split())


def test_structures_stand_in_the_order_of_their_numbers(slicerHost: Any) -> None:
    assert AdapterCard.structuresOf(CARD) == "liver, spleen"
    assert AdapterCard.lineOf(CARD) == "liver, spleen · uda"


def test_a_line_names_base_model_and_mean_estimate(slicerHost: Any) -> None:
    card = {**CARD, "base_model": "tiny", "metrics": {"estimated_dice": {"liver": 0.9, "spleen": 0.7}}}
    assert AdapterCard.lineOf(card) == "liver, spleen · tiny · Dice 0.80"


def test_what_is_not_known_has_no_row(slicerHost: Any) -> None:
    text = plain(CARD)
    assert "Base model none (stand-alone network)" in text
    assert "Training uda" in text
    assert "Trained on" not in text
    assert "Estimated Dice" not in text


def test_an_estimate_that_could_not_be_made_says_why(slicerHost: Any) -> None:
    text = plain({**CARD, "metrics": {"estimate": "too few exemplars", "steps": 9}})
    assert "Estimated Dice too few exemplars" in text
    assert "uda, 9 steps" in text
    assert "best" not in text  # it has not validated


def test_where_nothing_was_validated_no_step_is_the_best(slicerHost: Any) -> None:
    for none in (None, -1):  # the latter in adapters of version 0.1.0
        text = plain({**CARD, "metrics": {"steps": 40, "best_step": none}})
        assert "uda, 40 steps" in text
        assert "best" not in text


def test_names_from_elsewhere_are_text_and_not_markup(slicerHost: Any) -> None:
    guard = {"warnings": ["a < b"]}
    card = {**CARD, "structures": {"1": "<b>liver</b>"}, "metrics": {"guard": guard}}
    assert "<b>liver</b>" in plain(card)
    assert "⚠ a < b" in plain(card)


def test_slices_are_counted_over_all_sources_and_names_are_named_once(slicerHost: Any) -> None:
    sources = [{"name": name, "annotated_slices": slices} for name, slices in (("A", [1, 2]), ("B", [3]), ("A", [7]))]
    assert "Trained on 4 annotated slices of A, B" in plain({**CARD, "provenance": {"exemplars": sources}})
