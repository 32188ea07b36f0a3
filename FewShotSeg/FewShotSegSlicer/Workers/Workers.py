"""The two resident processes that compute, and who waits for which answer. No Qt: whoever owns this calls `poll`."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from FewShotSegLib.errors import InputError
from FewShotSegLib.worker.client import WorkerClient
from FewShotSegSlicer.Signal import guarded

WorkerName = Literal["prompt", "job"]
_NICENESS: dict[WorkerName, int] = {"prompt": 5, "job": 15}  # the window before the clicks, the clicks before the jobs
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class _Waiting:
    """Who hears what becomes of a request."""

    onResult: Callable[[dict[str, Any]], Any] | None = None
    onError: Callable[[str, str], Any] | None = None
    onProgress: Callable[[dict[str, Any]], Any] | None = None
    onSuperseded: Callable[[], Any] | None = None


class Workers:
    """The resident worker processes: "prompt" answers clicks, "job" adapts and segments, so that neither waits for the
    other.

    A process starts with its first request, and again with the next request after it died. What the callbacks of a
    request hear, always from `poll`:

    - onProgress(message): {"step", "total", "message", "metrics"}, any number of times; then one of
    - onResult(result),
    - onSuperseded(): a newer click of the same view made the answer useless,
    - onError(kind, message): kind is "input" (the user can fix it), "cancelled", "defect" (the traceback follows the
      sentence after an empty line) or "dead" (the process ended; the message says why).
    """

    def __init__(self, python: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        """`python` is the interpreter that has torch: PythonSlicer inside Slicer, otherwise this one."""
        python = python or shutil.which("PythonSlicer") or sys.executable
        # Training on every core would make each click wait for a second; OMP_NUM_THREADS, if set, is the user's choice.
        spared = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 2) - 1, 1)), **os.environ, **(environment or {})}
        jobs = {**(environment or {}), "OMP_NUM_THREADS": spared["OMP_NUM_THREADS"]}
        self._clients = {
            "prompt": WorkerClient(python, environment, niceness=_NICENESS["prompt"]),
            "job": WorkerClient(python, jobs, niceness=_NICENESS["job"]),
        }
        self._waiting: dict[tuple[str, int], _Waiting] = {}
        self._refused: list[tuple[str, int, str]] = []
        self.generation = 0
        """Counts the calls of `close`: the processes that come after one know no volumes."""

    def request(
        self,
        worker: WorkerName,
        request: Mapping[str, Any],
        *,
        onResult: Callable[[dict[str, Any]], Any] | None = None,
        onError: Callable[[str, str], Any] | None = None,
        onProgress: Callable[[dict[str, Any]], Any] | None = None,
        onSuperseded: Callable[[], Any] | None = None,
    ) -> int:
        """Send a request (see FewShotSegLib.worker) and return its number; never waits, and never calls back itself."""
        waiting = _Waiting(onResult, onError, onProgress, onSuperseded)
        try:
            number = self._clients[worker].submit(request)
        except InputError as error:  # Python cannot be started: told by the next poll, like every other error
            number = -len(self._refused) - 1
            self._refused.append((worker, number, str(error)))
        self._waiting[worker, number] = waiting
        return number

    def cancel(self, worker: WorkerName, number: int) -> None:
        """Ask for a request to be given up; it ends with onError("cancelled", ...), or well if it was faster."""
        self._clients[worker].cancel(number)

    def stopAndKeepBest(self, number: int) -> None:
        """Ask a training job to end well, with the best so far."""
        self._clients["job"].stop_and_keep_best(number)

    def sendVolume(
        self,
        name: str,
        array: Array,
        affine: Array,
        intensity: Mapping[str, Any] | None = None,
        worker: WorkerName = "prompt",
    ) -> None:
        """Make a volume (K, J, I) known under `name`, also to a process that replaces this one; never waits.

        The array is read later: send it under another name once it has changed. `intensity` is the rule of
        FewShotSegLib.data.intensity that the user chose; None: the adapter's, or automatic.
        """
        self._clients[worker].send_volume(name, array, affine, intensity)

    def forgetVolume(self, name: str, worker: WorkerName = "prompt") -> None:
        """Take a volume from a process, and do not give it to one that comes after."""
        self._clients[worker].forget_volume(name)

    def poll(self) -> None:
        """Call back for everything that has arrived, on this thread; never waits. What a callback raises is logged."""
        refused, self._refused = self._refused, []
        for worker, number, sentence in refused:
            self._end(worker, number, "error", {"kind": "input", "message": sentence})
        for worker, client in self._clients.items():
            for message in client.poll():
                self._take(worker, message)

    def close(self) -> None:
        """End both processes, within seconds whatever they do. What waits is dropped: nobody is called any more."""
        self._waiting.clear()
        self._refused.clear()
        self.generation += 1
        for client in self._clients.values():
            client.close()

    def _take(self, worker: str, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "dead":
            sentence = _causeOfDeath(worker, message)
            for number in message["ids"]:
                self._end(worker, number, "error", {"kind": "dead", "message": sentence})
        elif kind == "progress":
            waiting = self._waiting.get((worker, message["id"]))
            guarded(waiting.onProgress if waiting else None, message)
        else:
            self._end(worker, message["id"], kind, message)

    def _end(self, worker: str, number: int, kind: str, message: dict[str, Any]) -> None:
        waiting = self._waiting.pop((worker, number), None)
        if waiting is None:
            return  # nobody asked: answers to cancel and to volumes, or the request was dropped by close
        if kind == "result":
            guarded(waiting.onResult, message["result"])
        elif kind == "superseded":
            guarded(waiting.onSuperseded)
        else:
            text = "\n\n".join(filter(None, [message["message"], message.get("traceback")]))
            guarded(waiting.onError, message["kind"], text)


_PROCESSES = {"prompt": "The process that answers clicks", "job": "The process that adapts and segments"}
# What the launcher PythonSlicer says when its Python was killed; then it ends with code 1 itself.
_LAUNCHERS_WORDS = "exit abnormally"
_MAKE_ROOM = "close other programs, or choose a smaller preset or fewer slices"
_OUT_OF_MEMORY = ("MemoryError", "out of memory", "Cannot allocate memory", "DefaultCPUAllocator", "bad_alloc")


def _causeOfDeath(worker: str, message: Mapping[str, Any]) -> str:
    """Say what happened to a process, what the user can do, and that nothing of theirs is lost."""
    code, lines = message["returncode"], message["stderr"]
    said = "\n".join(lines)
    missing = next((line for line in lines if "No module named" in line), None)
    if missing is not None:
        return f"{_PROCESSES[worker]} cannot work yet ({missing.strip()}). Press Install, then try again."
    if any(word in said for word in _OUT_OF_MEMORY):
        why = f"Memory ran out: {_MAKE_ROOM}."
    elif _wasKilled(code, lines):
        why = f"It was killed or has crashed, most often because memory ran out: {_MAKE_ROOM}."
    else:
        why = f"Its last words: {lines[-1].strip()}" if lines else "It said nothing."
    return f"{_PROCESSES[worker]} ended unexpectedly (code {code}). {why} It starts again with the next request; \
the scene is as it was."


def _wasKilled(code: int, lines: Sequence[str]) -> bool:
    bySignal = code in (-signal.SIGTERM, -getattr(signal, "SIGKILL", signal.SIGTERM))
    return bySignal or any(_LAUNCHERS_WORDS in line for line in lines)
