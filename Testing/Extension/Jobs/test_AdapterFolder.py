"""A folder of adapters: what is listed, named, kept and deleted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from FewShotSegLib.data.adapter import Adapter, card
from FewShotSegLib.data.intensity import IntensitySpec
from FewShotSegLib.errors import InputError
from FewShotSegLib.io.adapters import save_adapter
from FewShotSegSlicer.Jobs.AdapterFolder import AdapterFolder


def anAdapter(name: str = "liver") -> Adapter:
    return Adapter(
        {"a": np.zeros(3, np.float32)},
        method="lora",
        recipe={},
        base_model="bundled-small",
        base_sha256="ab" * 32,
        structures={1: name},
        intensity=IntensitySpec("window", -125, 275),
        image_size=160,
        seed=0,
        axis=0,
    )


def made(folder: AdapterFolder, name: str, age_s: int = 0) -> Path:
    path = folder.folder / f"{name}.safetensors"
    save_adapter(anAdapter(name), path)
    path.with_name(f"{name}.result.json").write_text("{}", encoding="utf-8")
    now = path.stat().st_mtime
    os.utime(path, (now - age_s, now - age_s))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> AdapterFolder:
    return AdapterFolder(tmp_path / "Adapters")


def test_the_folder_is_beside_the_base_models_of_the_user(a_home: Path) -> None:
    assert AdapterFolder().folder == a_home / "Adapters"
    assert AdapterFolder().cards() == []


def test_adapters_are_listed_with_their_cards_the_newest_first(folder: AdapterFolder) -> None:
    for number, name in enumerate(("new", "older", "oldest")):
        made(folder, name, age_s=100 * number)
    cards = folder.cards()
    assert [found["name"] for found in cards] == ["new", "older", "oldest"]
    assert {key: cards[0][key] for key in card(anAdapter("new"))} == card(anAdapter("new"))
    assert cards[0]["path"] == str(folder.folder / "new.safetensors")


def test_what_is_no_adapter_is_left_out_and_logged_once(
    folder: AdapterFolder, caplog: pytest.LogCaptureFixture
) -> None:
    made(folder, "liver")
    (folder.folder / "broken.safetensors").write_bytes(b"not one")
    (folder.folder / "liver.checkpoint.pt").touch()
    assert [[found["name"] for found in folder.cards()] for _ in range(3)] == [["liver"]] * 3
    assert caplog.text.count("broken.safetensors is not a readable adapter file") == 1


def test_a_file_written_anew_is_read_anew(folder: AdapterFolder) -> None:
    path = made(folder, "organ", age_s=10)
    assert folder.cards()[0]["structures"] == {"1": "organ"}
    save_adapter(anAdapter("kidney"), path)
    assert folder.cards()[0]["structures"] == {"1": "kidney"}


def test_adapters_are_found_by_path_by_name_and_by_card(folder: AdapterFolder) -> None:
    path = made(folder, "liver v1.2")
    for given in (path, str(path), "liver v1.2", folder.cards()[0]):
        assert folder.find(given) == path
    with pytest.raises(InputError, match="There is no adapter spleen"):
        folder.find("spleen")


def test_a_new_adapter_is_new_until_it_is_kept(folder: AdapterFolder) -> None:
    heard: list[bool] = []
    folder.changed.connect(lambda: heard.append(folder.cards()[0]["isNew"]))
    path = made(folder, "liver")
    folder.noteNew(path)
    kept = folder.keep(path, "liver: portal phase")
    assert kept.name == "liver_ portal phase.safetensors"
    assert heard == [True, False]


def test_renaming_takes_the_record_along_and_never_overwrites(folder: AdapterFolder) -> None:
    first = made(folder, "liver")
    made(folder, "spleen")
    renamed = folder.rename(first, "liver 2")
    files = {f"{name}{end}" for name in ("liver 2", "spleen") for end in (".safetensors", ".result.json")}
    assert {path.name for path in folder.folder.iterdir()} == files
    for name, sentence in (("spleen", "is an adapter called spleen already"), (" ", "needs a name")):
        with pytest.raises(InputError, match=sentence):
            folder.rename(renamed, name)
    assert folder.rename(renamed, "liver 2") == renamed


def test_discarding_deletes_adapter_and_record(folder: AdapterFolder) -> None:
    folder.discard(made(folder, "liver"))
    assert list(folder.folder.iterdir()) == []


def test_the_same_new_file_is_not_given_twice(folder: AdapterFolder) -> None:
    made(folder, "liver")
    assert [folder.newPath("liver").name for _ in range(2)] == ["liver 2.safetensors", "liver 3.safetensors"]


def test_another_folder_can_be_chosen(folder: AdapterFolder, tmp_path: Path) -> None:
    heard: list[Path] = []
    folder.changed.connect(lambda: heard.append(folder.folder))
    folder.setFolder(str(tmp_path))
    folder.setFolder(None)
    assert heard == [tmp_path, AdapterFolder().folder]


def test_the_report_of_a_training_is_found_and_goes_with_its_adapter(folder: AdapterFolder) -> None:
    path = made(folder, "organ")
    assert folder.reportOf(path) is None
    (folder.folder / "organ.report.png").write_bytes(b"picture")
    assert folder.reportOf(path) == folder.folder / "organ.report.png"
    renamed = folder.rename("organ", "liver")
    assert folder.reportOf(renamed) == folder.folder / "liver.report.png"
    folder.discard(renamed)
    assert list(folder.folder.iterdir()) == []


def test_a_report_is_also_found_by_the_record(folder: AdapterFolder) -> None:
    path = made(folder, "organ")
    (folder.folder / "organ.result.json").write_text('{"report": "other.png"}', encoding="utf-8")
    assert folder.reportOf(path) is None
    (folder.folder / "other.png").write_bytes(b"picture")
    assert folder.reportOf(path) == folder.folder / "other.png"
