"""Colours and fonts of the host's window, close to Slicer's dark theme, for screenshots."""

from __future__ import annotations

from PySide6 import QtGui, QtWidgets

_COLORS = {
    "Window": "#2e3136",
    "WindowText": "#e6e6e6",
    "Base": "#23262a",
    "AlternateBase": "#2a2d32",
    "Text": "#e6e6e6",
    "Button": "#3a3e45",
    "ButtonText": "#e6e6e6",
    "BrightText": "#ffffff",
    "Highlight": "#3d7ab8",
    "HighlightedText": "#ffffff",
    "ToolTipBase": "#3a3e45",
    "ToolTipText": "#e6e6e6",
    "PlaceholderText": "#8a8f98",
    "Link": "#6db3f2",
    "Mid": "#26292d",
    "Dark": "#1d1f22",
    "Light": "#4a4f57",
    "Midlight": "#43474e",
    "Shadow": "#141517",
}


def apply(application: QtWidgets.QApplication) -> None:
    """Style the application; the same on every machine."""
    application.setStyle("Fusion")
    palette = QtGui.QPalette()
    for role, color in _COLORS.items():
        palette.setColor(getattr(QtGui.QPalette, role), QtGui.QColor(color))
    for role in ("WindowText", "Text", "ButtonText"):
        palette.setColor(QtGui.QPalette.Disabled, getattr(QtGui.QPalette, role), QtGui.QColor("#7b8088"))
    application.setPalette(palette)
    application.setFont(QtGui.QFont("DejaVu Sans", 9))
