"""Progress and results on a terminal, in a log file, or as JSON lines."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO

from FewShotSegLib.data.adapter import best_step_of
from FewShotSegLib.progress import Progress
from FewShotSegLib.visualization.charts import SCOPES
from FewShotSegLib.visualization.progress_bar import ProgressBar, is_counted, shown_metrics
from FewShotSegLib.visualization.text_table import table

_BETWEEN_S = 60.0  # seconds between two progress lines in a log


class Display:
    """Plain lines on stderr, one per minute during work; results on stdout."""

    def __init__(self, out: TextIO, err: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.out, self.err = out, err
        self._clock = clock
        self._next = -math.inf
        self._said: set[str] = set()

    def progress(self, progress: Progress) -> None:
        if not is_counted(progress):
            self.say(_sentence(progress))
            return
        now = self._clock()
        if now >= self._next:
            self._next = now + _BETWEEN_S
            fraction = progress.fraction or 0.0
            self.line(f"{100 * fraction:3.0f} %  {progress.message}{_numbers(progress.metrics)}")

    def say(self, sentence: str) -> None:
        """Show a sentence once, however many jobs of a run say it."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.line(sentence)

    def line(self, text: str) -> None:
        if text:
            self.err.write(text + "\n")
            self.err.flush()

    def lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.out.write(line + "\n")
        self.out.flush()

    def result(self, result: Mapping[str, Any]) -> None:
        self.lines(summary(result))

    def close(self) -> None:
        pass


class Bar(Display):
    """A progress bar, in interactive sessions."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        self._bar = ProgressBar(err)

    def progress(self, progress: Progress) -> None:
        if is_counted(progress):
            self._bar(progress)
        else:
            self.say(_sentence(progress))

    def line(self, text: str) -> None:
        self.close()
        super().line(text)

    def lines(self, lines: Iterable[str]) -> None:
        self.close()
        super().lines(lines)

    def close(self) -> None:
        self._bar.close()


def _sentence(progress: Progress) -> str:
    return {"warning": "Warning: ", "stage": "Finished: "}.get(progress.kind, "") + progress.message


class JsonLines(Display):
    """One JSON object per line on stdout: type "progress", then "result" (errors come from the caller)."""

    def progress(self, progress: Progress) -> None:
        self._write({"type": "progress", **progress.to_dict()})

    def line(self, text: str) -> None:
        self._write({"type": "message", "message": text})

    def lines(self, lines: Iterable[str]) -> None:
        self._write({"type": "result", "lines": list(lines)})

    def result(self, result: Mapping[str, Any]) -> None:
        self._write({"type": "result", "result": result})

    def _write(self, values: Mapping[str, Any]) -> None:
        self.out.write(json.dumps(values, ensure_ascii=False) + "\n")
        self.out.flush()


class Nothing(Display):
    """No display: in distributed training only rank 0 shows progress."""

    def progress(self, progress: Progress) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def lines(self, lines: Iterable[str]) -> None:
        pass


@contextlib.contextmanager
def display_for(as_json: bool, *, shown: bool = True) -> Iterator[Display]:
    """The display for the available streams; none without `shown`."""
    kind = Nothing if not shown else JsonLines if as_json else Bar if sys.stderr.isatty() else Display
    display = kind(sys.stdout, sys.stderr)
    try:
        yield display
    finally:
        display.close()


def _numbers(metrics: Mapping[str, float]) -> str:
    shown = shown_metrics(metrics)
    return f"  {shown}" if shown else ""


def summary(result: Mapping[str, Any]) -> list[str]:
    """Readable summary of a job's record."""
    lines = [*_adapter_lines(result), *_image_lines(result), *_score_lines(result)]
    lines += [f"Warning: {warning}" for warning in result.get("warnings", [])]
    folder_or_file = result["job"]["out"]
    seconds = sum(result.get("timings_s", {}).values())
    return [*lines, f"{folder_or_file}  ({seconds:.0f} s on {result['device']})"]


def _adapter_lines(result: Mapping[str, Any]) -> list[str]:
    if "adapter" not in result:
        return []
    metrics = result["metrics"]
    lines = [_training_line(metrics)]
    estimate = metrics.get("estimated_dice")
    scores = ", ".join(f"{name} {dice:.2f}" for name, dice in estimate.items()) if estimate else ""
    return [*lines, f"Estimated Dice: {scores + '; ' if scores else ''}{metrics.get('estimate', '')}"]


_ENDED = {
    "steps": "all of them",
    "time": "until the time limit",
    "plateau": "until validation improved no more",
    "user": "until stopped by the user",
}


def _training_line(metrics: Mapping[str, Any]) -> str:
    ended = metrics.get("stopped_by")
    return f"Trained {metrics.get('steps')} steps" + (f", {_ENDED.get(ended, ended)}" if ended else "")


def _image_lines(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for record in result.get("images", []):
        name = record["image"]
        if "error" in record:
            rows.append((name, "failed", "", record["error"]["message"]))
        for structure, row in record.get("metrics", {}).get("structures", {}).items():
            rows.append((name, structure, f"{row['volume_ml']:.1f} mL", ", ".join(row["flags"])))
    return table(rows)


def _score_lines(result: Mapping[str, Any]) -> list[str]:
    groups = result.get("metrics", {}).get("summary", [])
    rows = [
        (
            g["structure"],
            SCOPES[g["scope"]],
            f"n={g['n']}",
            f"Dice {g['dsc']['mean']:.3f}",
            f"HD95 {g['hd95_mm']['mean']:.1f} mm",
            _missed(g["n_one_empty"]),
        )
        for g in groups
    ]
    return table(rows)


def _missed(count: int) -> str:
    if not count:
        return ""
    return f"empty in {count} case{'s' if count > 1 else ''}, in result or reference: HD95 counts the image's diagonal"


def readable_card(values: Mapping[str, Any], parameters: int, size_bytes: int) -> str:
    """An adapter's card in readable form."""
    metrics = {**values["metrics"], "best_step": best_step_of(values["metrics"])}
    exemplars = [
        f"{e['name']}: {_channel_of(e)}slices {'kji'[e['axis']]}={','.join(map(str, e['annotated_slices']))}"
        for e in values["provenance"].get("exemplars", [])
    ]
    tasks = [
        f"{task['name']}: {', '.join(task['structures'])}; {len(task['slices'])} slices"
        for task in values["provenance"].get("tasks", [])
    ]
    named = ", ".join(f"{value} = {name}" for value, name in values["structures"].items())
    intensity = values["intensity"]
    rows = [
        ("structures", named or "none by name: give clicks, boxes or a support set"),
        ("base model", f"{values['base_model']} (sha256 {values['base_sha256'][:12]})"),
        ("method", f"{values['method']}, seed {values['seed']}"),
        ("slices", f"along {'kji'[values['axis']]}, {values['image_size']} px"),
        ("intensity", f"{intensity['kind']} {intensity['low']:g} to {intensity['high']:g}, scale {intensity['scale']}"),
        ("weights", f"{parameters:,} numbers, {size_bytes / 1e6:.1f} MB"),
        *(("exemplar", text) for text in exemplars),
        *(("task", text) for text in tasks),
        *((name.replace("_", " "), _value(metrics[name])) for name in sorted(metrics) if metrics[name] is not None),
        ("recipe", ", ".join(f"{k}={_value(v)}" for k, v in values["recipe"].items() if not isinstance(v, Mapping))),
        ("digest", values["digest"]),
    ]
    return "\n".join(table(rows))


def _channel_of(exemplar: Mapping[str, Any]) -> str:
    return f"channel {exemplar['channel']}, " if "channel" in exemplar else ""


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " ".join(map(_value, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
