"""Untrusted JSON within limits: invalid input is rejected with a clear message before it is used."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from FewShotSegLib.errors import InputError

MOST_BYTES = 16 << 20
_MOST_DEPTH = 64
_MOST_DIGITS = 19  # of an integer: 64 bits
_LONGEST_NUMBER = 400


def parsed_json(content: str | bytes, what: str) -> Any:
    """Return the JSON value in a text (UTF-8 if bytes); `what` starts the message of an `InputError`.

    Rejected are texts of more than 16 MB, nesting deeper than 64, numbers of more than 19 digits, NaN and Infinity
    (which are not JSON), and texts with null bytes or lone surrogates, which occur in no file or structure name.
    """
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{what} is too large: {len(content) / 1e6:.0f} MB, at most {MOST_BYTES / 1e6:.0f} MB are read."
        )
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, parse_int=_whole, parse_float=_fraction, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise InputError(f"{what} is not JSON: it is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{what} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise InputError(f"{what} is nested too deeply; at most {_MOST_DEPTH} levels are read.") from None
    except _NoNumberError as error:
        raise InputError(f"{what} holds {error}, which is no number that is read here.") from None
    _check(value, what)
    return value


def parsed_table(content: str | bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in a text; anything else is rejected."""
    value = parsed_json(content, what)
    if not isinstance(value, dict):
        raise InputError(f"{what} must hold a table of names and values, got {_kind_of(value)}.")
    return value


class _NoNumberError(Exception):
    """An invalid number, as written."""


def _whole(text: str) -> int:
    return int(text) if len(text.lstrip("-")) <= _MOST_DIGITS else _no_number(text)


def _fraction(text: str) -> float:
    number = float(text) if len(text) <= _LONGEST_NUMBER else _no_number(text)
    return number if abs(number) != float("inf") else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise _NoNumberError(text if len(text) <= 40 else f"a number of {len(text)} digits")


def _check(value: Any, what: str) -> None:
    """Reject excessive depth and invalid texts; breadth-first, so that depth uses no stack."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.keys()
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and not _is_text(one):
                raise InputError(f"{what} holds a text with a zero byte or half a character: {one[:40]!a}.")
        level, depth = below, depth + 1
        if depth > _MOST_DEPTH:
            raise InputError(f"{what} is nested too deeply; at most {_MOST_DEPTH} levels are read.")


def _is_text(text: str) -> bool:
    if text.isascii():
        return "\0" not in text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _kind_of(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
