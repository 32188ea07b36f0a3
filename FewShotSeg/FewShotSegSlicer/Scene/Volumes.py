"""Volume nodes as the library's volumes, and the values that the views show of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError

from .Geometry import quoted, rasFromIjk, voxelsOf, worldFromNode


def volumeFromNode(volumeNode: Any) -> Volume:
    """Return the voxels (K, J, I), sharing the node's memory, and the affine from (i, j, k) to world RAS.

    Raises `InputError` for a node without voxels, with several values per voxel or NaN, or under a warp.
    """
    array = voxelsOf(volumeNode)
    try:
        return Volume(array, rasFromIjk(volumeNode))
    except InputError as error:
        raise InputError(f"{quoted(volumeNode)}: {error}") from None


def volumesInSequence(node: Any) -> Iterator[tuple[int, Volume]]:
    """Yield the number, from 0, and the volume of every item of a sequence, given itself or by its browser."""
    sequence, world = node, np.eye(4)
    if node.IsA("vtkMRMLSequenceBrowserNode"):
        sequence = node.GetMasterSequenceNode()
        if sequence is None:
            raise InputError(f"The sequence browser {quoted(node)} has no sequence; add one in the module Sequences.")
        proxy = node.GetProxyNode(sequence)
        world = worldFromNode(proxy) if proxy is not None else world  # the items themselves are under no transform
    for number in range(sequence.GetNumberOfDataNodes()):
        item = sequence.GetNthDataNode(number)
        if not item.IsA("vtkMRMLVolumeNode"):
            raise InputError(f"{quoted(sequence)} is a sequence of {item.GetNodeTagName()}s; choose one of volumes.")
        volume = volumeFromNode(item)
        yield number, Volume(volume.array, world @ volume.affine)


def shownWindow(volumeNode: Any) -> tuple[float, float] | None:
    """Return the values that the views show black and white, None where there is no display."""
    display = volumeNode.GetScalarVolumeDisplayNode()
    return (display.GetWindowLevelMin(), display.GetWindowLevelMax()) if display is not None else None
