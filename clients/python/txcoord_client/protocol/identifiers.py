"""Identifiers and their rules.

A *tx id* is 32 lower-case hex digits of a UUIDv7 (RFC 9562, section 5.7). The same text stands in every
log line, record and xid, so that one search finds all traces of a transaction.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_TX_ID = re.compile(r"[0-9a-f]{32}")
_GID = re.compile(r"[A-Za-z0-9_-]{1,48}")
_BRANCH = re.compile(r"[0-9]+(\.[0-9]+)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

MAX_GID = 48
MAX_BRANCH = 24


def new_tx_id(now_us: int, randbits: Callable[[int], int]) -> str:
    """Make a UUIDv7 as 32 hex digits.

    ``now_us`` is UTC in microseconds; ``randbits(k)`` answers k random bits. Both come from outside so that
    a simulation can seed them.
    """
    ms = (now_us // 1000) & 0xFFFF_FFFF_FFFF
    value = (ms << 80) | (0x7 << 76) | (randbits(12) << 64) | (0b10 << 62) | randbits(62)
    return f"{value:032x}"


def is_tx_id(text: str) -> bool:
    """Is this the text of a tx id (32 lower-case hex digits)?"""
    return _TX_ID.fullmatch(text) is not None


def parse_tx_id(text: str) -> str | None:
    """The tx id that a person typed: dashes and capitals are forgiven. None when it is none."""
    bare = text.replace("-", "").lower()
    return bare if is_tx_id(bare) else None


def is_gid(text: str) -> bool:
    """May this be a user's own name of a transaction: 1 to 48 characters of ``[A-Za-z0-9_-]``?"""
    return _GID.fullmatch(text) is not None


def is_branch(text: str) -> bool:
    """Is this a branch id: a path of numbers such as ``3`` or ``3.1``, at most 24 characters?"""
    return len(text) <= MAX_BRANCH and _BRANCH.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """May this name a resource, a namespace or a participant: 1 to 63 of ``[A-Za-z0-9_.-]``?"""
    return _NAME.fullmatch(text) is not None


# Values that are written into a statement: a wrong one is a bug, and never reaches a database.


def checked_tx_id(value: str) -> str:
    """The tx id. Raises ValueError."""
    if not is_tx_id(value):
        raise ValueError(f"not a tx id: {value!r}")
    return value


def checked_branch(value: str) -> str:
    """The branch id. Raises ValueError."""
    if not is_branch(value):
        raise ValueError(f"not a branch id: {value!r}")
    return value


def checked_op(value: str) -> str:
    """The op of a marker: letters. Raises ValueError."""
    if not value.isascii() or not value.isalpha():
        raise ValueError(f"not an op: {value!r}")
    return value
