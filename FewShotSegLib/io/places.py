"""The user's folders: settings and models, and caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder: FEWSHOTSEG_CACHE, else one in the user's folder."""
    chosen = os.environ.get("FEWSHOTSEG_CACHE")
    return Path(chosen).expanduser() if chosen else user_folder() / "Cache"


def user_folder() -> Path:
    """Return the folder for this user's models: FEWSHOTSEG_HOME, else the system's application data folder."""
    chosen = os.environ.get("FEWSHOTSEG_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "FewShotSeg"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "FewShotSeg"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fewshotseg"
