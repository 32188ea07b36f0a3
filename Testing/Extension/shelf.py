"""Python packages without content, and a package index on this computer that offers them."""

from __future__ import annotations

import http.server
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def writeMetadata(folder: Path, name: str, version: str, *requires: str) -> None:
    """A folder NAME.dist-info as pip leaves one behind."""
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


def writeWheel(folder: Path, name: str, version: str, *requires: str, padding: int = 0) -> Path:
    """A wheel with nothing in it but, if wanted, a file of so many bytes."""
    info, path = folder / f"{name}-{version}.dist-info", folder / f"{name}-{version}-py3-none-any.whl"
    writeMetadata(info, name, version, *requires)
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "RECORD").touch()
    with zipfile.ZipFile(path, "w") as archive:
        for file in info.iterdir():
            archive.write(file, f"{info.name}/{file.name}")
        archive.writestr(f"{name}.dat", bytes(padding))
    return path


class Shelf:
    """What the index offers, and how it behaves: after `stopsAfter` bytes of a file it waits, or hangs up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopsAfter: int | None = None
        self.hangsUp = False
        self.isOver = threading.Event()
        self.address = ""

    def pageOf(self, name: str) -> str:
        """The wheels of a name, as PEP 503 has them."""
        files = sorted(self.folder.glob(f"{name.replace('-', '_')}-*.whl"))
        return "".join(f'<a href="/{file.name}">{file.name}</a>' for file in files)


@contextmanager
def served(folder: Path) -> Iterator[Shelf]:
    """An index of the wheels in a folder, until the block ends."""
    shelf = Shelf(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.strip("/").split("/")
            if parts[0] == "simple":
                self._send(shelf.pageOf(parts[1]).encode(), "text/html", None)
            else:
                self._send((folder / parts[0]).read_bytes(), "application/octet-stream", shelf.stopsAfter)

        def _send(self, content: bytes, kind: str, stopsAfter: int | None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:stopsAfter])
            self.wfile.flush()
            while stopsAfter is not None and not shelf.hangsUp and not shelf.isOver.is_set():
                time.sleep(0.01)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    shelf.address = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield shelf
    finally:
        shelf.isOver.set()
        server.shutdown()
        server.server_close()
        thread.join()
