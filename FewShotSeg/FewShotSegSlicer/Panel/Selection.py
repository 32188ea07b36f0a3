"""What is chosen in the panel, and what else every section asks before it allows anything."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam import registry
from FewShotSegSlicer import Dependencies
from FewShotSegSlicer.Logic import Logic
from FewShotSegSlicer.Prompting.Prompts import Slice, SlicePrompt
from FewShotSegSlicer.Scene import SliceViews, Volumes
from FewShotSegSlicer.Signal import Signal

from .Status import unless

ModelChoice = tuple[str | None, str | None]  # adapter file, base model


class Selection:
    """Nodes and structures are read from the form, so that they are never older than what is seen there."""

    def __init__(self, ui: Any, logic: Logic) -> None:
        self.changed = Signal()
        """(): something was chosen, or something can be done now that could not be done before."""
        self.chosen = Signal()
        """(): the user has made a choice that is kept with the scene."""
        self.modelsChanged = Signal()
        """(): there are other base models or adapters."""
        self.isClosing = False
        """Whether the scene is being closed: its nodes are not worked on any more."""
        self.device = "auto"
        self.missing: tuple[str, ...] = ()
        """Python packages that are not installed."""
        self.bases: list[str] = []
        """The base models that are on this computer."""
        self.cards: list[dict[str, Any]] = []
        """The cards of the adapters that go with them, newest first."""
        self._ui, self._logic = ui, logic
        logic.adapterFolder.changed.connect(self.lookForModels)

    def close(self) -> None:
        """Listen no longer."""
        self._logic.adapterFolder.changed.disconnect(self.lookForModels)

    # ---------------------------------------------------------------------------------------------------------- nodes

    @property
    def volumeNode(self) -> Any:
        """The chosen volume, None without one."""
        return None if self.isClosing else self._ui.volumeSelector.currentNode()

    @property
    def segmentationNode(self) -> Any:
        """The chosen segmentation, None without one."""
        return None if self.isClosing else self._ui.segmentationSelector.currentNode()

    @property
    def segmentIds(self) -> tuple[str, ...]:
        """The structures that can be chosen."""
        node = self.segmentationNode
        return tuple(node.GetSegmentation().GetSegmentIDs()) if node is not None else ()

    @property
    def segmentId(self) -> str | None:
        """The chosen structure."""
        chosen = self._ui.structureTable.selectedSegmentIDs()
        return chosen[0] if self.segmentationNode is not None and chosen else None

    @property
    def structure(self) -> str:
        """Name of the chosen structure, "" for none."""
        segmentId = self.segmentId
        return self.segmentationNode.GetSegmentation().GetSegment(segmentId).GetName() if segmentId else ""

    @property
    def slice(self) -> Slice | None:
        """(axis, index) of the slice that was last clicked or scrolled to; None when no view shows the volume."""
        if self.volumeNode is None:
            return None
        try:
            shown = SliceViews.viewedSlices(self.volumeNode)
        except InputError:  # a volume without voxels, or under a warp: told where it is chosen
            return None
        active = self._logic.live.activeSlice
        return active if active in shown else next(iter(shown), None)

    def prompt(self) -> SlicePrompt | None:
        """The clicks of the structure on the slice, None where there are none."""
        live, where = self._logic.live, self.slice
        if where is None or live.segmentId is None or live.promptOn(*where).isEmpty:
            return None
        return live.promptOn(*where)

    @property
    def hasPrompts(self) -> bool:
        """Whether any structure of the segmentation has clicks."""
        return bool(self._logic.live.prompts.segmentIds()) if self.segmentationNode is not None else False

    def shownWindow(self) -> tuple[float, float] | None:
        """Lowest and highest intensity that the slice views show of the volume."""
        return Volumes.shownWindow(self.volumeNode) if self.volumeNode is not None else None

    # --------------------------------------------------------------------------------------------------------- models

    def lookForModels(self) -> None:
        """See which base models and adapters there are."""
        self.bases = [model.name for model in registry.models() if registry.location(model) is not None]
        self.cards = [card for card in self._logic.adapters() if card["base_model"] in (*self.bases, "")]
        self.modelsChanged()

    def models(self, adapter: str = "{name}") -> list[tuple[str, ModelChoice]]:
        """Return what can answer clicks as entries of a `Chooser`; `adapter` is the text for one of these."""
        ofBases = [(_("{name} (base model)").format(name=name), (None, name)) for name in self.bases]
        # A stand-alone network, without a base model, takes no clicks and cannot be continued from.
        promptable = [card for card in self.cards if card["base_model"]]
        return [*ofBases, *((adapter.format(name=card["name"]), (card["path"], None)) for card in promptable)]

    # -------------------------------------------------------------------------------------------- what can be done now

    @property
    def isBusy(self) -> bool:
        """Whether the worker for jobs has something to do."""
        return bool(self._logic.runs)

    def lookForPackages(self) -> None:
        """See which Python packages are missing."""
        self.missing = Dependencies.missing()

    def whyNotCompute(self) -> str:
        """Why nothing can be computed now, "" when it can."""
        return unless(not self.missing, _("Python packages are missing; see Settings and installation"))
