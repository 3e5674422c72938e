"""A called service takes part in its caller's transaction: how it comes in, and how it leaves."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from . import _finish
from ._pb import common_pb2 as c
from ._runtime import Runtime
from .errors import Rejected
from .protocol import reasons
from .transaction import Transaction


class Home(Protocol):
    """What of a Coordinator is needed to carry its transactions from service to service."""

    namespace: str

    def current_or_none(self) -> Transaction | None: ...

    @property
    def _current(self) -> ContextVar[Transaction | None]: ...

    def _runtime(self) -> Runtime: ...


async def joined(home: Home, context: c.CallContext) -> Transaction:
    """The caller's transaction, in this process. Raises Rejected when it is another log's or too late, Unavailable
    when no coordinator answers."""
    runtime = home._runtime()
    await runtime.connect_by_default()
    if context.log_id != runtime.log_id:
        # The coordinator's may have been replaced since this service asked.
        await runtime.connect_by_default(fresh=True)
    if context.log_id != runtime.log_id:
        raise Rejected(
            f"the caller's coordinator has the log {context.log_id}, this service's has {runtime.log_id}",
            reason=reasons.BAD_XID,
        )
    tx = Transaction(
        runtime,
        name=context.name,
        tx_id=context.tx_id,
        gid=context.gid,
        deadline_us=context.deadline_us,
        headers=dict(context.headers),
        begun=True,
        parent=context.branch,
    )
    most_us = runtime.limits.max_deadline_us
    if most_us and tx.remaining * 1e6 > most_us + runtime.grace_us:
        raise Rejected("the transaction's deadline is too far away", reason=reasons.DEADLINE_TOO_FAR)
    return tx


async def left(tx: Transaction) -> None:
    """Prepare what was done here, or undo it, also when the waiting is cancelled."""
    await tx._runtime.tasks.shielded(f"txcoord.vote:{tx.tx_id}", _finish.leave, tx)
