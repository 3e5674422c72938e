"""AdminService: what operators call. Every write says who and why, and is audited in the same transaction."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from txcoord_client._pb import admin_pb2 as pb
from txcoord_client._pb import admin_pb2_grpc as rpc
from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import reasons

from ...core.errors import Refused
from ...core.events import Operate
from ...core.machine import decide
from ...core.model import Audit, BranchState, Decision, Tx
from ...engine.coordinator import Coordinator
from ...engine.replays import Replayer
from ...ports import Query, ResourceStatus
from .. import tokens
from . import checking, filters, mapping, nodes, orders, status
from .mapping import bad
from .operations import Operations
from .replays import ReplayCalls, audit_of, must_say
from .targets import TargetDesk

_SAID = {"reset": "reset_attempts"}
_DONE = {"retry": "retried", "park": "parked", "skip": "skipped", "resolve": "resolved"}


class AdminServicer(ReplayCalls, rpc.AdminServiceServicer):
    """Answers what operators ask."""

    def __init__(
        self,
        coordinator: Coordinator,
        operations: Operations,
        resources: Callable[[], Sequence[ResourceStatus]],
        *,
        now_us: Callable[[], int],
        targets: TargetDesk,
        fleet: nodes.Fleet | None = None,
        replayer: Replayer | None = None,
        look: checking.Look | None = None,
    ) -> None:
        super().__init__(coordinator, operations, replayer)
        self._targets = targets
        self._resources = resources
        self._now_us = now_us
        self._fleet = fleet
        self._look = look

    async def Park(self, request: pb.ParkRequest, context: Any) -> Any:
        return await self._write("park", request, context, pb.ParkResponse)

    async def Skip(self, request: pb.SkipRequest, context: Any) -> Any:
        return await self._write("skip", request, context, pb.SkipResponse)

    async def Retry(self, request: pb.RetryRequest, context: Any) -> Any:
        return await self._write("retry", request, context, pb.RetryResponse)

    async def Resolve(self, request: pb.ResolveRequest, context: Any) -> Any:
        # So an undecided one is decided: its step was not done.
        action = "not_done" if request.resolved_as == c.DECISION_ABORT else "resolve"
        return await self._write(action, request, context, pb.ResolveResponse)

    async def ListResources(self, request: pb.ListResourcesRequest, context: Any) -> Any:
        return pb.ListResourcesResponse(
            resources=[
                pb.Resource(
                    name=r.name,
                    engine=r.engine,
                    identity=r.identity,
                    engine_version=r.version,
                    available=not r.problem,
                    problem=r.problem,
                )
                for r in self._resources()
            ]
        )

    async def CheckResource(self, request: pb.CheckResourceRequest, context: Any) -> Any:
        assert self._look is not None  # As for nodes.
        return await self._guarded(checking.checked(self._look, request), context)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> Any:
        return await self._guarded(nodes.listed(self._nodes(), self._now_us()), context)

    async def DrainNode(self, request: pb.DrainNodeRequest, context: Any) -> Any:
        return await self._guarded(nodes.drained(self._nodes(), request, self._now_us()), context)

    def _nodes(self) -> nodes.Fleet:
        assert self._fleet is not None  # Only a simulation has none, and asks for none.
        return self._fleet

    async def _guarded(self, work: Awaitable[Any], context: Any) -> Any:
        try:
            return await work
        except Exception as error:
            await status.abort(context, error)

    # ---- targets ----

    async def ListTargets(self, request: pb.ListTargetsRequest, context: Any) -> Any:
        return await self._of_targets(self._targets.page, request, context)

    async def PauseTarget(self, request: pb.PauseTargetRequest, context: Any) -> Any:
        target = await self._of_targets(self._targets.pause, request, context)
        return pb.PauseTargetResponse(target=target)

    async def ResumeTarget(self, request: pb.ResumeTargetRequest, context: Any) -> Any:
        target = await self._of_targets(self._targets.resume, request, context)
        return pb.ResumeTargetResponse(target=target)

    async def LimitTarget(self, request: pb.LimitTargetRequest, context: Any) -> Any:
        target = await self._of_targets(self._targets.limit, request, context)
        return pb.LimitTargetResponse(target=target)

    async def AliasTarget(self, request: pb.AliasTargetRequest, context: Any) -> Any:
        target = await self._of_targets(self._targets.alias, request, context)
        return pb.AliasTargetResponse(target=target)

    async def _of_targets(
        self, work: Callable[[Any, str], Awaitable[Any]], request: Any, context: Any
    ) -> Any:
        try:
            # A target is every namespace's.
            tokens.demand_everywhere()
            return await work(request, self._ops.namespace(request.namespace))
        except Exception as error:
            await status.abort(context, error)

    async def _write(self, action: str, request: Any, context: Any, response_type: Any) -> Any:
        try:
            effects, more = await self._operate(action, request)
        except Exception as error:
            await status.abort(context, error)
        if response_type is pb.ResolveResponse:
            return response_type(effects=effects)
        return response_type(effects=effects, more=more)

    async def _operate(self, action: str, request: Any) -> tuple[list[pb.Effect], bool]:
        namespace = self._ops.namespace(request.namespace)
        must_say(request.audit)
        found, more, query = await self._select(request.selector, namespace, action)
        effects: list[pb.Effect] = []
        for tx in found:
            named = list(dict.fromkeys(request.selector.branches))
            wanted = orders.about(tx, action, named, query)
            if action == "not_done" and len(wanted) != 1:
                raise bad(reasons.BAD_REQUEST, "name the one branch that was not done")
            if not wanted:
                message = f"no branch applies: {orders.HINTS[action]}"
                effects.append(pb.Effect(tx_id=tx.tx_id, gid=tx.gid, effect="none", message=message))
            payload = request.payload if action == "retry" and request.HasField("payload") else None
            if payload is not None and (request.selector.filter or len(wanted) > 1):
                raise bad(reasons.BAD_REQUEST, "another payload is for one branch: name it")
            if payload is not None and wanted:
                self._ops.edited(tx.branch(wanted[0]), payload, tx.namespace)
            how = {"reset": request.reset_attempts, "early": request.early} if action == "retry" else {}
            for branch_id in wanted:
                branch = tx.branch(branch_id)
                order = Operate(
                    action,
                    branch_id,
                    _audit(request.audit, action, branch_id, self._now_us(), payload, how),
                    payload,
                    # Whoever has not named it means it as he has found it.
                    parked=not named and branch is not None and branch.state is BranchState.PARKED,
                    **how,
                )
                effects.append(await self._one(tx.tx_id, order, request.audit.dry_run))
        return effects, more

    async def _select(
        self, selector: pb.Selector, namespace: str, action: str
    ) -> tuple[list[Tx], bool, Query | None]:
        if not selector.filter:
            tx = await self._ops.find(namespace, selector.tx_id, selector.gid)
            return [tx], False, None
        if action in ("resolve", "not_done"):
            raise bad(reasons.BAD_REQUEST, "resolve takes one transaction, not a filter")
        limit = selector.limit or 1_000
        query = filters.parse(selector.filter, namespace=namespace, now_us=self._now_us(), limit=limit + 1)
        await self._c.log.settle()
        rows = await self._c.log.query(query)
        return rows[:limit], len(rows) > limit, query

    async def _one(self, tx_id: str, order: Operate, dry_run: bool) -> pb.Effect:
        action, branch_id = order.action, order.branch_id
        before = await self._c.get(tx_id)
        assert before is not None
        effect = pb.Effect(tx_id=tx_id, gid=before.gid, branch=branch_id)
        try:
            if dry_run:
                verdict = decide(before, order, self._now_us(), self._c.settings.windows)
                if verdict.refusal is not None:
                    raise Refused(verdict.refusal)
                after = verdict.tx
            else:
                after = await self._c.operate(tx_id, order)
        except Refused as refused:
            effect.effect = "refused"
            effect.refused.CopyFrom(status.to_pb(refused.refusal))
            return effect
        asked = action == "not_done" and after.decision is None
        effect.effect = _DONE.get(action) or ("asked" if asked else "aborted")
        branch = after.branch(branch_id)
        if branch is not None:
            effect.state = mapping.BRANCH_STATE[branch.state]
        what = f"{branch.kind} of {branch.resource}; " if branch is not None else ""
        effect.message = f"{what}the transaction is {after.state}"
        if branch is not None and action == "retry" and branch.next_attempt_us > self._now_us():
            at = datetime.fromtimestamp(branch.next_attempt_us // 1_000_000, UTC)
            effect.message += (
                f"; it is sent at its time, {at:%Y-%m-%dT%H:%M:%SZ}, unless --early says otherwise"
            )
        if asked:
            effect.message += (
                ": it may have been committed, so its steps are asked, and none begins any more. If this one does not "
                "answer, look once more whether it was done, and give the same order again: then it counts as not done"
            )
        finisher = self._c.finishers.get(branch.resource) if branch is not None else None
        if branch is not None and finisher is not None and branch.xid and action in ("skip", "resolve"):
            statement = finisher.by_hand(branch.xid, after.decision is Decision.COMMIT)
            effect.message += (
                f". Its database is left alone: if the branch is still prepared on {branch.resource}, it keeps its "
                f"locks until somebody runs there: {statement};"
            )
        return effect


def _audit(
    said: pb.Audit, action: str, branch_id: str, at_us: int, payload: bytes | None, how: dict[str, bool]
) -> Audit:
    detail: dict[str, Any] = {_SAID.get(name, name): True for name, value in how.items() if value}
    if payload is not None:
        detail["payload"] = base64.b64encode(payload).decode()
    who = replace(audit_of(said, action, at_us), branch=branch_id)
    return replace(who, detail=json.dumps(detail)) if detail else who
