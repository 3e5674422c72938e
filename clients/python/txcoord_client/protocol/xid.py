"""The xid: the name under which a branch is prepared in its database.

``txc1.<log id>.<deadline>.<tx id>`` is the global part (X/Open's gtrid, at most 64 bytes), the branch id the
branch qualifier. PostgreSQL has one text for both; there the branch follows after one more dot, as it does in the
log and on the wire. On MariaDB only the session that prepared can finish while it lives, so there the branch
qualifier, and the text, end in ``@<connection id>``: whoever finds the branch knows which session to end.

The log id keeps two logs on one database apart. The deadline lets a scanner judge a branch of which its log
has never heard. Both are readable without the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .identifiers import is_branch, is_tx_id

PREFIX = "txc1"
LOG_ID_LENGTH = 10
# base32hex digits (RFC 4648, section 7), lower case: their order as text is their order as numbers.
_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_LOG_ID = re.compile(r"[0-9a-v]{10}")
_NUMBER = re.compile(r"0|[1-9a-v][0-9a-v]{0,12}")
_CONNECTION = re.compile(r"[1-9][0-9]{0,19}")


@dataclass(frozen=True, slots=True)
class Xid:
    """A branch's name in its database, taken apart."""

    log_id: str
    deadline_us: int
    """The transaction's deadline by the log's clock, UTC microseconds."""
    tx_id: str
    branch: str
    connection_id: int = 0
    """MariaDB: the server's id of the session that prepared; 0 everywhere else."""

    @property
    def gtrid(self) -> str:
        """The global part."""
        return f"{PREFIX}.{self.log_id}.{encode_number(self.deadline_us)}.{self.tx_id}"

    @property
    def bqual(self) -> str:
        """The branch qualifier."""
        return f"{self.branch}@{self.connection_id}" if self.connection_id else self.branch

    def __str__(self) -> str:
        """The whole as one text, as PostgreSQL stores it."""
        return f"{self.gtrid}.{self.bqual}"


def encode_number(value: int) -> str:
    """A non-negative number in base32hex digits."""
    if value < 0:
        raise ValueError("a deadline cannot be negative")
    out = ""
    while True:
        value, digit = divmod(value, 32)
        out = _DIGITS[digit] + out
        if not value:
            return out


def decode_number(text: str) -> int | None:
    """The number, or None when a character is no base32hex digit (upper case is none) or it is too long."""
    # Its digits are those of Python's base 32; the pattern keeps out what int() would forgive.
    return int(text, 32) if _NUMBER.fullmatch(text) else None


def is_log_id(text: str) -> bool:
    """Is this a log id: ten base32hex digits?"""
    return _LOG_ID.fullmatch(text) is not None


def new_log_id(randbits_50: int) -> str:
    """A log id from 50 random bits."""
    return encode_number(randbits_50 & (2**50 - 1)).rjust(LOG_ID_LENGTH, "0")


def parse(text: str) -> Xid | None:
    """The xid in a text, or None for anything that txcoord did not write (a foreign transaction)."""
    parts = text.split(".", 4)
    if len(parts) != 5 or parts[0] != PREFIX:
        return None
    _, log_id, deadline, tx_id, bqual = parts
    branch, at, connection = bqual.partition("@")
    if at and (_CONNECTION.fullmatch(connection) is None or int(connection) >= 2**64):
        return None
    deadline_us = decode_number(deadline)
    if deadline_us is None or not is_log_id(log_id) or not is_tx_id(tx_id) or not is_branch(branch):
        return None
    return Xid(log_id, deadline_us, tx_id, branch, int(connection or 0))
