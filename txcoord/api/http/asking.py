"""What a request says beside its body: query parameters and headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from txcoord_client.protocol import identifiers, reasons

from ..grpc.mapping import bad
from .mapping import refused

_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0}
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|)", re.ASCII)
_KEY = re.compile(r'"([^"]*)"|([^"\s,;]+)')
"""A string of RFC 9651, or a bare word as many clients send."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as far as it is not its body."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""


@dataclass(frozen=True, slots=True)
class Prefer:
    """RFC 7240: how long the caller likes to wait, and whether at all."""

    wait_s: float | None = None
    later: bool = False
    """``respond-async``."""


def parameters(query: str, known: Iterable[str]) -> dict[str, str]:
    """The query parameters, each once. Raises Refused for one that is not known."""
    known = sorted(known)
    out: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=100):
        if name not in known:
            there = f"; there are {', '.join(known)}" if known else "; there is none"
            raise refused(name[:80], f"there is no such query parameter{there}")
        if name in out:
            raise refused(name, "the query parameter is given twice")
        out[name] = value
    return out


def seconds(text: str, name: str) -> float:
    """A duration: seconds, or with a unit ``ms``, ``s``, ``m``."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise refused(name, f"{text[:40]!r} is no duration: write it like 10, 10s, 500ms or 1m")
    return float(found[1]) * _UNITS[found[2]]


def truth(text: str, name: str) -> bool:
    """``true`` or ``false``; a parameter without a value is true."""
    if text not in ("", "true", "false"):
        raise refused(name, f"true or false is expected, not {text[:40]!r}")
    return text != "false"


def prefer(value: str) -> Prefer:
    """The header Prefer; what is not known in it, or makes no sense, is passed by, as the RFC says."""
    wait_s: float | None = None
    later = False
    for part in value.split(","):
        name, _, given = part.partition(";")[0].strip().partition("=")
        if name.strip().lower() == "respond-async":
            later = True
        elif (
            name.strip().lower() == "wait"
            and wait_s is None
            and re.fullmatch(r"\s*\d{1,9}\s*", given, re.ASCII)
        ):
            wait_s = float(given)
    return Prefer(wait_s, later)


def idempotency_key(value: str) -> str:
    """The header Idempotency-Key, which names the transaction: it is its gid. Raises Refused."""
    found = _KEY.fullmatch(value.partition(";")[0].strip())
    key = (found[1] or found[2] or "") if found is not None else ""
    if not identifiers.is_gid(key):
        raise bad(
            reasons.BAD_GID,
            f"Idempotency-Key {value[:80]!r}: it is the transaction's gid, so 1 to {identifiers.MAX_GID} characters of "
            "[A-Za-z0-9_-], such as a UUID",
        )
    return key
