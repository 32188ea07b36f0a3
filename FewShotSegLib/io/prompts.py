"""Prompts as JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from FewShotSegLib.data.prompt import Prompt
from FewShotSegLib.data.volume import Volume
from FewShotSegLib.errors import InputError

from .files import write_text_whole
from .json_files import read_json


def load_prompts(path: str | os.PathLike[str], volume: Volume) -> list[Prompt]:
    """Load `{"prompts": [{"axis": "k", "index": 12, "points_ijk": [[i, j, k]], "point_labels": [1]}, ...]}`.

    Coordinates may be `points_ras` and `box_ras` in mm instead. All prompts are checked against the volume.
    """
    path = Path(path)
    entries = _read_entries(path)
    prompts = []
    for number, entry in enumerate(entries):
        try:
            prompt = Prompt.from_dict(entry, volume)
            prompt.check_inside(volume)
        except InputError as error:
            raise InputError(f"{path}, prompt {number + 1} of {len(entries)}: {error}") from None
        prompts.append(prompt)
    return prompts


def save_prompts(prompts: Iterable[Prompt], path: str | os.PathLike[str]) -> None:
    """Write prompts in voxel coordinates as JSON."""
    text = json.dumps({"prompts": [prompt.to_dict() for prompt in prompts]}, indent=1, ensure_ascii=False)
    write_text_whole(path, text + "\n")


def _read_entries(path: Path) -> list[Any]:
    content = read_json(path, f"the prompts {path}")
    entries = content.get("prompts") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f'{path} must hold {{"prompts": [...]}} with at least one prompt.')
    return entries
