"""Hyperparameters as frozen dataclasses: validated, strict, and stable under a JSON round trip.

@dataclass(frozen=True)
class Recipe:
    rank: int = option(4, "Size of the low-rank update", min=1, max=64)

    def __post_init__(self) -> None:
        check(self)
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from FewShotSegLib.errors import InputError

from .json_text import parsed_json
from .schema import alternatives, check_names, coerce, construct, described, to_json

R = TypeVar("R")
_NOUN = "recipe option"


def option(
    default: Any,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    choices: Iterable[Any] | None = None,
    advanced: bool = False,
) -> Any:
    """Return a dataclass field with a default, a help text for the user, and its limits.

    `min` and `max` are inclusive and apply to every element of a tuple, as do `choices`. `advanced` options are shown
    by the form only on request.
    """
    allowed = tuple(choices) if choices is not None else None
    metadata = {"help": help, "min": min, "max": max, "choices": allowed, "advanced": advanced}
    return dataclasses.field(default=default, metadata=metadata)


def check(recipe: Any) -> None:
    """Coerce every option to its declared type and raise `InputError` for the first that is out of range."""
    coerce(recipe, _NOUN)
    for field in dataclasses.fields(recipe):
        _check_allowed(field.name, getattr(recipe, field.name), field.metadata)


def to_dict(recipe: Any) -> dict[str, Any]:
    """Return the recipe as JSON types (tuples become lists, nested recipes dictionaries)."""
    return dict(to_json(recipe))


def with_preset(recipe: R, values: Mapping[str, Any]) -> R:
    """Return the recipe with the values of a preset for every option that still has its default."""
    default = type(recipe)()
    chosen = {name: value for name, value in values.items() if getattr(recipe, name) == getattr(default, name)}
    return dataclasses.replace(recipe, **chosen)  # type: ignore[type-var]


def from_dict(cls: type[R], values: Mapping[str, Any]) -> R:
    """Return a recipe of class `cls`; missing keys keep their defaults, unknown ones are rejected."""
    return construct(cls, values, _NOUN)


def describe(cls: Any) -> list[dict[str, Any]]:
    """Return the options of a recipe class as JSON types: all that a form needs if the method cannot be imported.

    Each has "name", "help", "advanced", "default", "min", "max", "choices", "optional" (None is allowed) and "kind":
    int, float, bool, str, choice, list (with "parts", the kinds of its elements, one for lists of "any_length") or
    recipe (with "options").
    """
    hints, defaults = typing.get_type_hints(cls), to_dict(cls())
    return [
        {
            "name": field.name,
            "help": field.metadata.get("help", ""),
            "advanced": field.metadata.get("advanced", False),
            "default": defaults[field.name],
            "min": field.metadata.get("min"),
            "max": field.metadata.get("max"),
            "optional": type(None) in alternatives(hints[field.name]),
            **_kind(field.name, hints[field.name], field.metadata.get("choices")),
        }
        for field in dataclasses.fields(cls)
    ]


def _kind(name: str, hint: Any, choices: tuple[Any, ...] | None) -> dict[str, Any]:
    hints = [alternative for alternative in alternatives(hint) if alternative is not type(None)]
    if len(hints) != 1:
        raise TypeError(f'Recipe option "{name}" has several types, {hints}; a form can show only one.')
    hint = hints[0]
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
    described: dict[str, Any] = {"choices": list(choices) if choices else None}
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        kinds = [_kind(name, part, None)["kind"] for part in parts if part is not Ellipsis]
        return {"kind": "list", "parts": kinds, "any_length": Ellipsis in parts, **described}
    if dataclasses.is_dataclass(hint):
        return {"kind": "recipe", "options": describe(hint), **described}
    return {"kind": "choice" if choices else hint.__name__, **described}


def with_overrides(recipe: R, overrides: Iterable[str]) -> R:
    """Return a copy with `"key=value"` overrides applied, each value parsed by the type of its option.

    Nested recipes use dots (`"synthesis.max_angle=20"`), tuples are comma separated, `none` is None.
    """
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f'A recipe option must look like "key=value", got "{text}".')
        recipe = _override(recipe, key.strip(), value.strip())
    return recipe


def _override(recipe: Any, key: str, value: str) -> Any:
    head, dot, rest = key.partition(".")
    check_names(type(recipe), [head], _NOUN)
    if dot:
        inner = getattr(recipe, head)
        if not dataclasses.is_dataclass(inner):
            raise InputError(f'Recipe option "{head}" has no parts, got "{key}".')
        return dataclasses.replace(recipe, **{head: _override(inner, rest, value)})
    hint = typing.get_type_hints(type(recipe))[head]
    return dataclasses.replace(recipe, **{head: _parse(head, value, hint)})


def _check_allowed(key: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if value is None:
        return
    low, high, choices = metadata.get("min"), metadata.get("max"), metadata.get("choices")
    for element in value if isinstance(value, tuple) else (value,):
        if choices is not None and element not in choices:
            allowed = ", ".join(str(choice) for choice in choices)
            raise InputError(f'Recipe option "{key}" must be one of {allowed}, got {element!r}.')
        outside = (low is not None and element < low) or (high is not None and element > high)
        if outside:
            raise InputError(f'Recipe option "{key}" must be {_describe_range(low, high)}, got {element!r}.')


def _describe_range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"between {low} and {high}"


def _parse(key: str, text: str, hint: Any) -> Any:
    """Parse command line text by the declared type; `check` validates the result."""
    members = alternatives(hint)
    if type(None) in members and text.lower() in ("none", "null"):
        return None
    for member in members:
        read, value = _read(key, text, member)
        if read:
            return value
    raise InputError(f'Recipe option "{key}" must be {described(hint)}, got "{text}".')


def _read(key: str, text: str, hint: Any) -> tuple[bool, Any]:
    if hint is str:
        return True, text
    if hint is bool:
        return _read_bool(text)
    if hint in (int, float):
        return _read_number(text, hint)
    if typing.get_origin(hint) is typing.Literal:
        matching = [choice for choice in typing.get_args(hint) if str(choice) == text]
        return bool(matching), matching[0] if matching else None
    if typing.get_origin(hint) is tuple:
        return True, _read_tuple(key, text, typing.get_args(hint))
    return _read_json(text)


def _read_bool(text: str) -> tuple[bool, Any]:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return text.lower() in words, words.get(text.lower())


def _read_number(text: str, hint: Any) -> tuple[bool, Any]:
    try:
        number = float(text)
    except ValueError:
        return False, None
    if hint is int and abs(number) >= 2**53:
        return False, None
    if hint is float:
        return True, number
    return number.is_integer(), int(number) if number.is_integer() else None


def _read_tuple(key: str, text: str, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    words = [word.strip() for word in text.strip("()[] ").split(",") if word.strip()]
    if hints[1:] == (Ellipsis,):
        hints = (hints[0],) * len(words)
    if len(hints) != len(words):
        raise InputError(f'Recipe option "{key}" takes {len(hints)} values separated by commas, got "{text}".')
    return tuple(_parse(key, word, hint) for word, hint in zip(words, hints, strict=True))


def _read_json(text: str) -> tuple[bool, Any]:
    try:
        return True, parsed_json(text, "The option")
    except InputError:
        return False, None
