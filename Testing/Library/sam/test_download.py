"""Downloading base models from a local server: whole and checked, continued, cancelled, refused."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.progress import Progress
from FewShotSegLib.sam import registry
from FewShotSegLib.sam.download import download
from FewShotSegLib.sam.registry import BaseModel
from Testing.Library.sam.conftest import a_file

pytestmark = pytest.mark.usefixtures("home")

CONTENT = bytes(range(256)) * 12_000  # three chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


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
        ("bundled-small", "cannot be downloaded"),
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
