"""The real MRML scene, application logic and module logics of Slicer, from the slicer-core wheel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
import vtk

# slicer.modules.<key>: name in the application logic, class
MODULE_LOGICS = {
    "colors": ("Colors", "vtkSlicerColorLogic"),
    "cropvolume": ("CropVolume", "vtkSlicerCropVolumeLogic"),
    "markups": ("Markups", "vtkSlicerMarkupsLogic"),
    "models": ("Models", "vtkSlicerModelsLogic"),
    "segmentations": ("Segmentations", "vtkSlicerSegmentationsModuleLogic"),
    "sequences": ("Sequences", "vtkSlicerSequencesLogic"),
    "subjecthierarchy": ("SubjectHierarchy", "vtkSlicerSubjectHierarchyModuleLogic"),
    "transforms": ("Transforms", "vtkSlicerTransformLogic"),
    "volumes": ("Volumes", "vtkSlicerVolumesLogic"),
}


class CoreModule:
    """A module of which only the logic is here, such as slicer.modules.volumes."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name, self._logic = name, logic

    def logic(self) -> Any:
        return self._logic


def createScene(folder: Path) -> tuple[Any, Any, SimpleNamespace]:
    """The scene with its singleton nodes, the application logic, and slicer.modules; files go below `folder`."""
    scene = slicer.vtkMRMLScene()
    _useFolder(scene, folder / "Cache")
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    for node in (crosshair, slicer.vtkMRMLSelectionNode(), slicer.vtkMRMLInteractionNode()):
        scene.AddNode(node)
    application = _createApplicationLogic(scene, folder)
    modules = SimpleNamespace()
    for key, (name, className) in MODULE_LOGICS.items():
        logic = getattr(slicer, className)()
        logic.SetMRMLApplicationLogic(application)  # before the scene, which the colour logic asks for
        logic.SetMRMLScene(scene)
        application.SetModuleLogic(name, logic)
        setattr(modules, key, CoreModule(name, logic))
    scene.AddNode(_genericColors())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    scene.AddObserver(scene.NodeAddedEvent, _addItem)
    scene.AddObserver(scene.NodeRemovedEvent, _removeItem)
    scene.AddObserver(scene.EndImportEvent, _addMissingItems)
    return scene, application, modules


def _useFolder(scene: Any, cache: Path) -> None:
    """Without these managers .mrb files cannot be read."""
    cache.mkdir()
    scene.SetCacheManager(slicer.vtkCacheManager())
    scene.GetCacheManager().SetRemoteCacheDirectory(str(cache))
    scene.SetDataIOManager(slicer.vtkDataIOManager())
    scene.GetDataIOManager().SetCacheManager(scene.GetCacheManager())


def _createApplicationLogic(scene: Any, folder: Path) -> Any:
    (folder / "share" / "ColorFiles").mkdir(parents=True)
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetHomeDirectory(str(folder))
    logic.SetTemporaryPath(str(folder))
    logic.SetShareDirectory("share")
    logic.SetMRMLScene(scene)
    logic.SetSliceLogics(vtk.vtkCollection())
    logic.SetViewLogics(vtk.vtkCollection())
    logic.GetColorLogic().SetMRMLScene(scene)
    logic.GetColorLogic().AddDefaultColorNodes()
    for factory in (
        slicer.vtkMRMLSliceViewDisplayableManagerFactory,
        slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
    ):
        factory.GetInstance().SetMRMLApplicationLogic(logic)
    return logic


def _genericColors() -> Any:
    """The table that label volumes refer to by its ID; Slicer reads it from a file that is not in the wheel."""
    colors = slicer.vtkMRMLColorTableNode()
    colors.SetTypeToUser()
    colors.SetName("GenericColors")
    colors.SetSingletonTag("FileGenericColors.txt")
    colors.SetNumberOfColors(256)
    for i in range(256):
        colors.SetColor(i, str(i), i * 73 % 255 / 255, i * 151 % 255 / 255, i * 199 % 255 / 255, float(i > 0))
    return colors


# Slicer's plug-ins, which are Qt and so not in the wheel, give an item of the subject hierarchy to what has data.


@vtk.calldata_type(vtk.VTK_OBJECT)
def _addItem(scene: Any, event: str, node: Any) -> None:
    hierarchy, wanted = _hierarchy(scene), node.IsA("vtkMRMLStorableNode") and not node.GetHideFromEditors()
    if wanted and not scene.IsImporting() and not hierarchy.GetItemByDataNode(node):
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


@vtk.calldata_type(vtk.VTK_OBJECT)
def _removeItem(scene: Any, event: str, node: Any) -> None:
    if node.IsA("vtkMRMLStorableNode") and not scene.IsClosing():
        _hierarchy(scene).RemoveItem(_hierarchy(scene).GetItemByDataNode(node), False, False)


def _addMissingItems(scene: Any, event: str) -> None:
    for node in slicer.util.getNodesByClass("vtkMRMLStorableNode", scene):
        _addItem(scene, event, node)


def _hierarchy(scene: Any) -> Any:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
