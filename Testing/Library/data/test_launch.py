"""What a process is told of the others that were started with it."""

from __future__ import annotations

import pytest

from FewShotSegLib.data.launch import Launch, launch_of
from FewShotSegLib.errors import InputError

TOLD = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_the_variables_of_torchrun_say_which_of_how_many_this_is() -> None:
    assert launch_of(TOLD) == Launch(rank=3, local_rank=1, count=4)
    assert not launch_of(TOLD).is_first
    assert launch_of({**TOLD, "RANK": "0", "LOCAL_RANK": "0"}).is_first


@pytest.mark.parametrize("missing", TOLD)
def test_a_process_that_is_not_told_all_of_it_is_the_only_one(missing: str) -> None:
    alone = launch_of({name: value for name, value in TOLD.items() if name != missing})
    assert (alone, alone.is_first) == (Launch(0, 0, 1), True)


@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        ({"RANK": "4"}, "from 0 to below WORLD_SIZE, got 4, 1 and 4"),
        ({"LOCAL_RANK": "-1"}, "from 0 to below WORLD_SIZE, got 3, -1 and 4"),
        ({"WORLD_SIZE": "four"}, "must be whole numbers, got 3, 1, four"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(odd: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        launch_of({**TOLD, **odd})
