"""Adapters of the API: the same files as everywhere, and methods to save and load them."""

from __future__ import annotations

from pathlib import Path

import pytest

from FewShotSegLib.api.adapter import Adapter, load_adapter
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import save_adapter
from Testing.Library.examples import an_adapter


def test_an_adapter_saves_itself_as_everybody_else_does_and_loads_the_same_content(tmp_path: Path) -> None:
    plain = an_adapter()
    Adapter.of(plain).save(tmp_path / "mine.safetensors")
    save_adapter(plain, tmp_path / "theirs.safetensors")
    assert (tmp_path / "mine.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    back = Adapter.load(tmp_path / "theirs.safetensors")
    assert isinstance(load_adapter(tmp_path / "mine.safetensors"), Adapter)
    assert back.digest == plain.digest


def test_an_adapter_says_what_it_has_learned() -> None:
    assert repr(Adapter.of(an_adapter())) == "Adapter(lora on vit_b: spleen, Leber)"
    assert repr(Adapter.of(an_adapter(structures={}))).endswith(": no named structures)")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Adapter.load(tmp_path / "nothing.safetensors")
