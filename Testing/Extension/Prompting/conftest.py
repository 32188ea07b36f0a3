"""The benches of the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from Testing.Extension.bench import Bench
from Testing.Extension.toolbench import ToolBench


@pytest.fixture
def bench(scene: Any) -> Bench:
    return Bench()


@pytest.fixture
def toolBench(scene: Any) -> Iterator[ToolBench]:
    made = ToolBench()
    yield made
    made.tool.remove()
    made.tool.removeHotkeys()
