"""The ctk, qMRML and qSlicer widgets the extension may use, with the whole of what it may use of each.

From the headers of CTK and Slicer: Q_PROPERTY, then public slots and Q_INVOKABLE methods (nothing else is visible to
PythonQt), then signals. What is not listed raises. To use more of a widget, look it up there, add it here and in
Widgets.py, MrmlWidgets.py or SegmentWidgets.py. The classes of Qt itself need no row: they are the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Api:
    """What a widget offers beyond its Qt base class; names separated by spaces, signals with their C++ types."""

    properties: str = ""
    slots: str = ""
    signals: str = ""
    constants: dict[str, int] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Every attribute; an overloaded signal is none, because only its signature tells which one is meant."""
        return {*self.properties.split(), *self.slots.split(), *self.constants} | {
            attribute for attribute in self.attributes.values() if not attribute.startswith("_")
        }

    @property
    def attributes(self) -> dict[str, str]:
        """C++ signature of each signal: the attribute of the stand-in that holds it."""
        signatures = self.signals.split()
        bare = [signature.partition("(")[0] for signature in signatures]
        return {s: _private(s) if bare.count(b) > 1 else b for s, b in zip(signatures, bare, strict=True)}


def _private(signature: str) -> str:
    return "_" + signature.replace("(", "_").rstrip("*)")


_SCENE = Api(slots="setMRMLScene mrmlScene", signals="mrmlSceneChanged(vtkMRMLScene*)")

WIDGETS: dict[str, Api] = {
    # ---- CTK
    "ctkCollapsibleButton": Api(
        "collapsed collapsedHeight contentsFrameShape contentsLineWidth", signals="contentsCollapsed(bool)"
    ),
    "ctkCollapsibleGroupBox": Api("collapsed collapsedHeight"),
    "ctkComboBox": Api("defaultText currentUserDataAsString", "setCurrentUserDataAsString"),
    "ctkDoubleSpinBox": Api(
        "value minimum maximum singleStep decimals prefix suffix readOnly",
        "setValue setDecimals setReadOnly stepUp stepDown",
        "valueChanged(double) valueChanged(QString) editingFinished()",
    ),
    "ctkMessageBox": Api("dontShowAgain dontShowAgainSettingsKey dontShowAgainVisible", "setDontShowAgain"),
    "ctkPathLineEdit": Api(
        "currentPath filters label minimumContentsLength nameFilters settingKey showBrowseButton "
        "showHistoryButton sizeAdjustPolicy",
        "addCurrentPathToHistory browse comboBox retrieveHistory setCurrentPath",
        "currentPathChanged(QString) validInputChanged(bool)",
        {
            "Dirs": 1,
            "Files": 2,
            "Readable": 0x10,
            "Writable": 0x20,
            "Executable": 0x40,
            "AdjustToContents": 0,
            "AdjustToContentsOnFirstShow": 1,
            "AdjustToMinimumContentsLength": 2,
        },
    ),
    "ctkSliderWidget": Api(
        "value minimum maximum singleStep pageStep decimals prefix suffix tracking spinBoxVisible",
        "setValue reset setSpinBoxVisible",
        "valueChanged(double) valueIsChanging(double)",
    ),
    # ---- MRML
    "qMRMLWidget": _SCENE,
    "qMRMLNodeComboBox": Api(
        "addEnabled baseName currentNodeID editEnabled hideChildNodeTypes nodeTypes noneDisplay noneEnabled "
        "removeEnabled renameEnabled selectNodeUponCreation showChildNodeTypes showHidden",
        "addAttribute addNode currentNode mrmlScene nodeCount nodeFromIndex removeAttribute removeCurrentNode "
        "setCurrentNode setCurrentNodeID setCurrentNodeIndex setMRMLScene",
        "currentNodeChanged(vtkMRMLNode*) currentNodeChanged(bool) currentNodeIDChanged(QString) "
        "nodeAdded(vtkMRMLNode*) nodeAddedByUser(vtkMRMLNode*) nodeActivated(vtkMRMLNode*)",
    ),
    "qMRMLSegmentSelectorWidget": Api(
        "horizontalLayout noneEnabled segmentationNodeSelectorVisible",
        "currentNode currentNodeID currentSegmentID setCurrentNode setCurrentNodeID setCurrentSegmentID",
        "currentNodeChanged(vtkMRMLNode*) currentNodeChanged(bool) currentSegmentChanged(QString)",
    ),
    "qMRMLSegmentsTableView": Api(
        "colorColumnVisible filterBarVisible headerVisible jumpToSelectedSegmentEnabled layerColumnVisible "
        "opacityColumnVisible readOnly segmentCount selectionMode statusColumnVisible visibilityColumnVisible",
        "clearSelection displayedSegmentIDs rowForSegmentID segmentIDForRow segmentationNode selectedSegmentIDs "
        "setColorColumnVisible setFilterBarVisible setHeaderVisible setJumpToSelectedSegmentEnabled "
        "setLayerColumnVisible setOpacityColumnVisible setReadOnly setSegmentationNode setSelectedSegmentIDs "
        "setSelectionMode setStatusColumnVisible setVisibilityColumnVisible",
        "selectionChanged(QItemSelection,QItemSelection) segmentAboutToBeModified(QString)",
    ),
    "qMRMLSliceView": Api(
        "",
        "convertDeviceToXYZ convertRASToXYZ convertXYZToRAS forceRender getDisplayableManagers interactor "
        "interactorStyle mrmlSliceNode renderWindow scheduleRender setViewCursor unsetViewCursor",
    ),
    "qMRMLSliceWidget": Api(
        "sliceOrientation",
        "fitSliceToBackground interactorStyle mrmlSliceCompositeNode mrmlSliceNode "
        "setSliceOrientation sliceController sliceLogic sliceView viewWidget",
    ),
    "qMRMLUtils": Api("", "vtkImageDataToQImage"),
    # ---- Slicer
    "qSlicerWidget": _SCENE,
}
