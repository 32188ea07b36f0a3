"""What the user has chosen in the panel, kept in the module's parameter node: saved and loaded with the scene."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any


class Choices:
    """Nodes by role, and JSON values by name. `parameterNode` returns the node, and makes it where there is none."""

    def __init__(self, parameterNode: Callable[[], Any]) -> None:
        self._parameterNode = parameterNode

    def keep(self, nodes: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Replace what was kept under these roles and names."""
        parameterNode = self._parameterNode()
        for role, node in nodes.items():
            parameterNode.SetNodeReferenceID(role, node.GetID() if node is not None else None)
        for name, value in values.items():
            parameterNode.SetParameter(name, json.dumps(value))

    def node(self, role: str) -> Any:
        """The node that was kept, None without one."""
        return self._parameterNode().GetNodeReference(role)

    def value(self, name: str, default: Any = None) -> Any:
        """The value that was kept, lists for tuples, or `default`."""
        text = self._parameterNode().GetParameter(name)
        return json.loads(text) if text else default
