"""The line of section 1 that says what to do next."""

from __future__ import annotations

import slicer
import slicer.util
from slicer.i18n import tr as _

from FewShotSegLib.errors import InputError
from FewShotSegSlicer.Prompting.LiveSegmenter import LiveSegmenter
from FewShotSegSlicer.Prompting.PromptView import Mode
from FewShotSegSlicer.Scene import SliceViews

from .Selection import ModelChoice, Selection

_OBLIQUE_DEG = 2.0  # from here on the difference can be seen


def nextStep(selection: Selection, live: LiveSegmenter, mode: Mode, model: ModelChoice | None, said: str) -> str:
    """Return the sentence; `mode` is that of the tool, `said` what there is to tell of the last click."""
    if selection.volumeNode is None:
        return _("Load a volume and choose it above. Module Sample Data has two patients to try.")
    if selection.missing:
        return selection.whyNotCompute() + "."
    name = selection.structure
    if selection.segmentId is None:
        return _("Name a structure and press Add.")
    if live.isPropagating:
        return _("Propagating {name} through the slices. {said}").format(name=name, said=said).strip()
    if live.isWaiting and not live.hasPreview:
        return _("Encoding the slice; the first mask takes longer than later ones.")
    if live.hasPreview:
        return _("{said} Accept it, or correct it with more clicks.").format(said=said).strip()
    if mode == "none":
        pressInside = _("Press Inside, then click on {name} in a slice view.").format(name=name)
        return _adapterHint(selection, model) or pressInside
    how = {
        "box": _("Drag a box around {name} in a slice view."),
        "positive": _("Click on {name} in a slice view."),
        "negative": _("Click where there is no {name} in a slice view."),
    }
    return _obliqueHint(selection) or how[mode].format(name=name)


def _adapterHint(selection: Selection, model: ModelChoice | None) -> str:
    """An adapter that has learned the structure, while a base model is chosen."""
    structure = selection.structure
    names = [card["name"] for card in selection.cards if structure in card["structures"].values()]
    if not names or model is None or model[0] is not None:
        return ""
    return _("The adapter {name} has learned {structure}: choose it as the model.").format(
        name=names[0], structure=structure
    )


def _obliqueHint(selection: Selection) -> str:
    """A hint where a view cuts the volume askew, for masks lie on the volume's own slices; or why it has none."""
    views = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    try:
        angle = max((SliceViews.sliceObliqueness(selection.volumeNode, view) for view in views), default=0.0)
    except InputError as error:  # it was put under a warp after it was chosen
        return str(error)
    if angle < _OBLIQUE_DEG:
        return ""
    return _("A view is rotated by {angle:.0f}° relative to the slices of the volume; masks follow the volume.").format(
        angle=angle
    )
