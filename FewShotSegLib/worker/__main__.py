"""A resident process that runs jobs and answers prompts: `python -m FewShotSegLib.worker`. JSON lines, no sockets.

One request per line on the input, {"id": 1, "op": ...}:

    hello                               versions of this process
    methods                             the methods of adaptation and the options of their recipes, for a form
    folder   path, holds                contents of a folder, for a form field: its "data sets" or its "volumes"
    job      job, keep                  run a job; with "keep" its model stays loaded for the next one; sends
                                        {"type": "progress", ...} (`Progress.to_dict`), sometimes with a "picture":
                                        shape (H, W, 3) and bytes in base64
    batch    job, processes             the same for a segment job of many images, several at a time: volumes.csv is
                                        written, and an image that fails is named in its record, not in an error
    measure  job                        time and memory of an adapt job, from its first steps; nothing is kept
    preview  job, sheet, count          draw training samples of an adapt job into the PNG `sheet`
    suggest  volume, adapter, axis, known     the slice to annotate next; `known` are the annotated ones
    volume   volume, path, affine, intensity       the array (K, J, I) in an .npy file, under a name; "delete": the file
                                        is removed; intensity as in an adapter, or null for its own
    forget   volume
    encode   volume, axis, index        encode a slice ahead of its first click
    predict  volume, prompt, view       mask of one prompt (as in a prompt file) on one slice; "mask_path": also as .npy
    propagate  volume, prompts, direction, count    masks of one structure on its prompted slices, and on up to `count`
                                        slices from each, higher (1) or lower (-1) ones or both (0)
    cancel   target                     cancel the request of that id, waiting or running
    stop_and_keep_best  target          end the training of that job, keeping the best state
    shutdown

encode, predict, propagate and suggest take "view", "base", "adapter" and "device" too. Each request is answered by one
line {"id", "type"}: type "result" with "result"; "error" with "kind" (input, cancelled, defect) and "message";
"superseded" for a prediction if a newer one for the same view is waiting: the latest click wins. On end of input the
process exits.

Masks are run-length encoded in the response, as in prompt files: a few hundred numbers, and no shared memory to clean
up.

One thread reads requests, so that cancelling works during a job; all torch work is done by the main thread.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from FewShotSegLib.data.json_text import MOST_BYTES, parsed_table
from FewShotSegLib.data.schema import shown
from FewShotSegLib.errors import Cancelled, InputError, of_the_system
from FewShotSegLib.jobs.kept import KeptPredictor
from FewShotSegLib.progress import Control, Progress, Report

Work = Callable[[dict[str, Any]], dict[str, Any]]
LongWork = Callable[[dict[str, Any], Report], dict[str, Any]]
JobKind = TypeVar("JobKind")

_GRACE_S = 5.0  # for the main thread to reach its next report after end of input


class Requests:
    """The queue of requests, filled by the reader thread and consumed by the main thread."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._running: tuple[Any, Control] | None = None
        self._closed = False

    def add(self, request: dict[str, Any]) -> bool:
        """Enqueue a request; returns whether a cancel or stop found its target (True for the others)."""
        with self._changed:
            if request["op"] in ("cancel", "stop_and_keep_best"):
                return self._interrupt(request["op"], request.get("target"))
            self._waiting.append(request)
            self._changed.notify()
            return True

    def close(self) -> None:
        """End of input: the running request is cancelled, waiting ones are dropped."""
        with self._changed:
            self._closed = True
            if self._running is not None:
                self._running[1].cancel()
            self._changed.notify()

    def next(self) -> dict[str, Any] | None:
        """Wait for a request; None at the end. Obsolete ones are marked superseded."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            request = self._waiting.popleft()
            if any(_replaces(other, request) for other in self._waiting):
                request["superseded"] = True
            return request

    def start(self, request: Mapping[str, Any], control: Control) -> None:
        with self._changed:
            self._running = request.get("id"), control
            if self._closed:
                control.cancel()

    def finish(self) -> None:
        with self._changed:
            self._running = None

    def _interrupt(self, op: str, target: Any) -> bool:
        if self._running is not None and self._running[0] == target:
            running = self._running[1]
            running.cancel() if op == "cancel" else running.stop_and_keep_best()
            return True
        for waiting in self._waiting:
            if waiting.get("id") == target and op == "cancel":
                waiting["cancelled"] = True
                return True
        return False


def _replaces(newer: Mapping[str, Any], older: Mapping[str, Any]) -> bool:
    """Whether the older response is obsolete."""
    replaced = {"predict": ("predict", "encode"), "encode": ("encode",)}.get(newer["op"], ())
    return older["op"] in replaced and newer.get("view", "") == older.get("view", "")


class Channel:
    """The output channel; thread-safe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, number: Any, answer: str, **values: Any) -> None:
        line = json.dumps({"id": number, "type": answer, **values}, ensure_ascii=False, default=str)
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()


class Worker:
    """Processes the requests one by one."""

    def __init__(self, channel: Channel, requests: Requests) -> None:
        from .session import PromptSession

        self.channel, self.requests = channel, requests
        self.session = PromptSession()
        self._does = {
            "hello": self._hello,
            "methods": _describe_methods,
            "folder": _describe_folder,
            "job": self._watched(_run_job),
            "batch": self._watched(_run_batch),
            "measure": self._watched(_measure),
            "preview": self._watched(_draw_preview),
            "suggest": self._watched(self.session.suggest),
            "volume": self.session.add_volume,
            "forget": self.session.forget_volume,
            "encode": self.session.encode,
            "predict": self.session.predict,
            "propagate": self._watched(self.session.propagate),
        }

    def run(self) -> None:
        """Process requests until end of input or shutdown."""
        while (request := self.requests.next()) is not None:
            if request["op"] == "shutdown":
                self.channel.send(request.get("id"), "result", result={})
                return
            self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        number = request.get("id")
        if request.pop("superseded", False):
            self.channel.send(number, "superseded", superseded=True)
            return
        try:
            if request.pop("cancelled", False):
                raise Cancelled
            _check_types(request)
            if request["op"] not in self._does:
                raise InputError(f"Unknown request {request['op']!r}; allowed are {', '.join(self._does)}.")
            result = self._does[request["op"]](request)
        except Cancelled:
            self.channel.send(number, "error", kind="cancelled", message="Cancelled.")
        except InputError as error:
            extra = {"result": error.result} if hasattr(error, "result") else {}
            self.channel.send(number, "error", kind="input", message=str(error), **extra)
        except OSError as error:
            self.channel.send(number, "error", kind="input", message=of_the_system(error))
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self.channel.send(number, "error", kind="defect", message=text, traceback=traceback.format_exc())
        else:
            self.channel.send(number, "result", result=result)

    def _hello(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from FewShotSegLib.jobs.record import versions

        return {"pid": os.getpid(), "versions": versions()}

    def _watched(self, work: LongWork) -> Work:
        """Work with progress messages that can be cancelled and stopped."""

        def watched(request: dict[str, Any]) -> dict[str, Any]:
            def report(progress: Progress) -> None:
                self.channel.send(request.get("id"), "progress", **progress.to_dict(), **_picture(progress))

            control = Control(report)
            self.requests.start(request, control)
            try:
                return work(request, control)
            finally:
                self.requests.finish()

        return watched


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("volume", "path", "holds", "sheet", "view", "device", "mask_path"), (str,)),
    **dict.fromkeys(("base", "adapter", "axis"), (str, type(None))),
    **dict.fromkeys(("job", "prompt"), (dict,)),
    **dict.fromkeys(("prompts", "known", "affine"), (list,)),
    "intensity": (dict, type(None)),
}


def _check_types(request: Mapping[str, Any]) -> None:
    """Raise `InputError` for an entry of the wrong type; its value is validated where it is used."""
    for key, kinds in _TYPES.items():
        if key in request and not isinstance(request[key], kinds):
            raise InputError(f'The entry "{key}" of a request is of the wrong kind, got {shown(request[key])}.')


def _picture(progress: Progress) -> dict[str, Any]:
    """The image of a report, if any, as text: 100 kB, every few seconds of training."""
    if progress.picture is None:
        return {}
    data = base64.b64encode(progress.picture.tobytes()).decode()
    return {"picture": {"shape": list(progress.picture.shape), "data": data}}


def _describe_methods(request: Mapping[str, Any]) -> dict[str, Any]:
    from FewShotSegLib.data.recipe import describe
    from FewShotSegLib.methods import METHODS, method

    return {
        "methods": [
            {
                "name": name,
                "label": method(name).LABEL,
                "about": (method(name).__doc__ or "").strip(),
                "needs": sorted(method(name).NEEDS),
                "options": describe(method(name).Recipe),
            }
            for name in METHODS
        ]
    }


def _describe_folder(request: Mapping[str, Any]) -> dict[str, Any]:
    from FewShotSegLib.io.datasets import data_sets_in
    from FewShotSegLib.io.folders import images_in

    path = Path(request.get("path", ""))
    if request.get("holds") == "volumes":
        return {"volumes": len(images_in(path))}
    found = [
        {
            "name": one.name,
            "cases": len(one.cases),
            "structures": list(one.structures or ()),
            "modality": one.modality,
            "licence": one.licence,
        }
        for one in data_sets_in(path)
    ]
    return {"data_sets": found}


_kept: KeptPredictor[Any] = KeptPredictor()  # between the jobs of a batch; after a single job its memory is freed


def _run_job(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    from FewShotSegLib.data.job import from_dict
    from FewShotSegLib.jobs.run import run

    return run(from_dict(request.get("job", {})), report, kept=_kept if request.get("keep") else None)


def _run_batch(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    from FewShotSegLib.data.job import SegmentJob

    from .batch import segment_images

    job, processes = _job_of(SegmentJob, request), request.get("processes", 1)
    return segment_images(job, processes=processes, report=report, raise_failures=False)


def _measure(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    from FewShotSegLib.data.job import AdaptJob
    from FewShotSegLib.jobs.measure import measure

    return measure(_job_of(AdaptJob, request), report)


def _draw_preview(request: Mapping[str, Any], report: Report) -> dict[str, Any]:
    from FewShotSegLib.data.job import AdaptJob
    from FewShotSegLib.jobs.adapt import preview

    sheet = str(request.get("sheet", ""))
    count = request.get("count", 12)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1000:
        raise InputError(f"The count of samples is a whole number from 1 to 1000, got {shown(count)}.")
    preview(_job_of(AdaptJob, request), Path(sheet), count)
    return {"sheet": sheet}


def _job_of(kind: type[JobKind], request: Mapping[str, Any]) -> JobKind:
    from FewShotSegLib.data.job import from_dict

    job = from_dict(request.get("job", {}))
    if not isinstance(job, kind):
        raise InputError(f'The request "{request["op"]}" is for another kind of job than "{job.kind}".')
    return job


def read(stream: TextIO, channel: Channel, requests: Requests, finished: threading.Event) -> None:
    """Read requests until end of input; then give the main thread a moment, and exit the process."""
    for line in _lines(stream):
        if not line.strip():
            continue
        try:
            request = parsed_table(line, "The request")
            number, op = request.get("id"), request.get("op")
            if not isinstance(op, str):
                raise InputError('A request has the name of what to do under "op".')
        except InputError as error:
            text = line.strip()[:200].encode("utf-8", "backslashreplace").decode()
            channel.send(None, "error", kind="input", message=f"Not a request: {error} Got: {text}")
            continue
        found = requests.add(request)
        if op in ("cancel", "stop_and_keep_best"):
            channel.send(number, "result", result={"found": found})
    requests.close()
    if not finished.wait(_GRACE_S):
        os._exit(1)  # outputs are atomic: nothing can be half written


def _lines(stream: TextIO) -> Iterator[str]:
    """The lines of the input; an overlong one is truncated, which makes it invalid."""
    while line := stream.readline(MOST_BYTES):
        yield line
        while len(line) == MOST_BYTES and not line.endswith("\n"):
            line = stream.readline(MOST_BYTES)


def guarded_streams() -> tuple[TextIO, TextIO]:
    """Input and output for the protocol; everything else that is printed, also from C++, goes to stderr."""
    sys.stdout.flush()
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", newline="\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = sys.stderr
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "r", encoding="utf-8", errors="surrogateescape")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    return requests, output


def give_way(niceness: int) -> None:
    """Lower the priority: a GUI that waits for the CPU stutters. On Windows this is set at process creation."""
    if niceness and os.name != "nt":
        os.nice(niceness)
        # Linux schedules by session first, and the worker has its own session. Other systems have no such file, and
        # some kernels do not allow writing it: the worker then merely has a higher priority.
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(niceness))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m FewShotSegLib.worker", description="Answers requests on stdin.")
    parser.add_argument("--niceness", type=int, choices=range(20), default=0, metavar="0..19")
    give_way(parser.parse_args(arguments).niceness)
    stream, output = guarded_streams()
    channel, requests, finished = Channel(output), Requests(), threading.Event()
    reader = threading.Thread(target=read, args=(stream, channel, requests, finished), daemon=True)
    reader.start()
    try:
        Worker(channel, requests).run()
    except BrokenPipeError:  # the front end has exited
        return 1
    finally:
        finished.set()
    return 0


if __name__ == "__main__":
    sys.exit(main())
