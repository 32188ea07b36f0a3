"""Finding, adding and checking base models."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.registry import BaseModel, add, find, location, models, search_folders, verify
from Testing.Library.sam.conftest import a_file

pytestmark = pytest.mark.usefixtures("home")


# --- table and folders


def test_the_bundled_model_is_the_one_in_the_table_and_small_enough_to_ship() -> None:
    model, path = find("bundled-small")
    assert verify("bundled-small") == model.sha256
    assert path.stat().st_size == model.size_bytes
    assert path.stat().st_size <= 16 * 2**20


def test_the_table_names_every_model_once_with_licence_and_full_checksum() -> None:
    table = models()
    names = [model.name for model in table]
    assert names == ["bundled", "bundled-small", "bundled-small-384", "litemedsam", "vit_b", "vit_l", "vit_h", "medsam"]
    for model in table:
        assert model.licence
        assert model.architecture in registry.ARCHITECTURES
        assert model.sha256 is not None
        assert len(bytes.fromhex(model.sha256)) == 32
        assert model.size_bytes
        assert model.downloadable is not (model.name.startswith("bundled"))
        assert model.url is None or model.url.startswith("https://")
    # The official file names carry the first digits of their checksum's published short form.
    assert {m.filename for m in table if m.name.startswith("vit_")} == {
        "sam_vit_b_01ec64.pth",
        "sam_vit_l_0b3195.pth",
        "sam_vit_h_4b8939.pth",
    }


def test_folders_are_searched_in_the_documented_order(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    monkeypatch.setenv("FEWSHOTSEG_MODELS", os.pathsep.join([str(one), str(two)]))
    package = Path(registry.__file__).parents[1]
    assert search_folders() == [
        one,
        two,
        package.parent / "Resources" / "Models",
        package / "Models",
        home / "Models",
    ]
    vit_b = next(m for m in models() if m.name == "vit_b")
    assert location(vit_b) is None
    late = a_file(home / "Models", vit_b.filename)
    assert location(vit_b) == late
    early = a_file(two, vit_b.filename)
    assert find("vit_b") == (vit_b, early)


def test_importing_the_module_loads_nothing_heavy_and_no_network_code() -> None:
    code = (
        "import sys; before = set(sys.modules); import FewShotSegLib.sam.registry\n"
        "heavy = {'torch', 'SimpleITK', 'urllib.request', 'http.client', 'socket', 'safetensors'}\n"
        "assert not heavy & (set(sys.modules) - before), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(registry.__file__).parents[2])


# --- finding


def test_a_model_that_is_not_here_comes_with_the_three_ways_to_get_it(home: Path) -> None:
    with pytest.raises(InputError) as caught:
        find("vit_b")
    message = str(caught.value)
    assert "`fewshotseg models download vit_b`" in message
    assert str(home / "Models" / "sam_vit_b_01ec64.pth") in message
    assert "`fewshotseg models add FILE`" in message


def test_an_unknown_name_lists_the_known_ones() -> None:
    known = "bundled, bundled-small, bundled-small-384, litemedsam, vit_b, vit_l, vit_h, medsam"
    with pytest.raises(InputError, match=f"called vit_x; known models: {known}"):
        find("vit_x")


def test_a_missing_bundled_model_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "search_folders", lambda: [tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"bundled-small .* is missing from this installation; looked in .*nowhere"):
        find("bundled-small")


@pytest.mark.parametrize(
    ("filename", "architecture"),
    [
        ("my_vit_l.pth", "vit_l"),
        ("SAM-ViT-H v2.pt", "vit_h"),
        ("medsam_vitb.pth", "vit_b"),
        ("lite_medsam.pth", "tiny_vit"),
    ],
)
def test_a_file_tells_its_architecture_by_its_name(filename: str, architecture: str, tmp_path: Path) -> None:
    model, path = find(a_file(tmp_path, filename))
    assert (model.architecture, model.name, path.name) == (architecture, Path(filename).stem, filename)
    assert model.sha256 == hashlib.sha256(b"weights").hexdigest()


def test_a_file_of_ours_tells_its_architecture_itself(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    safetensors.save_file({}, path, metadata={"fewshotseg": '{"kind": "tiny_vit"}'})
    assert (find(path)[0].architecture, find(path)[0].scale) == ("tiny_vit", "unit")
    assert add(path, name="mine").scale == "unit"
    with pytest.raises(InputError, match="not a readable model file"):
        find(a_file(tmp_path, "broken.safetensors"))


def test_a_file_whose_name_tells_nothing_asks_for_the_architecture(tmp_path: Path) -> None:
    path = a_file(tmp_path, "weights.pth")
    with pytest.raises(InputError, match="--architecture` with one of compact, tiny_vit, vit_b, vit_l, vit_h"):
        find(path)
    add(path, "vit_l", "mine")
    assert find(path)[0].name == "mine"


# --- adding


def test_an_added_file_is_found_by_its_name_afterwards(tmp_path: Path, home: Path) -> None:
    path = a_file(tmp_path / "größe 1")
    added = add(path, name="ours")
    assert (added.name, added.architecture, added.size_bytes) == ("ours", "vit_b", 7)
    assert find("ours") == (added, path)
    assert [model.name for model in models()][-1] == "ours"
    assert verify("ours") == hashlib.sha256(b"weights").hexdigest()
    entry = json.loads((home / "models.json").read_text(encoding="utf-8"))["models"][0]
    assert entry["path"] == str(path)


def test_adding_under_a_name_again_replaces_the_entry(tmp_path: Path) -> None:
    add(a_file(tmp_path, "a_vit_b.pth"), name="ours")
    second = a_file(tmp_path, "b_vit_l.pth", b"others")
    add(second, name="ours")
    assert find("ours")[1] == second
    assert [model.name for model in models()].count("ours") == 1


def test_a_file_of_the_same_name_in_a_model_folder_does_not_replace_an_added_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_file(tmp_path / "own")
    a_file(tmp_path / "models", content=b"other")
    monkeypatch.setenv("FEWSHOTSEG_MODELS", str(tmp_path / "models"))
    add(path, name="ours")
    assert find("ours")[1] == path


def test_a_copy_of_an_official_file_is_added_under_its_official_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_file(tmp_path, "from a colleague.pth")
    known = BaseModel("vit_b", "vit_b", "sam.pth", "https://x", hashlib.sha256(b"weights").hexdigest(), 7, "Apache-2.0")
    monkeypatch.setattr(registry, "OFFICIAL", (known,))
    assert add(path) == known
    assert find("vit_b") == (known, path)
    assert [m.name for m in models()] == ["vit_b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vit_b"}, "The name vit_b belongs to a model with SHA-256 ec2df627"),
        ({"name": "bundled-small"}, "The name bundled-small belongs"),
        ({"name": "a/b"}, "'a/b' is not allowed"),
        ({"name": "x", "architecture": "vit_g"}, "'vit_g' is unknown: give one of compact, tiny_vit"),
    ],
)
def test_a_name_or_architecture_that_cannot_be_is_refused(
    arguments: dict[str, str], message: str, tmp_path: Path, home: Path
) -> None:
    with pytest.raises(InputError, match=message):
        add(a_file(tmp_path), **arguments)
    assert not (home / "models.json").exists()


def test_a_missing_file_cannot_be_added(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        add(tmp_path / "none.pth", "vit_b")


def test_an_added_file_that_went_away_or_changed_is_named(tmp_path: Path) -> None:
    path = a_file(tmp_path)
    add(path, name="ours")
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="is not the base model ours: its SHA-256 is"):
        verify("ours")
    path.unlink()
    with pytest.raises(InputError, match=r"was added as .* which is no longer there"):
        find("ours")


def test_a_damaged_list_of_models_is_named(home: Path) -> None:
    a_file(home, "models.json", b'{"models": [{"path"')
    with pytest.raises(InputError, match=r"models\.json, cannot be read .*: mend or delete it"):
        models()


# --- removing


def test_a_downloaded_model_is_deleted_and_the_bundled_one_stays(home: Path) -> None:
    path = a_file(home / "Models", "sam_vit_b_01ec64.pth")
    assert registry.remove("vit_b") == f"{path} was deleted."
    assert not path.exists()
    with pytest.raises(InputError, match="nothing to remove"):
        registry.remove("vit_b")
    with pytest.raises(InputError, match="bundled-small comes with FewShotSeg and is not removed"):
        registry.remove("bundled-small")
    assert find("bundled-small")[1].is_file()
    with pytest.raises(InputError, match="No base model is called vit_x; known models: bundled, bundled-small"):
        registry.remove("vit_x")


def test_a_download_that_was_put_elsewhere_is_left_to_who_put_it_there(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_file(tmp_path / "shared", "sam_vit_b_01ec64.pth")
    monkeypatch.setenv("FEWSHOTSEG_MODELS", os.pathsep.join((str(tmp_path / "own"), str(path.parent))))
    with pytest.raises(InputError, match="was not downloaded by FewShotSeg"):
        registry.remove("vit_b")
    assert path.exists()


def test_a_file_of_the_users_own_is_unregistered_and_stays(tmp_path: Path) -> None:
    path = a_file(tmp_path, "my_vit_b.pth")
    add(path, name="mine")
    assert "no longer registered" in registry.remove("mine")
    assert path.is_file()
    assert "mine" not in {model.name for model in models()}
