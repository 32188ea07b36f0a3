"""World size and ranks of a process launched by torchrun, from its environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from FewShotSegLib.errors import InputError

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """One of `count` processes that train together: `rank` is global over all nodes, `local_rank` on this one."""

    rank: int = 0
    local_rank: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.count and 0 <= self.local_rank < self.count):
            raise InputError(
                f"RANK and LOCAL_RANK must be from 0 to below WORLD_SIZE, got {self.rank}, {self.local_rank} and "
                f"{self.count}; start the processes with torchrun, or unset these variables."
            )

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0


def launch_of(environment: Mapping[str, str] | None = None) -> Launch:
    """How this process was launched; without torchrun's environment it is the only one.

    >>> launch_of({})
    Launch(rank=0, local_rank=0, count=1)
    """
    given = os.environ if environment is None else environment
    if not all(name in given for name in _NAMES):
        return Launch()
    try:
        rank, local_rank, count = (int(given[name]) for name in _NAMES[:3])
    except ValueError as error:
        raise InputError(
            "RANK, LOCAL_RANK and WORLD_SIZE must be whole numbers, got "
            f"{', '.join(given[name] for name in _NAMES[:3])}; start the processes with torchrun, or unset these "
            "variables."
        ) from error
    return Launch(rank, local_rank, count)
