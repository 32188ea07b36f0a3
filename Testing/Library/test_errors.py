"""The exceptions that every caller relies on."""

from __future__ import annotations

from FewShotSegLib.errors import Cancelled, InputError


def test_input_errors_are_value_errors_and_cancelling_is_not():
    assert issubclass(InputError, ValueError)
    assert not issubclass(Cancelled, ValueError)
