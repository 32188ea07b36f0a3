"""SHA-256 of arrays and of JSON values: equal content, equal digest, independent of memory layout."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np


def sha256_of_array(array: np.ndarray[Any, Any]) -> str:
    """Return a SHA-256 over dtype, shape and values; memory layout and byte order do not matter.

    >>> a = np.arange(6, dtype=np.int16).reshape(2, 3)
    >>> sha256_of_array(a) == sha256_of_array(np.asfortranarray(a.astype(">i2")))
    True
    >>> sha256_of_array(a) == sha256_of_array(a.reshape(3, 2))
    False
    """
    array = np.asarray(array)
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    digest = hashlib.sha256(f"{little.dtype.str}{little.shape}".encode())
    digest.update(little.data if little.size else b"")
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return a SHA-256 over a value of JSON types; the order of keys does not matter.

    >>> sha256_of_json({"a": 1, "b": [2]}) == sha256_of_json({"b": (2,), "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
