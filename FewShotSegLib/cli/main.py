"""`fewshotseg`: the command line. It reads arguments, runs jobs, and shows progress; PyTorch is imported by the jobs.

Exit codes: 0 success, 1 a defect of this program (traceback), 2 something the user can fix (one sentence on stderr),
130 cancelled. The first Ctrl-C requests the work to stop at its next step and leave nothing behind; with `--keep-best`
it ends training there and keeps the best adapter so far. The second one stops at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from FewShotSegLib.data.job import AdaptJob
from FewShotSegLib.data.launch import launch_of
from FewShotSegLib.errors import Cancelled, InputError, of_the_system
from FewShotSegLib.progress import Control

from .arguments import adapt_job_from, evaluate_job_from, parser, recipe_from, segment_job_from
from .display import Display, display_for
from .streams import steady_streams

OK, DEFECT, BAD_INPUT, CANCELLED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; it completes even if its output streams are closed."""
    with steady_streams():
        return _run_words(arguments)


def _run_words(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["benchmark"]:
        return _guarded(lambda: _benchmark(words[1:]), as_json=False)
    try:
        chosen = parser().parse_args(words)
    except SystemExit as stop:  # --help and usage errors, already reported by argparse
        return int(stop.code or 0)
    return _guarded(lambda: _COMMANDS[chosen.command](chosen), as_json=getattr(chosen, "json", False))


def _guarded(command: Any, *, as_json: bool) -> int:
    """The exit code of a command; errors are reported once, in the requested format."""
    try:
        return int(command() or OK)
    except InputError as error:
        return _failed(BAD_INPUT, str(error), as_json)
    except (Cancelled, KeyboardInterrupt):
        return _failed(CANCELLED, "Cancelled.", as_json)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__package__ or ""):
            raise
        return _failed(BAD_INPUT, f"The package {error.name} is not installed: pip install {error.name}", as_json)
    except OSError as error:
        return _failed(BAD_INPUT, of_the_system(error), as_json)
    except Exception as error:
        traceback.print_exc()
        return _failed(DEFECT, f"{type(error).__name__}: {error}. This is a defect; please report it.", as_json)


def _failed(code: int, sentence: str, as_json: bool) -> int:
    if as_json:
        kinds = {BAD_INPUT: "input", CANCELLED: "cancelled", DEFECT: "defect"}
        print(json.dumps({"type": "error", "kind": kinds[code], "message": sentence}, ensure_ascii=False))
    print(sentence, file=sys.stderr)
    return code


# --------------------------------------------------------------------------------------------------------------- jobs


def _adapt(chosen: argparse.Namespace) -> None:
    job = adapt_job_from(chosen, _recipe(chosen))
    if chosen.preview is None:
        _run(job, chosen)
        return
    from FewShotSegLib.jobs.adapt import preview

    preview(job, Path(chosen.preview))
    if not chosen.json:
        print(f"Look at {chosen.preview}; if the samples are right, run the same without --preview.")


def _recipe(chosen: argparse.Namespace) -> dict[str, Any]:
    if not chosen.recipe:
        return {}
    from FewShotSegLib.methods import method

    return recipe_from(method(chosen.method).Recipe, chosen.recipe)


def _segment(chosen: argparse.Namespace) -> None:
    job = segment_job_from(chosen, _support_recipe(chosen))
    from FewShotSegLib.worker.batch import segment_images

    with _watched(chosen) as (control, display):
        result = segment_images(job, processes=chosen.processes, dask=chosen.dask, part=chosen.part, report=control)
        display.result(result)


def _table(chosen: argparse.Namespace) -> None:
    from FewShotSegLib.worker.batch import table_of_folder

    table, count = table_of_folder(Path(chosen.folder))
    print(json.dumps({"table": str(table), "images": count}) if chosen.json else f"{table}: {count} images")


def _support_recipe(chosen: argparse.Namespace) -> dict[str, Any]:
    if not chosen.support_recipe:
        return {}
    from FewShotSegLib.inference.support import SupportRecipe

    return recipe_from(SupportRecipe, chosen.support_recipe)


def _evaluate(chosen: argparse.Namespace) -> None:
    _run(evaluate_job_from(chosen), chosen)


def _job(chosen: argparse.Namespace) -> None:
    from FewShotSegLib.io.jobs import load_job

    _run(load_job(chosen.file), chosen)


def _run(job: Any, chosen: argparse.Namespace) -> None:
    shown = launch_of().is_first or not isinstance(job, AdaptJob)
    with _watched(chosen, shown=shown) as (control, display):
        from FewShotSegLib.jobs.run import run

        display.result(run(job, control))


@contextlib.contextmanager
def _watched(chosen: argparse.Namespace, *, shown: bool = True) -> Iterator[tuple[Control, Display]]:
    """A progress callback that Ctrl-C can stop, and its display."""
    with display_for(chosen.json, shown=shown) as display:
        control = Control(display.progress)
        keep_best = bool(getattr(chosen, "keep_best", False))
        with _ctrl_c(control, keep_best):
            yield control, display


@contextlib.contextmanager
def _ctrl_c(control: Control, keep_best: bool) -> Iterator[None]:
    def asked(number: int, frame: Any) -> None:
        if control.cancelled or control.stopped:
            raise KeyboardInterrupt
        if keep_best:
            control.stop_and_keep_best()
        else:
            control.cancel()

    try:
        before = signal.signal(signal.SIGINT, asked)
    except ValueError:  # not the main thread: the caller handles Ctrl-C
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------------------------------------------- the others


def _models(chosen: argparse.Namespace) -> None:
    from FewShotSegLib.sam import registry
    from FewShotSegLib.sam.download import download

    if chosen.action == "list":
        _list_models(chosen.json)
    elif chosen.action == "verify":
        for name in chosen.names or [m.name for m in registry.models() if registry.location(m)]:
            print(f"{name}: {registry.verify(name)} is right")
    elif chosen.action == "add":
        model = registry.add(chosen.file, chosen.architecture, chosen.name)
        print(f"{model.name} ({model.architecture}) is registered: use it with --base {model.name}")
    elif chosen.action == "remove":
        for name in chosen.names:
            print(registry.remove(name))
    else:
        with _watched(chosen) as (control, display):
            for name in chosen.names:
                path = download(name, control)
                display.line(f"{name}: {path}")


def _list_models(as_json: bool) -> None:
    from dataclasses import asdict

    from FewShotSegLib.sam import registry

    found = [(model, registry.location(model)) for model in registry.models()]
    if as_json:
        print(json.dumps([asdict(model) | {"path": path and str(path)} for model, path in found]))
        return
    for model, path in found:
        where = (
            str(path)
            if path
            else f"not here; fewshotseg models download {model.name}"
            if model.downloadable
            else "not here"
        )
        size = f"{model.size_bytes / 1e6:.0f} MB" if model.size_bytes else ""
        print(f"{model.name:12} {model.architecture:8} {size:>8}  {model.note}\n{'':12} {where}")
    print(f"Downloads go to {registry.download_folder()}")


def _show(chosen: argparse.Namespace) -> None:
    from FewShotSegLib.data.adapter import card
    from FewShotSegLib.io.adapters import load_adapter

    from .display import readable_card

    adapter = load_adapter(chosen.adapter)
    values = card(adapter)
    if chosen.json:
        print(json.dumps(values, ensure_ascii=False))
        return
    count = sum(int(tensor.size) for tensor in adapter.tensors.values())
    print(readable_card(values, count, Path(chosen.adapter).stat().st_size))


def _export_nnunet(chosen: argparse.Namespace) -> None:
    from FewShotSegLib.io.nnunet import export_nnunet

    with _watched(chosen) as (control, display):
        made = export_nnunet(
            chosen.images,
            chosen.labels,
            chosen.out,
            number=chosen.id,
            name=chosen.name,
            channel=chosen.channel,
            report=control,
        )
        structures = ", ".join(f"{label} = {name}" for label, name in made.structures.items())
        plural = "case" if made.cases == 1 else "cases"
        display.lines([f"{made.cases} {plural}: {structures}", str(made.folder)])


def _info(chosen: argparse.Namespace) -> None:
    from .info import readable_info, system_info

    values = system_info()
    print(json.dumps(values, ensure_ascii=False) if chosen.json else "\n".join(readable_info(values)))


def _demo(chosen: argparse.Namespace) -> None:
    with _watched(chosen) as (control, display):
        from FewShotSegLib.demo.run import run_demo

        display.lines(run_demo(Path(chosen.out), seed=chosen.seed, base=chosen.base, report=control))


def _benchmark(words: list[str]) -> int:
    kinds = ("accuracy", "speed", "asap", "uda", "support")
    if not words or words[0] not in kinds:
        if words[:1] in (["-h"], ["--help"]):
            print(f"usage: fewshotseg benchmark {{{','.join(kinds)}}} [--data DIR] ...; each has its own --help")
            return OK
        raise InputError(f"fewshotseg benchmark {' or '.join(kinds)}: say which, got {words[0] if words else 'none'}.")
    module = importlib.import_module(f"FewShotSegLib.benchmarks.{words[0]}")
    return int(module.main(words[1:]))


_COMMANDS = {
    "adapt": _adapt,
    "segment": _segment,
    "evaluate": _evaluate,
    "job": _job,
    "models": _models,
    "export-nnunet": _export_nnunet,
    "info": _info,
    "show": _show,
    "table": _table,
    "demo": _demo,
}


if __name__ == "__main__":
    sys.exit(main())
