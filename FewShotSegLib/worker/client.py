"""The client of a worker process. Standard library and numpy only: it runs in Slicer before torch is installed.

client = WorkerClient()
number = client.submit({"op": "job", "job": job.to_dict(...)})
for message in client.poll():          # from a timer; nonblocking
    ...
client.close()

Use one client for prompts and another for jobs, so that clicks are answered during training. Threads here only move
lines between pipes and queues, and voxels into files; messages are handled where `poll` is called.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from FewShotSegLib.errors import InputError

from . import processes, scratch

Array = np.ndarray[Any, np.dtype[Any]]

_ERROR_LINES = 30
# Not `-m`: that puts the current folder first on sys.path, which may contain untrusted data. PYTHONSAFEPATH prevents
# this in Python 3.11 and later; in earlier versions "" is removed.
_START = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; import runpy; "
    "runpy.run_module('FewShotSegLib.worker', run_name='__main__', alter_sys=True)"
)
# Slicer's main thread holds the GIL also while Qt waits for events: only while a poll sleeps can the threads here
# receive what has arrived. Otherwise a response of 400 kB comes ten polls late.
_HANDOVER_S = 0.001
_FOLDER = Path(__file__).resolve().parents[2]  # contains the package, which may not be installed in the worker's Python


# Waiting threads yield the core. With OpenMP's default spinning they would keep it from the thread that they wait for
# when other programs are busy: two threads were seen to take fifteen times as long as one.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


class WorkerClient:
    """Starts a worker on demand, and restarts it after it has died.

    `python` is the interpreter that has torch (default: this one; inside Slicer give PythonSlicer). `environment` is
    added to this process's own. `niceness` 1..19 lowers the priority of the worker.
    """

    def __init__(
        self, python: str | None = None, environment: Mapping[str, str] | None = None, niceness: int = 0
    ) -> None:
        self._command = [python or sys.executable, "-u", "-c", _START, "--niceness", str(niceness)]
        self._niceness = niceness
        self._environment = dict(environment or {})
        self._worker: _Process | None = None
        self._open: set[int] = set()
        self._number = 0
        self._volumes: dict[str, _SentVolume] = {}
        self._folder: Path | None = None

    @property
    def is_running(self) -> bool:
        return self._worker is not None and self._worker.popen.poll() is None

    @property
    def pid(self) -> int | None:
        return self._worker.popen.pid if self._worker is not None else None

    def submit(self, request: Mapping[str, Any]) -> int:
        """Send a request and return its id; starts the worker if necessary."""
        if self._worker is None:
            self._start()
        return self._send(request)

    def poll(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived, in order; at once, or after a millisecond if a response is pending.

        A worker that exited unexpectedly is reported once: {"type": "dead", "ids": [pending requests], "returncode",
        "stderr": its last lines}.
        """
        if self._worker is None:
            return []
        if self._open:
            time.sleep(_HANDOVER_S)
        messages = self._worker.arrived()
        for message in messages:
            if message.get("type") in ("result", "error", "superseded"):
                self._open.discard(message.get("id", 0))
        if self._worker.ended():
            messages += [self._obituary(self._worker)]
        return messages

    def cancel(self, number: int) -> None:
        """Request cancellation; the response is an error of kind "cancelled" (or the result, if faster)."""
        if self._worker is not None:
            self._send({"op": "cancel", "target": number})

    def stop_and_keep_best(self, number: int) -> None:
        """Request a training job to end and keep the best state so far."""
        if self._worker is not None:
            self._send({"op": "stop_and_keep_best", "target": number})

    def send_volume(self, name: str, array: Array, affine: Array, intensity: Mapping[str, Any] | None = None) -> int:
        """Register a volume (K, J, I) with the worker under `name`; it is resent to a new worker.

        The array is not copied, and read later by another thread: send it under another name after changing it. If its
        file cannot be written, every request that needs the volume retries, and fails with the reason.
        """
        self._volumes.pop(name, None)
        self._volumes[name] = _SentVolume(name, np.asarray(array), np.asarray(affine, np.float64), intensity)
        if self._worker is None:
            self._start()  # sends all of them, this one last
            return self._number
        return self._send_volume(self._volumes[name])

    def forget_volume(self, name: str) -> None:
        if self._volumes.pop(name, None) is not None and self._worker is not None:
            self._send({"op": "forget", "volume": name})

    def close(self, patience_s: float = 2.0) -> None:
        """Stop the worker: request, terminate, then kill it with all its children. Waits at most 2 x `patience_s`."""
        worker, self._worker = self._worker, None
        self._open.clear()
        if worker is not None:
            worker.end(patience_s)
        self._volumes.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        paths = [str(_FOLDER), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        changes = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "PYTHONSAFEPATH": "1"}
        environment = {**WAITING, **os.environ, **changes, **self._environment}
        self._worker = _Process(self._command, environment, gives_way=self._niceness > 0)
        for sent in self._volumes.values():  # a new worker has none of them
            self._send_volume(sent)

    def _send(self, request: Mapping[str, Any]) -> int:
        assert self._worker is not None
        number = self._next()
        line = _line(number, request)
        self._worker.write(_Outgoing(number, request.get("op", ""), request.get("volume", ""), lambda: line))
        return number

    def _send_volume(self, sent: _SentVolume) -> int:
        assert self._worker is not None
        number = self._next()
        self._worker.write(_Outgoing(number, "volume", sent.name, lambda: _line(number, sent.request(self._files()))))
        return number

    def _next(self) -> int:
        self._number += 1
        self._open.add(self._number)
        return self._number

    def _files(self) -> Path:
        if self._folder is None or not self._folder.is_dir():
            self._folder = scratch.new_folder()
        return self._folder

    def _obituary(self, worker: _Process) -> dict[str, Any]:
        lost, self._open, self._worker = sorted(self._open), set(), None
        code, lines = worker.popen.wait(), worker.last_errors()
        worker.end(0.0)
        return {"type": "dead", "ids": lost, "returncode": code, "stderr": lines}


@dataclass(frozen=True, eq=False)
class _SentVolume:
    """A volume registered with the worker. It is transferred as a file, which the worker removes after reading.

    Shared memory would save a copy, but Python tracks it with a process started from `sys.executable`, which inside
    Slicer is Slicer.
    """

    name: str
    array: Array
    affine: Array
    intensity: Mapping[str, Any] | None

    def request(self, folder: Path) -> dict[str, Any]:
        """Write the file and return the request that names it; `OSError` if that fails."""
        handle, path = tempfile.mkstemp(suffix=".npy", dir=folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                np.save(stream, self.array)
        except OSError:
            Path(path).unlink(missing_ok=True)  # free the space
            raise
        values = {"op": "volume", "volume": self.name, "path": path, "delete": True}
        return {**values, "affine": self.affine.tolist(), "intensity": self.intensity}


@dataclass(frozen=True, eq=False)
class _Outgoing:
    """A request to be sent: `volume` is the name of the one it needs, "" for none; `make` returns its line."""

    number: int
    op: str
    volume: str
    make: Callable[[], str]


def _line(number: int, request: Mapping[str, Any]) -> str:
    return json.dumps({"id": number, **request}, allow_nan=False) + "\n"


class _Process:
    """The process, and the threads that transfer lines to and from it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, gives_way: bool) -> None:
        try:
            self.popen = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                **processes.options(gives_way=gives_way),
            )
        except OSError as error:
            raise InputError(f"Cannot start {command[0]}: {error.strerror}. Give the path of a Python.") from error
        self._incoming: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[_Outgoing | None] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=_ERROR_LINES)
        self._gone_since = 0.0
        self._threads = [
            threading.Thread(target=work, daemon=True, name=f"worker {self.popen.pid} {work.__name__}")
            for work in (self._read, self._read_errors, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def write(self, request: _Outgoing) -> None:
        self._outgoing.put(request)

    def arrived(self) -> list[dict[str, Any]]:
        messages = []
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(self._incoming.get_nowait())
        return messages

    def ended(self) -> bool:
        """Whether the process has exited and all its output has been read."""
        if self.popen.poll() is None:
            return False
        self._gone_since = self._gone_since or time.monotonic()
        # A child that outlives the worker keeps the pipe open; waiting for end of file would block forever.
        silent = not self._threads[0].is_alive() or time.monotonic() - self._gone_since > 1.0
        return silent and self._incoming.empty()

    def last_errors(self) -> list[str]:
        self._threads[1].join(timeout=1.0)  # the pipe is closed; the rest of it is read at once
        return list(self._errors)

    def end(self, patience_s: float) -> None:
        self._outgoing.put(None)  # closes its input, which makes it exit
        for by_force in (False, True):
            if not self._gone_within(patience_s):
                processes.end_tree(self.popen, by_force=by_force)
        self.popen.wait()
        for thread in self._threads:
            thread.join(timeout=1.0)
        for stream in (self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()

    def _gone_within(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(seconds)
        return self.popen.poll() is not None

    def _read(self) -> None:
        for line in self.popen.stdout or ():
            try:
                self._incoming.put(json.loads(line))
            except ValueError:  # not a message: written to the pipe before the worker redirected stdout
                self._errors.append(line.rstrip())

    def _read_errors(self) -> None:
        for line in self.popen.stderr or ():
            self._errors.append(line.rstrip())

    def _write(self) -> None:
        stream = self.popen.stdin
        assert stream is not None
        owed: dict[str, Callable[[], str]] = {}  # volumes whose files could not be written yet
        while (request := self._outgoing.get()) is not None:
            if request.op in ("volume", "forget"):
                owed.pop(request.volume, None)
            try:
                # Here and not in the caller: writing 100 MB would block the GUI.
                lines = owed[request.volume]() if request.volume in owed else ""
                owed.pop(request.volume, None)
                lines += request.make()
            except OSError as error:
                if request.op == "volume":
                    owed[request.volume] = request.make
                self._incoming.put(_not_handed_over(request.number, error))
                continue
            try:
                stream.write(lines)
                stream.flush()
            except OSError:  # the process is gone; the reader reports it
                break
        with contextlib.suppress(OSError):
            stream.close()


def _not_handed_over(number: int, error: OSError) -> dict[str, Any]:
    sentence = f"Cannot hand the volume to the worker: {error.strerror or error}. Make room in the temporary folder."
    return {"id": number, "type": "error", "kind": "input", "message": sentence}
