"""Checkpoints of a run that may be killed: written atomically, verified on reading, and tied to their run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import written_whole

_HEAD = b"FewShotSeg checkpoint 2\n"  # followed by the SHA-256 of the rest in 64 hex digits, and a newline


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write the state of a run (tensors and plain values, including "identity"); readable by this user only."""
    stream = io.BytesIO()  # PyTorch hides a full disk behind its own error; plain files raise OSError
    torch.save(dict(state), stream)
    content = stream.getbuffer()
    with written_whole(path, private=True) as part, part.open("wb") as file:
        file.write(_HEAD + hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)


def read_checkpoint(path: Path, identity: str) -> dict[str, Any]:
    """The state that the run of this `identity` saved, on the CPU; corrupt files and other runs' are rejected."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read the checkpoint {path}: {error.strerror or error}.") from error
    start = len(_HEAD) + 65
    body = memoryview(content)[start:]
    head = _HEAD + hashlib.sha256(body).hexdigest().encode() + b"\n"
    if content[:start] != head:
        raise InputError(
            f"The interrupted training {path} cannot be continued: it is damaged, or of another version of this "
            "program. Finish it with that version, or delete it to start from the beginning."
        )
    state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("identity") != identity:
        raise InputError(
            f"{path} is an interrupted training of this name with other exemplars or settings; choose another name for "
            "the new adapter, or delete the file if that training is no longer needed."
        )
    return state
