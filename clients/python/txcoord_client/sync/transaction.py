# Made from txcoord_client/transaction.py by scripts/sync; to change it, change that.
"""A global transaction, as the code inside it sees it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

from .. import _forks, _statements
from .._pb import common_pb2 as c
from ..errors import NoTransaction, Rejected
from ..outcome import Outcome
from ..protocol import identifiers, reasons
from ..protocol.xid import Xid
from ..retries import Retry
from ..webhooks import CloudEvent
from . import _aio, _deliveries, _tries
from ._enlisting import Enlister
from ._runtime import Runtime
from ._xa.branch import Branch, Stage, reason_of
from ._xa.held import Source
from .participant import operation_of
from .sagas import Saga


class Transaction:
    """What ``with coord.begin(...) as g`` gives.

    ``initiator`` is False in a service that was called: there the caller decides, and the branches are prepared
    when the handler ends.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        name: str,
        tx_id: str,
        deadline_us: int,
        gid: str = "",
        labels: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: c.WaitLevel = c.WAIT_LEVEL_COMMITTED,
        one_phase_resource: str = "",
        begun: bool = False,
        parent: str = "",
    ) -> None:
        self.name = name
        self.tx_id = tx_id
        self.gid = gid
        self.deadline_us = deadline_us
        """By the log's clock, UTC microseconds."""
        self.labels = dict(labels or {})
        self.headers = dict(headers or {})
        self.outcome: Outcome | None = None
        """How it ended; None before."""
        self._result = b""
        self._runtime = runtime
        self._log_id = runtime.log_id
        self._wait = wait
        self._one_phase_resource = one_phase_resource
        self._begun = begun
        self._parent = parent
        self._identity = ""
        """Of the database that its local transaction was in, where a participant answers for that."""
        self._numbers = itertools.count(1)
        self._branches: dict[object, Branch] = {}
        self._remote: dict[str, c.Branch] = {}
        self._deliveries: dict[str, c.Branch] = {}
        self._enlister = Enlister(lambda branches: _tries.enlisted(self, branches))
        self._outstanding: dict[str, str] = {}
        self._calls = threading.Lock()
        """A call is sent before the end, and hinders it until its vote is here, or not at all: threads make calls
        side by side. So it is with branches and blocks."""
        self._rollback_only = ""
        self._rollback_message = ""
        self._over = False
        self._until = _aio.now() + (deadline_us - runtime.wire.clock.now_us()) / 1e6

    def __repr__(self) -> str:
        return f"<Transaction {self.name} {self.gid or self.tx_id}>"

    # ---- state ----

    @property
    def result(self) -> bytes:
        """Stored with the commit and given to whoever asks with the same gid; JSON by convention."""
        return self._result

    @result.setter
    def result(self, value: bytes) -> None:
        # What cannot be stored is refused while the work can still be undone.
        if not isinstance(value, bytes):
            raise Rejected(f"result: bytes are needed, not {type(value).__name__}")
        most = self._runtime.limits.max_payload_bytes
        if most and len(value) > most:
            raise Rejected(f"the result has {len(value)} bytes; at most {most}", reason=reasons.TOO_LARGE)
        self._result = value

    @property
    def initiator(self) -> bool:
        """Did it begin in this process?"""
        return not self._parent

    @property
    def active(self) -> bool:
        """Can work still be added?"""
        return not self._over

    @property
    def rollback_only(self) -> bool:
        """Is it certain that it will not commit?"""
        return bool(self._rollback_only)

    @property
    def remaining(self) -> float:
        """Seconds to the deadline."""
        return self._until - _aio.now()

    def set_rollback_only(self, reason: str = reasons.ROLLED_BACK_BY_CLIENT, message: str = "") -> None:
        """Doom it: whatever happens, it will not commit. The first reason counts."""
        if not self._rollback_only:
            self._rollback_only, self._rollback_message = reason, message

    # ---- branches ----

    def xa(self, target: Any, *, resource: str = "", read_only: bool = False) -> XaBlock:
        """A block of work in one database, as one XA branch.

        ``target`` is an engine, connection or session of SQLAlchemy, or a pool or connection of a driver (see the
        support table in the docs); a connection or session must be idle and belongs to the branch until the
        transaction ends. ``resource`` names the database where the Coordinator's ``resources`` do not.
        ``read_only`` says that nothing is written or locked: the server refuses what writes, and the branch has no
        part in the commit.

        ``with g.xa(engine) as db`` gives the connection (or the session). Later blocks on the same target
        continue the same branch. The work is prepared when the transaction ends.
        """
        return XaBlock(self, target, resource, read_only)

    def tcc(self, operation: Any, /, *, call_timeout: float = 5.0, **arguments: Any) -> Any:
        """Reserve: call the try of an operation (a class decorated with ``@participant.tcc``) with these arguments, and
        give what it returned. It is confirmed when the transaction commits, cancelled when it aborts.

        Raises Refused when the participant says no, Unavailable when it does not answer within ``call_timeout``
        seconds; both make the transaction rollback-only. Raises Rejected for a participant that has no address.
        """
        self._must_be_active()
        if self.remaining <= 0:
            raise Rejected("the deadline has passed: no try can begin", reason=reasons.DEADLINE)
        return _tries.tried(self, operation_of(operation), arguments, call_timeout)

    def saga(self, flow: Saga, /, **data: Any) -> dict[str, Any]:
        """Run the steps of a saga now; what each returned, by its name. They are compensated, in reverse, when the
        transaction aborts.

        Raises Refused when a step says no, which aborts the transaction at once, Unavailable when the coordinator does
        not answer, and Rejected at the deadline, for data that do not fit, a participant without an address, or a step
        that is never undone.
        """
        self._must_be_active()
        if self.remaining <= 0:
            raise Rejected("the deadline has passed: no step can begin", reason=reasons.DEADLINE)
        return _tries.stepped(self, flow, data)

    def message(
        self,
        target: Any,
        body: Any = None,
        *,
        deliver_at: datetime | None = None,
        delay: float | timedelta | None = None,
        operation: str = "",
        message_id: str = "",
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
        retry: Retry | None = None,
        event: CloudEvent | None = None,
        key: str | bytes = b"",
        order_key: str = "",
    ) -> str:
        """Something that must arrive: it leaves once the whole is COMMITTED, and is tried until its receiver has taken
        it; not at all when the transaction aborts. Gives its id, which the receiver can tell repeats by.

        ``target``: a function decorated with ``@participant.message``, whose arguments are then the body by name; or an
        address with a path or method, such as ``https://shop.example/orders`` or
        ``grpc://shop:9000/shop.Orders/Told``; or a participant's name or address, and ``operation``, its name there; or
        a topic of Kafka, ``topic:orders.paid``, with the record's ``key``, and ``event`` to be a CloudEvent.
        ``order_key``: after those of the same target and key whose transactions were committed before, one at a time.
        ``body``: JSON, a dataclass or model, or bytes. ``deliver_at``, or ``delay`` in seconds: not before then.
        ``retry``: when it is tried again; after that, or once its receiver has refused it, it is parked for an
        operator, and the transaction stays COMMITTED.

        Raises Rejected for what does not fit, NoTransaction when the transaction has ended.
        """
        more = dict(headers or {})
        wish = _deliveries.Wish(
            operation, deliver_at, delay, message_id, content_type, more, retry, event, key, order_key
        )
        return self._deliver(c.KIND_MESSAGE, target, body, wish)

    def notify(
        self,
        target: Any,
        body: Any = None,
        *,
        deliver_at: datetime | None = None,
        delay: float | timedelta | None = None,
        operation: str = "",
        message_id: str = "",
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
        retry: Retry | None = None,
        event: CloudEvent | None = None,
        key: str | bytes = b"",
    ) -> str:
        """Something that is only tried: as :meth:`message`, but at most so many times as ``retry`` says, then it is
        parked; by default ten times within a day. An address over HTTP is a webhook: of anybody who is public, signed
        where the coordinator has a secret for it. ``event``: it is sent as that CloudEvent."""
        wish = _deliveries.Wish(
            operation, deliver_at, delay, message_id, content_type, dict(headers or {}), retry, event, key
        )
        return self._deliver(c.KIND_NOTIFY, target, body, wish)

    def sql(
        self,
        resource: Any,
        statement: str | Sequence[tuple[str, Mapping[str, Any]]],
        parameters: Mapping[str, Any] | None = None,
        *,
        deliver_at: datetime | None = None,
        delay: float | timedelta | None = None,
        retry: Retry | None = None,
    ) -> str:
        """Statements that the coordinator runs on one of its resources once the whole is COMMITTED, in one local
        transaction, once in effect: at once, and for some time again where the database is down; then it is parked.

        ``resource``: its name, or an engine or pool that is one. ``statement``: an INSERT, UPDATE or DELETE with
        ``:name`` for each of ``parameters``, or several with theirs. A no of the database (a key that is there already)
        parks it at once.
        """
        name = resource if isinstance(resource, str) else self._runtime.source(resource, "").resource
        both = [(statement, parameters or {})] if isinstance(statement, str) else list(statement)
        part = _statements.part_of(name, both)
        wish = _deliveries.Wish(deliver_at=deliver_at, delay=delay, retry=retry)
        part.deliver_at_us = _deliveries.due_us(wish, self._runtime.wire.clock.now_us())
        return self._put(c.KIND_NOTIFY, part, wish)

    def _deliver(self, kind: c.Kind, target: Any, body: Any, wish: _deliveries.Wish) -> str:
        self._must_be_active()
        part = _deliveries.part_of(
            target,
            body,
            wish,
            now_us=self._runtime.wire.clock.now_us(),
            place=self._runtime.participants.target,
            most=self._runtime.limits.max_payload_bytes,
        )
        return self._put(kind, part, wish)

    def _put(self, kind: c.Kind, part: c.DeliveryPart, wish: _deliveries.Wish) -> str:
        self._must_be_active()
        number = self._next_number()
        branch = c.Branch(id=number, kind=kind, delivery=part)
        if wish.retry is not None:
            branch.retry.CopyFrom(wish.retry.to_pb())
        with self._calls:
            self._must_be_active()
            size = len(part.payload) + sum(len(b.delivery.payload) for b in self._deliveries.values())
            if size > _deliveries.MOST_TOGETHER:
                text = f"all bodies have {size} bytes; at most {_deliveries.MOST_TOGETHER} together"
                raise Rejected(text, reason=reasons.TOO_LARGE)
            self._deliveries[number] = branch
        return wish.message_id or f"{self.tx_id}.{number}"

    def _enter_xa(self, target: Any, resource: str, read_only: bool = False) -> Branch:
        self._must_be_active()
        source = self._runtime.source(target, resource)
        while True:
            branch = self._branches.get(source.key)
            if branch is None:
                branch = self._branches[source.key] = self._new_branch(source, read_only)
            with branch.opening:
                self._must_be_active()
                if self._branches.get(source.key) is not branch:
                    continue  # Whoever was opening it has failed: it would end with nobody.
                if branch.stage is Stage.NEW:
                    self._open(branch, source)
                if branch.stage is not Stage.OPEN:
                    raise Rejected(f"the branch on {branch.resource!r} has ended", reason=reasons.GUARD)
                if branch.read_only and not read_only:
                    raise Rejected(
                        f"the branch on {branch.resource!r} was begun with read_only=True",
                        reason=reasons.NOT_SUPPORTED,
                    )
                with self._calls:
                    self._must_be_active()  # Whoever ends it sees this block, or it does not begin.
                    branch.blocks += 1
                return branch

    def _open(self, branch: Branch, source: Source) -> None:
        try:
            if self.remaining <= 0:
                raise Rejected(
                    f"the deadline has passed: no work can begin on {branch.resource!r}",
                    reason=reasons.DEADLINE,
                )
            self._runtime.open_branch(branch, source, self, self._until)
        except BaseException:
            self._branches.pop(source.key, None)
            raise
        with self._calls:
            branch.joined = not self._over
        if not branch.joined:
            # It ended without this branch, and will not see to it any more.
            self._branches.pop(source.key, None)
            self._runtime.tasks.shielded(
                f"txcoord.drop:{self.tx_id}", self._runtime.drop_branch, branch, self
            )
            self._must_be_active()

    def _leave_xa(self, branch: Branch, error: BaseException | None) -> None:
        with self._calls:
            branch.blocks -= 1
        if error is not None:
            self.set_rollback_only(
                reason_of(error), f"{type(error).__name__} left the block on {branch.resource!r}: {error}"
            )

    def _new_branch(self, source: Source, read_only: bool) -> Branch:
        number = self._next_number()
        xid = Xid(self._log_id, self.deadline_us, self.tx_id, number)
        return Branch(
            number,
            source,
            xid,
            self.deadline_us + self._runtime.grace_us,
            self._runtime.dialect(source),
            read_only=read_only,
        )

    def _next_number(self) -> str:
        own = next(self._numbers)
        number = f"{self._parent}.{own}" if self._parent else str(own)
        if not identifiers.is_branch(number):
            raise Rejected(f"calls are nested too deeply: branch {number}", reason=reasons.BAD_BRANCH)
        return number

    def _must_be_active(self) -> None:
        _forks.check()  # The connections of its branches are the parent's.
        if self._over:
            raise NoTransaction(f"the transaction {self.gid or self.tx_id} has ended")

    # ---- calls to other services ----

    def _call_sent(self, what: str) -> c.CallContext:
        """A call that carries the transaction leaves: it is outstanding until its vote is here."""
        number = self._next_number()
        with self._calls:
            self._must_be_active()
            self._outstanding[number] = what
        return c.CallContext(
            namespace=self._runtime.namespace,
            tx_id=self.tx_id,
            gid=self.gid,
            deadline_us=self.deadline_us,
            branch=number,
            log_id=self._log_id,
            name=self.name,
            headers=self.headers,
        )

    def _call_voted(self, number: str, vote: c.CallVote | None) -> None:
        """Its reply is here."""
        what = self._outstanding.get(number, "a call")
        if vote is None or vote.tx_id != self.tx_id or vote.branch != number:
            self.set_rollback_only(reasons.VOTE_MISSING, f"{what} was answered without a vote")
            return
        if not _own(vote, number):
            self.set_rollback_only(reasons.VOTE_MISSING, f"{what} voted for branches that are not its own")
            return
        with self._calls:
            self._remote.update({branch.id: branch for branch in vote.branches})
            if vote.rollback_only:
                self.set_rollback_only(
                    vote.reason or reasons.BRANCH_REFUSED, vote.message or f"{what} voted no"
                )
            self._outstanding.pop(number, None)

    def _call_failed(self, number: str, why: str, vote: c.CallVote | None = None) -> None:
        """No reply, or an error: what it did there is unknown, unless it brings a no that says why."""
        what = self._outstanding.get(number, "a call")
        if vote is not None and vote.rollback_only and (vote.tx_id, vote.branch) == (self.tx_id, number):
            self._call_voted(number, vote)
            return
        if vote is not None and vote.tx_id == self.tx_id and _own(vote, number):
            # It prepared, and failed all the same: the rollback names what is to be undone.
            self._remote.update({branch.id: branch for branch in vote.branches})
        self.set_rollback_only(reasons.VOTE_MISSING, f"{what} failed: {why}")

    def _call_over(self, number: str) -> None:
        """Its vote is known."""
        with self._calls:
            self._outstanding.pop(number, None)

    # ---- end: see _finish ----

    def _close(self) -> None:
        """Nothing more can be added."""
        with self._calls:
            self._over = True
            unheard = list(self._outstanding.values())
        for branch in list(self._branches.values()):  # Another thread may be adding one.
            if branch.blocks:
                self.set_rollback_only(
                    reasons.APPLICATION_ERROR,
                    f"a block on {branch.resource!r} was still open when the transaction ended",
                )
            elif branch.opening.locked():
                self.set_rollback_only(
                    reasons.APPLICATION_ERROR,
                    f"a block on {branch.resource!r} was about to begin when the transaction ended",
                )
        for what in unheard:
            self.set_rollback_only(reasons.VOTE_MISSING, f"{what} has not voted")

    def _spec(self) -> c.TransactionSpec:
        """What it is, besides its branches."""
        return c.TransactionSpec(
            name=self.name,
            labels=self.labels,
            headers=self.headers,
            one_phase_resource=self._one_phase_resource,
        )

    @property
    def _local(self) -> list[Branch]:
        return [b for b in list(self._branches.values()) if b.joined]


def _own(vote: c.CallVote, number: str) -> bool:
    """Are all its branches below the call's? Another call's would take the place of what that one has prepared."""
    return all(branch.id.startswith(f"{number}.") for branch in vote.branches)


class XaBlock:
    """``with g.xa(target) as db``."""

    def __init__(self, transaction: Transaction, target: Any, resource: str, read_only: bool) -> None:
        self._transaction = transaction
        self._target = target
        self._resource = resource
        self._read_only = read_only
        self._branch: Branch | None = None

    def __enter__(self) -> Any:
        self._branch = self._transaction._enter_xa(self._target, self._resource, self._read_only)
        return self._branch.held.value

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._branch is not None
        self._transaction._leave_xa(self._branch, error)
