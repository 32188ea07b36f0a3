"""Checkpoints: what was saved comes back, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from FewShotSegLib.errors import InputError
from FewShotSegLib.training.checkpoint import read_checkpoint, write_checkpoint

STATE = {"identity": "a", "weights": {"w": torch.arange(600.0)}, "step": 7}


def test_the_state_comes_back_and_only_this_user_can_read_it(tmp_path: Path) -> None:
    write_checkpoint(STATE, tmp_path / "c.pt")
    back = read_checkpoint(tmp_path / "c.pt", "a")
    assert back["step"] == 7
    assert torch.equal(back["weights"]["w"], STATE["weights"]["w"])
    if os.name != "nt":
        assert (tmp_path / "c.pt").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="interrupted training of this name with other"):
        read_checkpoint(tmp_path / "c.pt", "b")


def test_a_single_flipped_bit_is_noticed_wherever_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    write_checkpoint(STATE, path)
    good = path.read_bytes()
    for at in range(0, len(good), 97):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(InputError, match=r"c\.pt cannot be continued: it is damaged.*delete it"):
            read_checkpoint(path, "a")
    path.write_bytes(good[:-1])
    with pytest.raises(InputError, match="is damaged"):
        read_checkpoint(path, "a")


def test_a_checkpoint_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read the checkpoint .*c\.pt"):
        read_checkpoint(tmp_path / "c.pt", "a")
