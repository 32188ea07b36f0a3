"""The methods of adaptation, one file each. Adding one: write the file, add its name here."""

from __future__ import annotations

import importlib
from types import ModuleType

from FewShotSegLib.errors import InputError

# Name -> module below this folder.
_MODULES = {"lora": "lora", "asap": "asap.method", "uda": "uda.method", "gmiseg": "gmiseg"}
METHODS = tuple(_MODULES)


def method(name: str) -> ModuleType:
    """The module of a method; it offers LABEL, NEEDS, Recipe, needs_base(), resolve(), smaller_preset() and adapt().

    It may offer preflight(exemplars), in the place of the one of `exemplar`.
    """
    if name not in METHODS:
        raise InputError(f"Unknown method {name!r}; allowed are {', '.join(METHODS)}.")
    return importlib.import_module(f"{__name__}.{_MODULES[name]}")
