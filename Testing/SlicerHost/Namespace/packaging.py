"""Stand-in for slicer.packaging of Slicer 5.12: checks requirements; as Slicer in testing mode it installs none."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def load_requirements(path: str | Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in Path(path).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def pip_check(reqs: str | Requirement | Iterable[str | Requirement]) -> bool:
    several = [reqs] if isinstance(reqs, str | Requirement) else reqs
    return all(_isSatisfied(Requirement(str(one))) for one in several)


def pip_ensure(reqs: Any, requester: str | None = None, skip_in_testing: bool = True, **options: Any) -> list[str]:
    if not skip_in_testing and not pip_check(reqs):
        raise RuntimeError(f"The test host installs nothing; {requester} asked for {reqs}.")
    return []


def _isSatisfied(requirement: Requirement) -> bool:
    if requirement.marker and not requirement.marker.evaluate():
        return True
    try:
        return version(requirement.name) in requirement.specifier
    except PackageNotFoundError:
        return False
