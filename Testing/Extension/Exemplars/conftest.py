"""The exemplars of the scene."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from FewShotSegSlicer.Exemplars.ExemplarStore import ExemplarStore


@pytest.fixture
def store(scene: Any) -> Iterator[ExemplarStore]:
    made = ExemplarStore()
    yield made
    made.close()
