"""What every method of adaptation promises."""

from __future__ import annotations

import pytest

from FewShotSegLib.errors import InputError
from FewShotSegLib.methods import METHODS, lora, method


def test_methods_are_found_by_name_and_unknown_ones_refused() -> None:
    assert method("lora") is lora
    with pytest.raises(InputError, match=f"Unknown method 'magic'.*{METHODS[0]}"):
        method("magic")
