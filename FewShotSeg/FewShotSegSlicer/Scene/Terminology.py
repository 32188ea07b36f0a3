"""Slicer's terminology for the names of structures."""

from __future__ import annotations

import re
from typing import Any

import slicer

ANATOMY = "Segmentation category and type - 3D Slicer General Anatomy list"
"""The context of Slicer's terminologies that is looked into."""


def terminologyOf(name: str) -> str | None:
    """Return Slicer's entry for an anatomical name, such as "liver" or "left kidney", in the form segments keep it."""
    module = getattr(slicer.modules, "terminologies", None)
    logic = module.logic() if module is not None else None
    if logic is None or not logic.IsTerminologyContextLoaded(ANATOMY):
        return None
    plain = re.sub(r"[^a-z]+", " ", name.lower()).strip()
    entry = slicer.vtkSlicerTerminologyEntry()
    if not logic.FindTypeInTerminologyBy3dSlicerLabel(ANATOMY, plain, entry):
        entry = _entryByMeaning(logic, plain)
    return logic.SerializeTerminologyEntry(entry) if entry is not None else None


def _entryByMeaning(logic: Any, plain: str) -> Any:
    entry = slicer.vtkSlicerTerminologyEntry()
    entry.SetTerminologyContextName(ANATOMY)
    category, kind = entry.GetCategoryObject(), entry.GetTypeObject()
    for c in range(logic.GetNumberOfCategoriesInTerminology(ANATOMY)):
        logic.GetNthCategoryInTerminology(ANATOMY, c, category)
        for t in range(logic.GetNumberOfTypesInTerminologyCategory(ANATOMY, category)):
            logic.GetNthTypeInTerminologyCategory(ANATOMY, category, t, kind)
            if kind.GetCodeMeaning().lower() == plain:
                return entry
    return None
