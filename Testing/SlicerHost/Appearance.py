"""Colours and fonts of the host's window, close to Slicer's, in its dark and its light theme."""

from __future__ import annotations

from PySide6 import QtGui, QtWidgets

_DARK = {
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
_LIGHT = {
    "Window": "#efefef",
    "WindowText": "#1d1d1d",
    "Base": "#ffffff",
    "AlternateBase": "#f6f6f6",
    "Text": "#1d1d1d",
    "Button": "#e4e4e4",
    "ButtonText": "#1d1d1d",
    "BrightText": "#000000",
    "Highlight": "#3d7ab8",
    "HighlightedText": "#ffffff",
    "ToolTipBase": "#ffffdc",
    "ToolTipText": "#1d1d1d",
    "PlaceholderText": "#80858c",
    "Link": "#1f5f9e",
    "Mid": "#b8b8b8",
    "Dark": "#9f9f9f",
    "Light": "#ffffff",
    "Midlight": "#f2f2f2",
    "Shadow": "#767676",
}
_DISABLED = {"dark": "#7b8088", "light": "#8f949b"}


def apply(application: QtWidgets.QApplication, theme: str = "dark") -> None:
    """Style the application; the same on every machine."""
    application.setStyle("Fusion")
    palette = QtGui.QPalette()
    for role, color in (_LIGHT if theme == "light" else _DARK).items():
        palette.setColor(getattr(QtGui.QPalette, role), QtGui.QColor(color))
    for role in ("WindowText", "Text", "ButtonText"):
        palette.setColor(QtGui.QPalette.Disabled, getattr(QtGui.QPalette, role), QtGui.QColor(_DISABLED[theme]))
    application.setPalette(palette)
    application.setFont(QtGui.QFont("DejaVu Sans", 9))
