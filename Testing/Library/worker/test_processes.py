"""Processes that are ended with their children; that of Windows is played."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from FewShotSegLib.worker import processes


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("by_force", [False, True])
def test_a_process_is_ended_with_its_children(by_force: bool) -> None:
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **processes.options()) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert os.getpgid(child) == process.pid != os.getpgid(0)
        processes.end_tree(process, by_force=by_force)
        assert process.stdout.read() == "", "the child holds the pipe no longer"
        assert process.wait() == (-9 if by_force else -15)
    processes.end_tree(process, by_force=True)  # it is gone: nothing happens


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "os", SimpleNamespace(name="nt"))
    for bit, name in enumerate(("CREATE_NO_WINDOW", "CREATE_NEW_PROCESS_GROUP", "BELOW_NORMAL_PRIORITY_CLASS")):
        monkeypatch.setattr(subprocess, name, 1 << bit, raising=False)


def test_on_windows_no_console_flashes_up_when_a_process_is_ended(
    windows: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[Any, Any]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: ran.append((command, options)))
    processes.end_tree(SimpleNamespace(pid=7, poll=lambda: None), by_force=True)  # type: ignore[arg-type]
    ((command, options),) = ran
    assert command == ["taskkill", "/F", "/T", "/PID", "7"]
    assert options["creationflags"] == subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined]


def test_on_windows_a_process_has_a_group_of_its_own_and_no_window(windows: None) -> None:
    assert processes.options() == {"creationflags": 0b011}
    assert processes.options(gives_way=True) == {"creationflags": 0b111}
