"""An adapter is one file, and notices when it was changed."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import load, save

from FewShotSegLib.data.adapter import card, check_base
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import load_adapter, read_card, save_adapter
from FewShotSegLib.sam import registry
from Testing.Library.examples import an_adapter


def test_an_adapter_survives_a_file(tmp_path):
    path = tmp_path / "für Fall 1.safetensors"
    adapter = an_adapter()
    save_adapter(adapter, path)
    again = load_adapter(path)
    assert card(again) == card(adapter)
    assert again.structures == {1: "spleen", 6: "Leber"}
    assert again.recipe == {"rank": 4, "blocks": [1, 2], "alpha": None}
    assert again.intensity == adapter.intensity
    assert list(again.tensors) == sorted(adapter.tensors)
    for name, tensor in adapter.tensors.items():
        assert again.tensors[name].dtype == tensor.dtype
        assert np.array_equal(again.tensors[name], tensor)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_file_is_plain_safetensors_with_a_readable_card(tmp_path):
    save_adapter(an_adapter(), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    values = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["fewshotseg"])
    assert values == card(an_adapter())
    assert values["structures"] == {"1": "spleen", "6": "Leber"}
    assert len(values["digest"]) == 64
    assert set(load(content)) == set(an_adapter().tensors)


def test_a_card_is_read_without_the_weights(tmp_path):
    path = tmp_path / "a.safetensors"
    save_adapter(an_adapter(), path)
    assert read_card(path) == card(an_adapter())
    path.write_bytes(path.read_bytes()[:-100])  # the weights are cut off, the card is not
    assert read_card(path) == card(an_adapter())


def test_equal_content_gives_equal_bytes(tmp_path):
    one = an_adapter()
    backwards = an_adapter(
        tensors=dict(reversed([(name, np.array(array, order="F")) for name, array in one.tensors.items()])),
        recipe={"alpha": None, "blocks": [1, 2], "rank": 4},
        structures={1: "spleen", 6: "Leber"},
    )
    for number, adapter in enumerate((one, backwards)):
        save_adapter(adapter, tmp_path / f"{number}.safetensors")
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    assert one.digest == backwards.digest


# -------------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("keep", [0, 5, 8, 300, -1])
def test_a_truncated_adapter_is_refused(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    save_adapter(an_adapter(), path)
    os.truncate(path, keep if keep >= 0 else path.stat().st_size - 1)
    with pytest.raises(InputError, match=r"a\.safetensors is not a readable adapter file"):
        load_adapter(path)


def test_one_changed_bit_anywhere_in_the_tensors_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_adapter(an_adapter(), path)
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    for position in np.linspace(start, len(content) - 1, 15).astype(int):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(InputError, match="changed or damaged"):
            load_adapter(path)


@pytest.mark.parametrize(
    ("old", "new"), [(b"Leber", b"Niere"), (b"spleen", b"kidney"), (b'\\"seed\\":3', b'\\"seed\\":4')]
)
def test_a_changed_card_is_noticed(tmp_path, old, new):
    path = tmp_path / "a.safetensors"
    save_adapter(an_adapter(), path)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(InputError, match="changed or damaged"):
        load_adapter(path)


def test_tensors_with_swapped_names_are_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_adapter(an_adapter(tensors={"aa": np.zeros(3), "bb": np.ones(3)}), path)
    content = path.read_bytes().replace(b'"aa"', b'"cc"')
    path.write_bytes(content)
    with pytest.raises(InputError, match="changed or damaged"):
        load_adapter(path)


def test_other_safetensors_files_are_refused(tmp_path):
    for number, metadata in enumerate([None, {"format": "pt"}, {"fewshotseg": "{"}, {"fewshotseg": "[]"}]):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(save({"weight": np.zeros(3)}, metadata=metadata))
        with pytest.raises(InputError, match="no adapter of this program"):
            load_adapter(path)
        with pytest.raises(InputError, match="no adapter of this program"):
            read_card(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickled checkpoint", b"\x80\x04\x95" * 40])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    for read in (load_adapter, read_card):
        with pytest.raises(InputError, match="not a readable adapter file"):
            read(tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path):
    for read in (load_adapter, read_card):
        with pytest.raises(InputError, match="nowhere"):
            read(tmp_path / "nowhere.safetensors")
        with pytest.raises(InputError, match="does not exist"):
            read(tmp_path)


def test_a_card_of_another_version_or_without_fields_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("FewShotSegLib.data.adapter.FORMAT", 99)
    save_adapter(an_adapter(), tmp_path / "a.safetensors")
    monkeypatch.undo()
    for read in (load_adapter, read_card):
        with pytest.raises(InputError, match="another version"):
            read(tmp_path / "a.safetensors")


def test_an_adapter_file_needs_its_suffix_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r'ends with "\.safetensors"'):
        save_adapter(an_adapter(), tmp_path / "a.pt")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        save_adapter(an_adapter(), tmp_path / "file" / "a.safetensors")


# ---------------------------------------------------------------------------------------------------------- content


def test_a_network_of_its_own_fits_every_base(tmp_path):
    adapter = an_adapter(base_model="", base_sha256="", architecture={"name": "unet", "channels": [8, 16]})
    check_base(adapter, "medsam", "cd" * 32)
    save_adapter(adapter, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").architecture == {"name": "unet", "channels": [8, 16]}


@pytest.mark.parametrize(("before", "now"), [("bundled", "bundled-small"), ("bundled-384", "bundled-small-384")])
def test_an_adapter_of_the_compact_model_finds_it_under_its_new_name(tmp_path, before, now):
    compact = registry.find("bundled-small")[0].sha256
    save_adapter(an_adapter(base_model=before, base_sha256=compact), tmp_path / "old.safetensors")
    assert load_adapter(tmp_path / "old.safetensors").base_name == now
    card = read_card(tmp_path / "old.safetensors")
    assert card["base_model"] == now
    assert load_adapter(tmp_path / "old.safetensors").digest == card["digest"]


def test_a_base_model_with_another_file_keeps_its_name(tmp_path):
    save_adapter(an_adapter(base_model="bundled", base_sha256="0" * 64), tmp_path / "other.safetensors")
    assert read_card(tmp_path / "other.safetensors")["base_model"] == "bundled"
