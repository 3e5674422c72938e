"""Arguments and results of participants: JSON, dataclasses and pydantic models to and from."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

from .errors import Rejected
from .protocol import reasons


def encode(value: Any) -> bytes:
    """JSON. Raises Rejected for what cannot be said in it."""
    try:
        return json.dumps(value, default=_plain, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise Rejected(f"{type(value).__name__} cannot be sent as JSON: {error}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no JSON, dataclass or pydantic model")


def decode(data: bytes | None, wanted: Any = Any) -> Any:
    """The value, as ``wanted`` where that is a dataclass or a pydantic model."""
    if not data:
        return None
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Rejected(f"this is no JSON: {error}", reason=reasons.BAD_REQUEST) from error
    return shaped(value, wanted)


def shaped(value: Any, wanted: Any) -> Any:
    """A value from JSON as a parameter or result is declared."""
    if isinstance(wanted, type) and isinstance(value, Mapping):
        try:
            if dataclasses.is_dataclass(wanted):
                hints = typing.get_type_hints(wanted)
                return wanted(**{name: shaped(item, hints.get(name, Any)) for name, item in value.items()})
            validate = getattr(wanted, "model_validate", None)
            if validate is not None:
                return validate(value)
        except (TypeError, ValueError) as error:
            raise Rejected(f"this is no {wanted.__name__}: {error}", reason=reasons.BAD_REQUEST) from error
    return value


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The declared types; those that cannot be resolved here are taken as they come."""
    try:
        return _resolved(function)
    except (NameError, TypeError):
        return {}


@functools.lru_cache(maxsize=1024)
def _resolved(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


@functools.lru_cache(maxsize=1024)
def signature(function: Callable[..., Any]) -> inspect.Signature:
    """As inspect has it, which takes its time: once for each function."""
    return inspect.signature(function)


def arguments(
    function: Callable[..., Any], skip: int, data: bytes, results: Mapping[str, bytes] | None = None
) -> dict[str, Any]:
    """The arguments of a call by name, results of earlier steps among them. Raises Rejected where they do not fit."""
    given = json.loads(data) if data else {}
    if not isinstance(given, dict):
        raise Rejected("arguments are a JSON object", reason=reasons.BAD_REQUEST)
    names = parameters(function, skip)
    given.update({name: decode(found) for name, found in (results or {}).items() if name in names})
    hints = hints_of(function)
    missing = [name for name, needed in names.items() if needed and name not in given]
    unknown = [] if takes_anything(function) else sorted(given.keys() - names.keys())
    if missing or unknown:
        raise Rejected(f"arguments missing: {missing}, unknown: {unknown}", reason=reasons.BAD_REQUEST)
    return {name: shaped(value, hints.get(name, Any)) for name, value in given.items()}


def parameters(function: Callable[..., Any], skip: int) -> dict[str, bool]:
    """The parameters that are given by name, and whether each is needed."""
    found = list(signature(function).parameters.values())[skip:]
    return {p.name: p.default is p.empty for p in found if p.kind in _NAMED}


def takes_anything(function: Callable[..., Any]) -> bool:
    """Has it ``**kwargs``?"""
    return any(p.kind is p.VAR_KEYWORD for p in signature(function).parameters.values())


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
