"""Dataclasses and JSON: values are coerced to their declared types, or rejected with a message on what is allowed.

JSON has no tuples and only strings as keys, forms have no integers, users mistype names. The declaration of a dataclass
is the only schema:

@dataclass(frozen=True)
class Settings:
    rank: int = 4

    def __post_init__(self) -> None:
        coerce(self, "setting")
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from FewShotSegLib.errors import InputError

T = TypeVar("T")


def coerce(instance: Any, noun: str) -> None:
    """Coerce every field of a frozen dataclass to its declared type in place, or raise `InputError` for the first that
    does not fit. `noun` is what its fields are called in messages, such as "job entry".

    Integral floats given for an int, ints given for a float, lists given for a tuple, and tables given for a nested
    dataclass are converted to the declared type, so that a round trip through JSON or a form is lossless.
    """
    hints = typing.get_type_hints(type(instance))
    for entry in dataclasses.fields(instance):
        given = getattr(instance, entry.name)
        value = _Coercion(noun, entry.name).to(given, hints[entry.name])
        if value is not given:
            object.__setattr__(instance, entry.name, value)


def construct(cls: type[T], values: Any, noun: str) -> T:
    """Return `cls(**values)` with everything coerced to its declared type; unknown and missing names are rejected."""
    if not isinstance(values, Mapping):
        raise InputError(f"{_article(noun)} must be a table of names and values, got {shown(values)}.")
    check_names(cls, values, noun)
    for entry in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and entry.name not in values:
            raise InputError(f'The {noun} "{entry.name}" is missing; add it.')
    instance = cls(**values)
    coerce(instance, noun)
    return instance


def check_names(cls: Any, names: Iterable[Any], noun: str) -> None:
    """Raise `InputError` for the first name that is not a field of the dataclass, with the closest match."""
    known = [entry.name for entry in dataclasses.fields(cls)]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else "."
            raise InputError(f'Unknown {noun} "{name}"{hint} Allowed: {", ".join(sorted(known))}.')


def to_json(value: Any) -> Any:
    """Return the value as JSON types: dataclasses and mappings become objects, tuples lists.

    >>> to_json({1: ("a", "b")})
    {'1': ['a', 'b']}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: to_json(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(element) for key, element in value.items()}
    return [to_json(element) for element in value] if isinstance(value, tuple | list) else value


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def described(hint: Any) -> str:
    """Return what a type allows, in words.

    >>> described(tuple[int, ...] | None)
    'a list (a whole number) or none'
    """
    members = alternatives(hint)
    if len(members) > 1:
        return " or ".join(described(member) for member in members)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in arguments)
    if origin is tuple:
        return f"a list ({', '.join(described(part) for part in arguments if part is not Ellipsis)})"
    if origin is dict:
        return 'a table like {"1": "liver"}' if arguments[0] is int else "a table of names and values"
    if dataclasses.is_dataclass(hint):
        return "a table of names and values"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


_WORDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    type(None): "none",
    None: "none",
}


def shown(value: Any) -> str:
    """Return the value as JSON, as the user wrote it, truncated."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr, skipkeys=True)
    except (ValueError, RecursionError):  # huge numbers and cyclic tables
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _article(noun: str) -> str:
    """The object that has such entries, with its article.

    >>> _article("recipe option"), _article("job entry")
    ('A recipe', 'A job')
    """
    whole = noun.split()[0]
    return f"An {whole}" if whole[0] in "aeiou" else f"A {whole}"


@dataclasses.dataclass(frozen=True)
class _Coercion:
    """Coerces one value to a type; `name` is its location, `noun` what that is called."""

    noun: str
    name: str

    def to(self, value: Any, hint: Any) -> Any:
        members = alternatives(hint)
        if len(members) == 1:
            return self._to_one(value, members[0])
        if value is None and type(None) in members:
            return None
        # Whether a list was given determines the union member. A member with parts has its own message.
        is_list = isinstance(value, tuple | list)
        wanted = [member for member in members if member is not type(None)]
        fitting = [member for member in wanted if (typing.get_origin(member) is tuple) == is_list]
        for member in fitting:
            has_parts = typing.get_origin(member) in (tuple, dict) or dataclasses.is_dataclass(member)
            try:
                return self._to_one(value, member)
            except InputError:
                if has_parts and len(fitting) == 1 and type(value) is not str:
                    raise
        return self._refuse(value, hint)

    def _to_one(self, value: Any, hint: Any) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if hint is None or hint is type(None):
            return None if value is None else self._refuse(value, hint)
        if origin is typing.Literal:
            fits = isinstance(value, typing.Hashable) and value in arguments and not isinstance(value, bool)
            return value if fits else self._refuse(value, hint)
        if origin is tuple or hint is tuple:
            return self._to_tuple(value, hint)
        if origin is dict:
            return self._to_structures(value, hint) if arguments[0] is int else self._to_json_types(value, hint)
        if dataclasses.is_dataclass(hint):
            return self._to_part(value, hint)
        return self._to_scalar(value, hint)

    def _to_scalar(self, value: Any, hint: Any) -> Any:
        if hint is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, bool) and hint is not bool:  # bool is an int in Python, but true is not a seed
            self._refuse(value, hint)
        if hint is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if hint is float and isinstance(value, int | float):
            small = abs(value) <= 1e308  # and not NaN; integers may exceed any float
            return float(value) if small else self._refuse(value, hint)
        return value if isinstance(value, hint) else self._refuse(value, hint)

    def _to_tuple(self, value: Any, hint: Any) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list):
            self._refuse(value, hint)
        hints = typing.get_args(hint)
        if not hints:
            return tuple(value)
        if hints[1:] == (Ellipsis,):
            hints = (hints[0],) * len(value)
        if hints == ((),):  # tuple[()] up to Python 3.10
            hints = ()
        if len(hints) != len(value):
            self._refuse(value, hint)
        pairs = enumerate(zip(value, hints, strict=True))
        brought = tuple(self._at(f"[{at}]").to(element, each) for at, (element, each) in pairs)
        same = all(a is b for a, b in zip(value, brought, strict=True))
        return value if same and isinstance(value, tuple) else brought

    def _to_part(self, value: Any, cls: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            self._refuse(value, cls)
        try:
            return construct(cls, value, self.noun)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error

    def _to_structures(self, value: Any, hint: Any) -> dict[int, str]:
        """Labels and names, {1: "liver"}; the keys may be strings, as in JSON."""
        if not isinstance(value, Mapping) or not value:
            self._refuse(value, hint)
        structures: dict[int, str] = {}
        for key, text in value.items():
            label = int(key) if isinstance(key, str) and key.strip().isdecimal() else key
            whole = isinstance(label, int) and not isinstance(label, bool) and label >= 1
            if not whole or not isinstance(text, str) or not text:
                self._refuse({key: text}, hint)
            if label in structures:
                raise InputError(f"{self._called} names label {label} twice; keep one of them.")
            structures[label] = text
        return structures

    def _to_json_types(self, value: Any, hint: Any = None) -> Any:
        """A deep copy in JSON types, so that its owner compares equal after a round trip."""
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: self._at(f".{key}")._to_json_types(element) for key, element in value.items()}
        if hint is not None:
            self._refuse(value, hint)
        if isinstance(value, tuple | list):
            return [self._at(f"[{at}]")._to_json_types(element) for at, element in enumerate(value)]
        finite = not isinstance(value, float) or math.isfinite(value)
        if value is None or (isinstance(value, str | bool | int | float) and finite):
            return value
        raise InputError(
            f"{self._called} must be a text, a finite number, true, false, a list or a table, got {value!r}."
        )

    def _at(self, inside: str) -> _Coercion:
        return _Coercion(self.noun, self.name + inside)

    @property
    def _called(self) -> str:
        return f'{self.noun[:1].upper()}{self.noun[1:]} "{self.name}"'

    def _refuse(self, value: Any, hint: Any) -> NoReturn:
        raise InputError(f"{self._called} must be {described(hint)}, got {shown(value)}.")
