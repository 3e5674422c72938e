"""The block of a transaction: ``async with coord.begin(...)``."""

from __future__ import annotations

import contextvars
import secrets
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol

from . import _aio, _finish, _forks
from ._pb import common_pb2 as c
from ._pb import coordinator_pb2 as pb
from ._runtime import Runtime
from .errors import AlreadyCommitted, Rejected, TxcoordError
from .outcome import Outcome
from .protocol import identifiers, reasons
from .transaction import Transaction


class Home(Protocol):
    """What of a Coordinator a block needs."""

    _call_timeout: float

    @property
    def _current(self) -> contextvars.ContextVar[Transaction | None]: ...

    def current_or_none(self) -> Transaction | None: ...

    async def get(self, gid: str = "", *, tx_id: str = "") -> Outcome | None: ...

    def _runtime(self) -> Runtime: ...


class Scope:
    """``async with coord.begin(...)``: begins or joins a transaction, and ends what it began."""

    def __init__(
        self,
        coordinator: Home,
        *,
        name: str,
        gid: str,
        timeout: float,
        labels: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        resources: Sequence[str],
        wait: c.WaitLevel,
        new: bool,
        retry_of: str,
        again: bool,
    ) -> None:
        self._coordinator = coordinator
        self._name = name
        self._gid = gid
        self._timeout = timeout
        self._labels = labels
        self._headers = headers
        self._resources = tuple(resources)
        self._wait = wait
        self._new = new
        self._retry_of = retry_of
        self._again = again
        self._transaction: Transaction | None = None
        self._joined = False
        self._token: contextvars.Token[Transaction | None] | None = None

    async def __aenter__(self) -> Transaction:
        if self._transaction is not None:
            raise Rejected("a Scope can be entered once: call begin() again")
        outer = self._coordinator.current_or_none()
        if outer is not None and not self._new:
            if self._gid and self._gid != outer.gid:
                raise Rejected(
                    f"begin(gid={self._gid!r}) inside the transaction {outer.gid or outer.tx_id!r}: nested blocks join "
                    "it; say new=True for a transaction of its own",
                    reason="NESTED_GID",
                )
            self._transaction, self._joined = outer, True
            return outer
        self._transaction = tx = await self._begin()
        self._token = self._coordinator._current.set(tx)
        return tx

    async def _begin(self) -> Transaction:
        runtime = self._coordinator._runtime()
        until = _aio.now() + min(self._timeout, self._coordinator._call_timeout)
        hello = await runtime.connect(until)
        most = hello.limits.max_deadline_us / 1e6
        if most and self._timeout > most:
            raise Rejected(
                f"timeout={self._timeout:g} s is longer than the {most:g} s that the coordinator allows",
                reason=reasons.DEADLINE_TOO_FAR,
            )
        now_us = runtime.wire.clock.now_us()
        tx = Transaction(
            runtime,
            name=self._name,
            tx_id=identifiers.new_tx_id(now_us, secrets.randbits),
            gid=self._gid,
            deadline_us=now_us + int(self._timeout * 1e6),
            labels=self._labels,
            headers=self._headers,
            wait=self._wait,
            one_phase_resource=self._resources[0] if self._resources and self._gid else "",
            begun=bool(self._gid),
        )
        _check(tx, hello.limits)
        if self._gid:
            await self._announce(runtime, tx, until)
        return tx

    async def _announce(self, runtime: Runtime, tx: Transaction, until: float) -> None:
        """With a gid the transaction is durable before its work begins."""
        spec = tx._spec()
        spec.retry_of = self._retry_of
        spec.again = self._again
        request = pb.BeginRequest(tx_id=tx.tx_id, gid=tx.gid, deadline_us=tx.deadline_us, spec=spec)
        try:
            await runtime.wire.call("begin", request, until, tx_id=tx.tx_id, gid=tx.gid)
        except AlreadyCommitted as error:
            known = await self._coordinator.get(tx_id=error.tx_id)
            error.result = known.result if known is not None else b""
            error.outcome = known
            raise
        except (TxcoordError, _aio.Cancelled) as error:
            definite = isinstance(error, TxcoordError) and error.definite
            if not definite and getattr(error, "reason", "") != reasons.IN_PROGRESS:
                # It may be there: don't leave the gid taken until the deadline, nor spent: nothing was decided.
                tx.set_rollback_only(reasons.CONNECTION_LOST, "begin was not answered")
                runtime.tasks.spawn(f"txcoord.rollback:{tx.tx_id}", _finish.end, tx, error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tx = self._transaction
        assert tx is not None
        if _forks.inherited():
            # Its connections are the parent's, who goes on with them: nothing may be sent there.
            if error is None:
                _forks.check()
            return
        if self._joined:
            if error is not None:
                tx.set_rollback_only(
                    reasons.APPLICATION_ERROR, f"{type(error).__name__} left a nested block: {error}"
                )
            return
        if self._token is not None:
            try:
                self._coordinator._current.reset(self._token)
            except ValueError:  # Entered and left in different contexts, as async generators are.
                self._coordinator._current.set(None)
        # In a task of its own: a cancelled caller goes, the end of its transaction goes on.
        await tx._runtime.tasks.shielded(f"txcoord.end:{tx.tx_id}", _finish.end, tx, error)


def _check(tx: Transaction, limits: pb.Limits) -> None:
    """What the coordinator would refuse, refuse before any work: without a gid it hears of it only at the end."""
    try:
        spec = tx._spec()
    except (TypeError, ValueError) as error:
        raise Rejected(f"name, labels and headers are texts: {error}") from error
    if limits.max_labels and len(spec.labels) > limits.max_labels:
        raise Rejected(f"{len(spec.labels)} labels; at most {limits.max_labels}", reason=reasons.TOO_LARGE)
    size = sum(len(k) + len(v) for k, v in (*spec.labels.items(), *spec.headers.items()))
    if (limits.max_headers_bytes and size > limits.max_headers_bytes) or len(spec.name) > 200:
        raise Rejected(
            f"name, labels and headers: at most {limits.max_headers_bytes} bytes together, the name 200",
            reason=reasons.TOO_LARGE,
        )
