"""A node selector that chooses nothing by itself when the chosen node goes.

Slicer's qMRMLNodeComboBox goes to the neighbour of a node that is removed, which may be another patient's; and it tells
of a node again when that was renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class NodeChooser:
    """Tells of another node once, and after the chosen node was removed, of none."""

    def __init__(self, selector: Any, onNode: Callable[[Any], Any], onUser: Callable[[Any], Any] | None = None) -> None:
        """`onNode(node or None)` hears of every other choice, `onUser(node)` of one that the user has made by hand."""
        self._selector, self._onNode = selector, onNode
        self._node: Any = selector.currentNode()
        selector.connect("currentNodeChanged(vtkMRMLNode*)", self._onCurrent)
        if onUser is not None:
            selector.connect("nodeActivated(vtkMRMLNode*)", onUser)

    def _onCurrent(self, node: Any) -> None:
        before, self._node = self._node, node
        if node is before:
            return
        if node is not None and before is not None and not self._isOffered(before):
            self._selector.setCurrentNode(None)  # which calls this again
        else:
            self._onNode(node)

    def _isOffered(self, node: Any) -> bool:
        """Asked here and not in the scene: there a node still is when the selector has let go of it."""
        return any(self._selector.nodeFromIndex(index) is node for index in range(self._selector.nodeCount()))
