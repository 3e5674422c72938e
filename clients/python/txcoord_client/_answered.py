"""``coord.local(db, answered_by=shop)``: as ``coord.local``, in a database that the coordinator does not know.

Where it would ask that database what became of the transaction, it asks the participant; so does this process.
"""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self

from . import _aio, _answering, _finish, _savepoints, _sources
from . import outcome as outcomes
from ._block import Home, Scope
from ._local import Local
from ._pb import common_pb2 as c
from ._pb import coordinator_pb2 as pb
from ._pb import participant_pb2
from ._xa.branch import reason_of
from .errors import Rejected, TxcoordError, Unavailable
from .outcome import Outcome, State
from .participant import Participant
from .protocol import reasons
from .transaction import Transaction

log = logging.getLogger("txcoord.client")
_PAUSE_S = 0.2


class AnsweredLocal(Local):
    """``coord.local(shop.db, answered_by=shop)``."""

    def __init__(self, home: Home, scope: Scope, answerer: Participant) -> None:
        super().__init__(scope, answerer.db, "")
        self._home = home
        self._own = scope
        self._answerer = answerer
        self._opened: AbstractAsyncContextManager[Any] | None = None

    async def __aenter__(self) -> Self:
        if self._home.current_or_none() is not None:
            raise Rejected(
                "a local transaction that its service answers for is no part of a global one: its database is no "
                "resource of the coordinator",
                reason=reasons.NOT_SUPPORTED,
            )
        self._transaction = await self._own._begin()
        await self._answerer._home()
        opened = self._answerer._transaction()
        self.db = await opened.__aenter__()
        self._depth = _savepoints.depth(self.db)
        self._opened = opened
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tx, opened = self.transaction, self._opened
        assert opened is not None
        tx._close()
        if error is not None:
            # Nothing was said to the coordinator yet.
            tx.set_rollback_only(reason_of(error), f"{type(error).__name__}: {error}")
            tx.outcome = Outcome(State.ABORTED, tx.tx_id, tx.gid, "client", tx._rollback_only)
            await opened.__aexit__(kind, error, trace)
            return
        await tx._runtime.tasks.shielded(f"txcoord.end:{tx.tx_id}", self._end, tx, opened)

    async def _end(self, tx: Transaction, opened: AbstractAsyncContextManager[Any]) -> None:
        if tx.rollback_only:
            aborted = _finish._aborted(tx)
            await _undo(tx, opened, aborted)
            raise aborted
        if tx._deliveries:
            try:
                await announce(tx, self.db, self._answerer)
            except BaseException as error:
                await _undo(tx, opened, error)
                raise
        try:
            await opened.__aexit__(None, None, None)
        except Exception as error:
            if not tx._begun:
                raise  # Nothing hangs on it but itself.
            await self._find_out(tx, error)
            return
        tx.outcome = Outcome(State.COMMITTED, tx.tx_id, tx.gid, "database", result=tx.result)
        if not tx._begun:
            return
        told = tx._runtime.wire.tell(
            "submit_message",
            _submit(tx),
            _finish._last_word(tx) + 5.0,
            "not heard: the local commit",
            tx_id=tx.tx_id,
        )
        if tx._wait == c.WAIT_LEVEL_DELIVERED:
            until = _finish._last_word(tx)
            response = await told.wait(max(until - _aio.now(), 0.0))
            if response is not None:
                out = c.Outcome(pending=True)
                out.MergeFrom(response.outcome)
                _finish._conclude(tx, await _finish._followed(tx, out, until))

    async def _find_out(self, tx: Transaction, error: Exception) -> None:
        """Its COMMIT has failed, or the reply was lost: only the database tells which."""
        until = _finish._last_word(tx)
        while True:
            try:
                _finish._conclude(tx, await settled(tx, self._answerer, until))
                return
            except Unavailable as silent:
                if until - _aio.now() < _PAUSE_S:
                    text = f"the local COMMIT has failed ({error}), and so far nobody could tell: {silent}"
                    raise _finish._unknown(tx, text) from error
            except TxcoordError as known:
                raise known from error
            await _aio.sleep(_PAUSE_S)


async def announce(tx: Transaction, db: Any, answerer: Participant) -> None:
    """Write the marker in the local transaction, then make the messages durable. Once that was asked for a row may
    exist: its end must be told. Raises Rejected past the deadline, Unavailable, and the database's errors."""
    home = await answerer._home()
    tx._identity = await _answering.mark(db, tx.tx_id, tx.deadline_us + tx._runtime.grace_us, home)
    target = tx._runtime.participants.target(answerer.name)
    request = pb.PrepareMessageRequest(
        tx_id=tx.tx_id,
        deadline_us=tx.deadline_us,
        branches=list(tx._deliveries.values()),
        check=pb.MessageCheck(target=target, participant=answerer.name, identity=tx._identity),
        spec=tx._spec(),
    )
    until = min(tx._until, _aio.now() + tx._runtime.call_timeout)
    tx._begun = True
    await tx._runtime.wire.call("prepare_message", request, until, tx_id=tx.tx_id)


async def settled(tx: Transaction, answerer: Participant, until: float) -> c.Outcome:
    """Ask this process's own database what became of the local transaction, and tell the coordinator. Raises
    Unavailable while nobody can tell, or it was not heard."""
    answer = await answerer.query_back(tx.tx_id, identity=tx._identity)
    if answer.verdict == participant_pb2.QUERY_BACK_VERDICT_COMMITTED:
        response = await tx._runtime.wire.call("submit_message", _submit(tx), until, tx_id=tx.tx_id)
    elif answer.verdict == participant_pb2.QUERY_BACK_VERDICT_ABORTED:
        response = await tx._runtime.wire.call("rollback", _rollback(tx), until, tx_id=tx.tx_id)
    else:
        text = answer.message or "the local transaction is still open"
        raise Unavailable(text, reason=reasons.IN_PROGRESS, definite=False, tx_id=tx.tx_id)
    out: c.Outcome = response.outcome
    return out


async def settle(tx: Transaction, answerer: Participant, until: float) -> Outcome:
    """The same, for whoever asks."""
    return outcomes.from_pb(await settled(tx, answerer, until), tx_id=tx.tx_id, gid=tx.gid)


def check_same(db: Any, answerer: Participant) -> None:
    """Is ``db`` in the participant's database? Another one would answer that nothing has committed. Raises Rejected."""
    own = answerer.db
    own = getattr(own, "kw", {}).get("bind", own)  # A sessionmaker's engine.
    if own is None or db is None:
        same = False
    elif isinstance(own, str):
        same = db == own or getattr(db, "alias", None) == own
    else:
        owner = _sources._owner(own)
        same = owner is not None and owner is _sources._owner(db)
    if not same:
        raise Rejected(
            f"answered_by={answerer.name!r}: this is not seen to be in that participant's database; use its engine "
            "or pool, or a session of its engine",
            reason=reasons.NOT_SUPPORTED,
        )


async def _undo(tx: Transaction, opened: AbstractAsyncContextManager[Any], error: BaseException) -> None:
    """No COMMIT was sent, and none will be."""
    try:
        await opened.__aexit__(type(error), error, error.__traceback__)
    except BaseException as second:
        if second is not error:
            log.warning("the local transaction of %s could not be rolled back: %s", tx.tx_id, second)
    if tx._begun:
        tx._runtime.wire.tell(
            "rollback", _rollback(tx), _finish._last_word(tx), "not heard: the rollback", tx_id=tx.tx_id
        )


def _submit(tx: Transaction) -> pb.SubmitMessageRequest:
    return pb.SubmitMessageRequest(
        tx_id=tx.tx_id,
        deadline_us=tx.deadline_us,
        wait=tx._wait,
        wait_us=int(max(tx.remaining, 0.0) * 1e6),
        result=tx.result,
    )


def _rollback(tx: Transaction) -> pb.RollbackRequest:
    return pb.RollbackRequest(
        tx_id=tx.tx_id,
        deadline_us=tx.deadline_us,
        initiator=True,
        sealed=True,
        force_log=True,
        begun=True,
        wait=c.WAIT_LEVEL_DECIDED,
        reason=reasons.ROLLED_BACK_BY_CLIENT,
    )
