"""``coord.submit``: a plan on its way."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from . import _aio, _values
from . import outcome as outcomes
from ._pb import common_pb2 as c
from ._pb import coordinator_pb2 as pb
from ._runtime import Runtime
from ._tries import said_no
from .errors import Aborted, Heuristic, Rejected
from .outcome import Outcome
from .participant import operation_of
from .protocol import identifiers
from .retries import Retry
from .sagas import Saga

_PIECE_S = 20.0
"""So long one wait at the coordinator lasts; then it is asked again."""
_PARKED_S = 1.0
"""Between two looks at what only an operator can move on: the coordinator answers them at once."""


class Run:
    """A plan that was submitted. Its coordinator runs it, whatever becomes of this process."""

    def __init__(self, runtime: Runtime, tx_id: str, gid: str) -> None:
        self.tx_id = tx_id
        self.gid = gid
        self.outcome: Outcome | None = None
        """How it stood when it was asked last."""
        self.results: dict[str, Any] = {}
        """What its steps returned, by their names, as far as it is known."""
        self.refused = ""
        """The step that said no, and why, if one did."""
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"<Run {self.gid or self.tx_id}>"

    async def wait(self, timeout: float = 30.0) -> Outcome:
        """Wait until it is COMMITTED or ABORTED, at most ``timeout`` seconds; how it stands then. Raises Aborted when
        it was aborted, once everything is undone, and Heuristic when something was settled by hand."""
        until = _aio.now() + timeout
        while True:
            left = max(until - _aio.now(), 0.0)
            out = await self._ask(min(left, _PIECE_S))
            if out.state in ("COMMITTED", "ABORTED"):
                break
            if left <= _PIECE_S:
                return out
            if out.parked:
                await _aio.sleep(_PARKED_S)
        if out.heuristic:
            raise Heuristic("a step was settled by hand", tx_id=self.tx_id, gid=self.gid)
        if out.aborted:
            raise Aborted(
                f"the saga was aborted by {out.decided_by}" + (f": {self.refused}" if self.refused else ""),
                reason=out.reason,
                decided_by=out.decided_by,
                retriable=out.retriable,
                tx_id=self.tx_id,
                gid=self.gid,
            )
        return out

    async def abort(self) -> Outcome:
        """Ask for its abort; how it stands then: what was done is undone. Raises Rejected when it can only go
        forward."""
        request = pb.RollbackRequest(tx_id=self.tx_id, wait=c.WAIT_LEVEL_DECIDED, force_log=True, begun=True)
        until = _aio.now() + self._runtime.call_timeout
        response = await self._runtime.wire.call("rollback", request, until, tx_id=self.tx_id, gid=self.gid)
        return self._take(response.outcome)

    async def _ask(self, seconds: float) -> Outcome:
        item = pb.WaitItem(tx_id=self.tx_id, level=c.WAIT_LEVEL_COMMITTED, all_branches=True)
        request = pb.WaitRequest(items=[item], wait_us=int(seconds * 1e6))
        until = _aio.now() + seconds + self._runtime.call_timeout
        response = await self._runtime.wire.call("wait", request, until, tx_id=self.tx_id, gid=self.gid)
        for result in response.results:
            if not result.HasField("status"):
                return self._take(result.outcome)
        get = pb.GetRequest(tx_id=self.tx_id)
        found = await self._runtime.wire.call("get", get, until, tx_id=self.tx_id, gid=self.gid)
        return self._take(found.transaction.outcome)

    def _take(self, out: c.Outcome) -> Outcome:
        for branch in out.branches:
            if branch.result and branch.content_type in ("", "application/json"):
                self.results[branch.name] = json.loads(branch.result)
            if said_no(branch, out):
                self.refused = f"{branch.name}: {branch.message}"
        self.outcome = outcomes.from_pb(out, tx_id=self.tx_id, gid=self.gid)
        return self.outcome


async def submitted(
    runtime: Runtime,
    flow: Saga,
    *,
    gid: str,
    data: Mapping[str, Any],
    timeout: float | None,
    labels: Mapping[str, str],
    headers: Mapping[str, str],
    retry: Retry | None,
    on_end: Sequence[Any],
    call_timeout: float,
) -> Run:
    """Hand it over; returns when it is durable."""
    until = _aio.now() + call_timeout
    names = {step.operation.participant for step in flow.steps}
    branches = flow.branches({name: runtime.participants.target(name) for name in names}, data)
    await runtime.connect(until)
    now_us = runtime.wire.clock.now_us()
    run = Run(runtime, identifiers.new_tx_id(now_us, secrets.randbits), gid)
    request = pb.SubmitRequest(
        tx_id=run.tx_id,
        gid=gid,
        deadline_us=now_us + int(timeout * 1e6) if timeout is not None else 0,
        branches=branches,
        spec=c.TransactionSpec(
            name=flow.name,
            labels=dict(labels),
            headers=dict(headers),
            retry=retry.to_pb() if retry is not None else None,
            callbacks=[_callback(runtime, told, data) for told in on_end],
        ),
        wait=c.WAIT_LEVEL_ACCEPTED,
    )
    response = await runtime.wire.call("submit", request, until, tx_id=run.tx_id, gid=gid)
    run._take(response.outcome)
    return run


def _callback(runtime: Runtime, told: Any, data: Mapping[str, Any]) -> c.Callback:
    operation = operation_of(told)
    if operation.first != "callback":
        raise Rejected(f"{operation.name} is not told of an end: decorate it with @participant.callback")
    target = runtime.participants.target(operation.participant)
    part = c.DeliveryPart(target=target, operation=operation.full_name, payload=_values.encode(dict(data)))
    return c.Callback(id=operation.full_name, delivery=part)
