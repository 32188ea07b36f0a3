"""The card of an adapter in words."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from slicer.i18n import tr as _

from FewShotSegLib.data.adapter import best_step_of

from .Status import WARNING

Card = Mapping[str, Any]


def structuresOf(card: Card) -> str:
    """The structures an adapter has learned, by value: "liver, spleen"."""
    names = ", ".join(name for _value, name in sorted(card["structures"].items(), key=lambda entry: int(entry[0])))
    return names or _("no named structures")


def lineOf(card: Card) -> str:
    """One line for a list: structures, base model, and the estimate if there is one."""
    return " · ".join([structuresOf(card), card["base_model"] or card["method"], *_meanDice(card)])


def textOf(card: Card) -> str:
    """All that a user wants to know before relying on it, as rich text for a label."""
    metrics = card["metrics"]
    rows = [
        (_("Structures"), structuresOf(card)),
        (_("Base model"), card["base_model"] or _("none (stand-alone network)")),
        (_("Trained on"), _sources(card["provenance"].get("exemplars", ())) or _tasks(card["provenance"])),
        (_("Training"), _training(card, metrics)),
        (_("Estimated Dice"), _estimate(metrics)),
    ]
    cells = "".join(
        f'<tr><td style="padding-right: 8px"><i>{html.escape(name)}</i></td><td>{html.escape(text)}</td></tr>'
        for name, text in rows
        if text
    )
    warnings = "".join(
        f"<p>{WARNING} {html.escape(warning)}</p>" for warning in (metrics.get("guard") or {}).get("warnings", ())
    )
    return f"<table>{cells}</table>{warnings}"


def _meanDice(card: Card) -> list[str]:
    estimated = card["metrics"].get("estimated_dice")
    return [_("Dice {value:.2f}").format(value=sum(estimated.values()) / len(estimated))] if estimated else []


def _sources(exemplars: Sequence[Mapping[str, Any]]) -> str:
    slices = sum(len(exemplar["annotated_slices"]) for exemplar in exemplars)
    names = ", ".join(dict.fromkeys(exemplar["name"] for exemplar in exemplars))
    return _("{slices} annotated slices of {names}").format(slices=slices, names=names) if exemplars else ""


def _tasks(provenance: Mapping[str, Any]) -> str:
    """What an adapter of many tasks has seen: "acdc (LV, RV), la (atrium)"."""
    return ", ".join(f"{task['name']} ({', '.join(task['structures'])})" for task in provenance.get("tasks", ()))


def _training(card: Card, metrics: Mapping[str, Any]) -> str:
    if "steps" not in metrics:
        return card["method"]
    steps = metrics["steps"]
    best = best_step_of(metrics)
    if best is None:  # nothing was validated: the last step counts
        return _("{method}, {steps} steps").format(method=card["method"], steps=steps)
    return _("{method}, {steps} steps, best after {best}").format(method=card["method"], steps=steps, best=best)


def _estimate(metrics: Mapping[str, Any]) -> str:
    estimated, how = metrics.get("estimated_dice"), metrics.get("estimate", "")
    if not estimated:
        return how
    return ", ".join(f"{name} {value:.2f}" for name, value in estimated.items()) + f" ({how})"
