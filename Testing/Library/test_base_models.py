"""Finding, adding, checking and downloading base models; the server is a local one."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.io import places
from FewShotSegLib.progress import Progress
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.download import download
from FewShotSegLib.sam.registry import BaseModel, add, find, location, models, search_folders, verify

CONTENT = bytes(range(256)) * 12_000  # three chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user folder of this test's own, with a space and a letter outside ASCII in its path."""
    folder = tmp_path / "Müller home"
    monkeypatch.setenv("FEWSHOTSEG_HOME", str(folder))
    monkeypatch.delenv("FEWSHOTSEG_MODELS", raising=False)
    return folder


@dataclass
class Server:
    """What the local server does and has seen."""

    url: str = ""
    stop_after: int | None = None
    supports_ranges: bool = True
    status: int = 200
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.supports_ranges else 0
            body = CONTENT[start:]
            self.send_response(206 if asked and state.supports_ranges else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client may have cancelled
                self.wfile.write(body[: state.stop_after])

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state.url = f"http://127.0.0.1:{httpd.server_address[1]}/weights.pth"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


@pytest.fixture
def model(server: Server) -> BaseModel:
    return BaseModel("toy", "vit_b", "weights.pth", server.url, SHA256, len(CONTENT))


def a_file(folder: Path, name: str = "mine vit_b.pth", content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


# --- table and folders


def test_the_bundled_model_is_the_one_in_the_table_and_small_enough_to_ship() -> None:
    model, path = find("bundled")
    assert verify("bundled") == model.sha256
    assert path.stat().st_size == model.size_bytes
    assert path.stat().st_size <= 16 * 2**20


def test_the_table_names_every_model_once_with_licence_and_full_checksum() -> None:
    table = models()
    names = [model.name for model in table]
    assert names == ["bundled", "bundled-384", "litemedsam", "vit_b", "vit_l", "vit_h", "medsam"]
    for model in table:
        assert model.licence
        assert model.architecture in registry.ARCHITECTURES
        assert model.sha256 is not None
        assert len(bytes.fromhex(model.sha256)) == 32
        assert model.size_bytes
        assert model.downloadable is not model.name.startswith("bundled")
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


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("win32", "LOCALAPPDATA", "FewShotSeg"),
        ("linux", "XDG_DATA_HOME", "fewshotseg"),
        ("darwin", None, "FewShotSeg"),
    ],
)
def test_the_user_folder_follows_the_system(
    platform: str, variable: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEWSHOTSEG_HOME")
    monkeypatch.setattr(sys, "platform", platform)
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path))
        assert places.user_folder() == tmp_path / expected
        monkeypatch.delenv(variable)
    assert places.user_folder().name == expected
    assert Path.home() in places.user_folder().parents


def test_importing_the_module_loads_nothing_heavy_and_no_network_code() -> None:
    code = (
        "import sys; before = set(sys.modules); import FewShotSegLib.sam.registry\n"
        "heavy = {'torch', 'SimpleITK', 'urllib.request', 'http.client', 'socket', 'safetensors'}\n"
        "assert not heavy & (set(sys.modules) - before), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(registry.__file__).parents[1])


# --- finding


def test_a_model_that_is_not_here_comes_with_the_three_ways_to_get_it(home: Path) -> None:
    with pytest.raises(InputError) as caught:
        find("vit_b")
    message = str(caught.value)
    assert "`fewshotseg models download vit_b`" in message
    assert str(home / "Models" / "sam_vit_b_01ec64.pth") in message
    assert "`fewshotseg models add FILE`" in message


def test_an_unknown_name_lists_the_known_ones() -> None:
    known = "bundled, bundled-384, litemedsam, vit_b, vit_l, vit_h, medsam"
    with pytest.raises(InputError, match=f"called vit_x; known models: {known}"):
        find("vit_x")


def test_a_missing_bundled_model_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "search_folders", lambda: [tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"bundled .* is missing from this installation; looked in .*nowhere"):
        find("bundled")


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
    assert find(path)[0].architecture == "tiny_vit"
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
        ({"name": "bundled"}, "The name bundled belongs"),
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


# --- downloading


def test_a_download_reports_bytes_and_ends_with_the_checked_file(model: BaseModel, home: Path) -> None:
    reports: list[Progress] = []
    path = download(model, reports.append)
    assert path == home / "Models" / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert reports[0].step == 0
    assert reports[-1].step == reports[-1].total == len(CONTENT)
    assert [r.step for r in reports] == sorted({r.step for r in reports})


def test_a_file_that_is_here_is_not_fetched_again(model: BaseModel, server: Server) -> None:
    assert download(model) == download(model)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("supports_ranges", [True, False])
def test_a_broken_download_continues_where_it_stopped(
    model: BaseModel, server: Server, home: Path, supports_ranges: bool
) -> None:
    server.stop_after, server.supports_ranges = 1_500_000, supports_ranges
    with pytest.raises(InputError, match=r"broke off.*continues where it stopped"):
        download(model)
    part = home / "Models" / "weights.pth.part"
    done = part.stat().st_size
    assert 0 < done <= 1_500_000
    assert not (home / "Models" / "weights.pth").exists()
    server.stop_after = None
    steps: list[int] = []
    path = download(model, lambda progress: steps.append(progress.step))
    assert server.ranges == [None, f"bytes={done}-"]
    assert steps[0] == (done if supports_ranges else 0)
    assert path.read_bytes() == CONTENT
    assert not part.exists()


def test_a_cancelled_download_keeps_what_it_has(model: BaseModel, server: Server) -> None:
    def cancel_in_the_middle(progress: Progress) -> None:
        if progress.step > 0:
            raise Cancelled

    with pytest.raises(Cancelled):
        download(model, cancel_in_the_middle)
    assert download(model).read_bytes() == CONTENT
    assert server.ranges[1] is not None


def test_a_whole_part_file_is_checked_without_asking_the_server(model: BaseModel, server: Server, home: Path) -> None:
    a_file(home / "Models", "weights.pth.part", CONTENT)
    assert download(model).read_bytes() == CONTENT
    assert not server.ranges


@pytest.mark.parametrize("wrong", [b"x" * len(CONTENT), b"wrong start"])
def test_a_part_file_of_something_else_is_discarded(model: BaseModel, home: Path, wrong: bytes) -> None:
    a_file(home / "Models", "weights.pth.part", wrong)
    with pytest.raises(InputError, match="was discarded: its SHA-256 is"):
        download(model)
    assert download(model).read_bytes() == CONTENT


def test_a_part_file_longer_than_the_model_is_started_anew(model: BaseModel, home: Path) -> None:
    a_file(home / "Models", "weights.pth.part", b"x" * (len(CONTENT) + 5))
    assert download(model).read_bytes() == CONTENT


def test_a_wrong_checksum_discards_the_download(model: BaseModel, home: Path) -> None:
    with pytest.raises(InputError, match=f"discarded: its SHA-256 is {SHA256}, but {'0' * 64} is expected"):
        download(replace(model, sha256="0" * 64))
    assert not list((home / "Models").iterdir())


def test_a_server_error_is_told_with_the_other_way_to_get_the_file(model: BaseModel, server: Server) -> None:
    server.status = 404
    with pytest.raises(InputError, match=r"the server answered 404 .* get http://127.* elsewhere and put it at"):
        download(model)


def test_without_a_network_one_sentence_says_what_to_do(model: BaseModel, home: Path) -> None:
    import socket

    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        offline = replace(model, url=f"http://127.0.0.1:{unused.getsockname()[1]}/weights.pth")
        with pytest.raises(InputError) as caught:
            download(offline)
    assert "Cannot download the base model toy" in str(caught.value)
    assert str(home / "Models" / "weights.pth") in str(caught.value)


def test_too_little_space_is_told_before_the_transfer(
    model: BaseModel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=10, used=9, free=1))
    with pytest.raises(InputError, match=r"needs 3 MB, but .* has 0 MB free"):
        download(model)
    assert not list((home / "Models").iterdir())


def test_a_folder_that_cannot_be_made_is_named(model: BaseModel, tmp_path: Path) -> None:
    blocker = a_file(tmp_path, "a file")
    with pytest.raises(InputError, match=r"Cannot write .*a file"):
        download(model, folder=blocker / "Models")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bundled", "cannot be downloaded"),
        ("vit_x", "these can be downloaded: litemedsam, vit_b, vit_l, vit_h, medsam"),
    ],
)
def test_what_has_no_address_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "search_folders", lambda: [tmp_path])
    with pytest.raises(InputError, match=message):
        download(name)


def test_downloads_go_to_the_folder_of_the_environment_variable(
    model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSHOTSEG_MODELS", str(tmp_path / "shared"))
    assert download(model) == tmp_path / "shared" / "weights.pth"
