"""What is in a record of the retry topics: small JSON."""

from __future__ import annotations

import json
from typing import Any, Final, TypeGuard

from ...ports import Due

VERSION: Final = 1
_LONGEST_ID = 64
_MOST = 2**63


class Poison(Exception):
    """A record that is none of ours, or that this version cannot read."""


def encode(due: Due) -> bytes:
    """The value of a record."""
    return json.dumps(
        {
            "v": VERSION,
            "tx_id": due.tx_id,
            "epoch": due.epoch,
            "due_us": due.due_us,
            "namespace": due.namespace,
            "target": due.target,
            "branch": due.branch,
            "attempt": due.attempt,
        },
        separators=(",", ":"),
    ).encode()


def decode(value: bytes | None) -> Due:
    """What a record says. Fields that are not known are passed by. Raises Poison."""
    try:
        found = json.loads(value or b"")
    except (ValueError, RecursionError):
        raise Poison("no JSON") from None
    if not isinstance(found, dict):
        raise Poison("no JSON object")
    version = found.get("v")
    if not _is_int(version) or version != VERSION:
        raise Poison(f"version {str(version)[:20]}, known is {VERSION}")
    tx_id = found.get("tx_id")
    if not isinstance(tx_id, str) or not 0 < len(tx_id) <= _LONGEST_ID:
        raise Poison("tx_id is none")
    attempt = found.get("attempt")
    return Due(
        tx_id,
        epoch=_number(found, "epoch"),
        due_us=_number(found, "due_us"),
        namespace=str(found.get("namespace") or ""),
        target=str(found.get("target") or ""),
        branch=str(found.get("branch") or ""),
        attempt=attempt if _is_int(attempt) else 0,
    )


def _number(found: dict[str, Any], name: str) -> int:
    number = found.get(name)
    if not _is_int(number) or not 0 <= number < _MOST:
        raise Poison(f"{name} is none")
    return number


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
