"""What a simulated database answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class SqlError(Exception):
    """An error reply: an SQLSTATE, or a number."""

    def __init__(self, code: str | int, text: str = "") -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text
        self.in_transaction = False


@dataclass(frozen=True)
class Answer:
    """What a message brings about: the last tag or number, the rows, and in which state the session is then."""

    tag: Any
    rows: tuple[tuple[Any, ...], ...] = ()
    in_transaction: bool = False

    def __str__(self) -> str:
        return f"{self.tag}{self.rows or ''}"
