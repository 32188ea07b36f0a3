"""The exceptions that every caller relies on."""

from __future__ import annotations

import pytest

from FewShotSegLib.errors import Cancelled, InputError, StopAndKeepBest


def test_input_errors_are_value_errors_and_cancelling_is_not():
    assert issubclass(InputError, ValueError)
    assert not issubclass(Cancelled, ValueError)


@pytest.mark.parametrize("kind", [Cancelled, StopAndKeepBest])
def test_what_the_user_asked_for_is_not_caught_as_an_error(kind: type[Exception]) -> None:
    assert not issubclass(kind, ValueError | OSError | RuntimeError)
    assert not issubclass(Cancelled, StopAndKeepBest)
    assert not issubclass(StopAndKeepBest, Cancelled)
