"""Loading and saving of nodes and scenes: the part of qSlicerCoreIOManager that slicer.util calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer


class CoreIOManager:
    def __init__(self, scene: Any, application: Any, modules: Any) -> None:
        self._scene, self._application, self._modules = scene, application, modules

    def fileType(self, fileName: str) -> str:
        name = str(fileName).lower()
        if name.endswith((".seg.nrrd", ".seg.nhdr")):
            return "SegmentationFile"
        if name.endswith((".mrk.json", ".fcsv")):
            return "MarkupsFile"
        return "SceneFile" if name.endswith((".mrml", ".mrb")) else "VolumeFile"

    def loadNodes(self, fileType: str, properties: dict[str, Any], nodes: Any = None, messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if not Path(path).is_file():
            return False
        if fileType == "SceneFile":
            return self._loadScene(path, bool(properties.get("clear", False)))
        node = self._loadNode(fileType, path, properties)
        if node is not None and nodes is not None:
            nodes.AddItem(node)
        return node is not None

    def _loadNode(self, fileType: str, path: str, properties: dict[str, Any]) -> Any:
        name = properties.get("name") or Path(path).name.partition(".")[0]
        if fileType == "SegmentationFile":
            return self._modules.segmentations.logic().LoadSegmentationFromFile(path, True, name)
        if fileType == "MarkupsFile":
            return self._scene.GetNodeByID(self._modules.markups.logic().LoadMarkups(path, name))
        flags = [properties.get(flag) for flag in ("labelmap", "center", "singleFile")]
        options = sum(bit for bit, flag in zip((1, 2, 4), flags, strict=True) if flag)
        node = self._modules.volumes.logic().AddArchetypeVolume(path, name, options, None)
        if node is not None and properties.get("show", True):
            self._application.GetSelectionNode().SetActiveVolumeID(node.GetID())
            self._application.PropagateVolumeSelection()
        return node

    def _loadScene(self, path: str, clear: bool) -> bool:
        if path.endswith(".mrb"):
            return bool(self._scene.ReadFromMRB(path, clear))
        self._scene.SetURL(path)
        return bool(self._scene.Connect() if clear else self._scene.Import())

    def fileWriterFileType(self, node: Any) -> str:
        return str(node.GetClassName())

    def saveNodes(self, fileType: str, properties: dict[str, Any], messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if fileType == "SceneFile":
            return self._saveScene(path)
        node = self._scene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode(path)
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        storage.SetUseCompression(int(properties.get("useCompression", 1)))
        return bool(storage.WriteData(node))

    def _saveScene(self, path: str) -> bool:
        if path.endswith(".mrb"):
            return bool(self._scene.WriteToMRB(path))
        if path.endswith(".mrml"):
            self._scene.SetURL(path)
            return bool(self._scene.Commit())
        Path(path).mkdir(parents=True, exist_ok=True)
        return bool(slicer.vtkMRMLApplicationLogic.SaveSceneToSlicerDataBundleDirectory(self._application, path))
