"""The folders that belong to the user: settings and models, and what can be made again at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for what can be made again at any time: FEWSHOTSEG_CACHE, else one in the user's folder."""
    chosen = os.environ.get("FEWSHOTSEG_CACHE")
    return Path(chosen).expanduser() if chosen else user_folder() / "Cache"


def user_folder() -> Path:
    """Return the folder for this user's models: FEWSHOTSEG_HOME, else where the system keeps application data."""
    chosen = os.environ.get("FEWSHOTSEG_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "FewShotSeg"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "FewShotSeg"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fewshotseg"
