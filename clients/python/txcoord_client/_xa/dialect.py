"""What the databases' branches differ in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..protocol import reasons
from ..protocol.replies import Reply
from ..protocol.xid import Xid
from .held import Held, RefusedEnd


class Failed(Exception):
    """The branch cannot vote yes. ``reason`` is a stable code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Dialect(Protocol):
    """The statements of a branch, and what a reply to them means."""

    holds: bool
    """Must the session that prepared also finish?"""
    identity: str
    """Reads the identity row."""

    async def begin(self, held: Held, xid: Xid, refused: RefusedEnd, *, read_only: bool) -> Xid:
        """Begin the branch; its xid, as the database will know it."""
        ...

    async def drop_out(self, held: Held, xid: Xid, *, read_only: bool) -> bool:
        """End it now if it wrote nothing: True. Raises Failed for a guard that speaks."""
        ...

    async def prepare(self, held: Held, xid: Xid, not_after_us: int, asked: Callable[[], object]) -> None:
        """Guard, marker, PREPARE. ``asked`` is called before the statement whose lost reply leaves the outcome
        open. Raises the driver's errors, or Failed once it is certain that nothing is prepared."""
        ...

    async def commit_one_phase(
        self, held: Held, xid: Xid, not_after_us: int, asked: Callable[[], object]
    ) -> None:
        """The same with COMMIT."""
        ...

    async def rollback(self, held: Held, xid: Xid) -> None:
        """Roll back what is not prepared."""
        ...

    async def finish(self, held: Held, xid: Xid, commit: bool) -> None:
        """Carry out the decision on the session that prepared."""
        ...

    def reply(self, error: BaseException, *, asked: bool) -> Reply | None:
        """What the database's error means; None: it is no error of the database."""
        ...

    def failed(self, error: BaseException, resource: str, *, asked: bool) -> Failed | None:
        """Errors that this database tells in a way of its own."""
        ...


_REASONS = {
    Reply.ROLLED_BACK: reasons.SERIALIZATION_FAILURE,
    Reply.GUARD: reasons.GUARD,
    Reply.NOT_POSSIBLE: reasons.PREPARE_NOT_POSSIBLE,
    Reply.PREPARE_DISABLED: reasons.PREPARE_DISABLED,
    Reply.PREPARE_FULL: reasons.PREPARE_FULL,
    Reply.TOO_LATE: reasons.DEADLINE,
    Reply.DUPLICATE: reasons.DECIDED,
    Reply.DUPLICATE_XID: reasons.DECIDED,
    Reply.LOCK_TIMEOUT: reasons.DECIDED,
}
HINTS = {
    reasons.PREPARE_DISABLED: "prepared transactions are switched off: set max_prepared_transactions "
    "in postgresql.conf (it is 0) and restart the server",
    reasons.PREPARE_FULL: "max_prepared_transactions of the server is used up",
    reasons.DECIDED: "its marker is taken: this call ran before, or the transaction was settled meanwhile",
    reasons.DEADLINE: "the deadline has passed",
    reasons.GUARD: "someone ended the branch's transaction (a COMMIT or ROLLBACK inside it); what was done before "
    "a stray COMMIT is in the database",
}


def of_reply(reply: Reply, resource: str, text: str) -> Failed | None:
    """What a reply to the end of a branch says of it."""
    reason = _REASONS.get(reply)
    if reason is None:
        return None
    return Failed(reason, f"{resource!r}: {HINTS.get(reason, text)}")
