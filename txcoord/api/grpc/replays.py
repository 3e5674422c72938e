"""AdminService: what is parked, jobs that retry it, and the audit trail."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, TypeVar

from txcoord_client._pb import admin_pb2 as pb
from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import identifiers, reasons

from ...core.model import Audit
from ...core.replaying import (
    AuditQuery,
    AuditRow,
    ItemState,
    JobState,
    Order,
    ParkedBranch,
    Replay,
    ReplayItem,
)
from ...core.words import storable
from ...engine.coordinator import Coordinator
from ...engine.replays import Replayer
from ...ports import Query
from .. import tokens
from . import filters, mapping, status
from .mapping import bad
from .operations import Operations

_STATE = {
    JobState.RUNNING: pb.REPLAY_STATE_RUNNING,
    JobState.STOPPED: pb.REPLAY_STATE_STOPPED,
    JobState.CANCELLED: pb.REPLAY_STATE_CANCELLED,
    JobState.DONE: pb.REPLAY_STATE_DONE,
}
_MOST_PARKED = 10_000
_FASTEST = 100_000.0
_VARIES = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}(?:-[0-9a-f]+)*|\d+|\"[^\"]*\"|'[^']*'", re.IGNORECASE)
T = TypeVar("T")


def must_say(audit: pb.Audit) -> None:
    """Refuse an order that does not say who and why."""
    if not audit.actor.strip() or not audit.reason.strip():
        raise bad(reasons.BAD_REQUEST, "an operator's order needs an actor and a reason; both are audited")


def audit_of(audit: pb.Audit, action: str, at_us: int) -> Audit:
    """Its row in the audit trail. An actor is what a command says; whose token it has shown is not."""
    actor = storable(audit.actor[:150])
    caller = tokens.current()
    if caller is not None and caller.name != actor:
        actor += f" (token {caller.name})"
    return Audit(actor, storable(audit.reason[:1000]), action, at_us)


def query_of(replay: Replay) -> Query:
    """Which transactions a job's filter finds; ages count from its start."""
    query = filters.parse(replay.order.filter, namespace=replay.namespace, now_us=replay.started_us)
    return query if not replay.order.target else _for_target(query, replay.order.target)


def _for_target(query: Query, target: str) -> Query:
    if query.resource not in (None, target):
        raise bad(reasons.BAD_REQUEST, f"the filter is for {query.resource!r}, the target is {target!r}")
    return replace(query, resource=target)


class ReplayCalls:
    """Its calls; the servicer has the others."""

    def __init__(self, coordinator: Coordinator, operations: Operations, replayer: Replayer | None) -> None:
        self._c = coordinator
        self._ops = operations
        self._replayer = replayer

    @property
    def _jobs(self) -> Replayer:
        if self._replayer is None:
            raise bad(reasons.NOT_SUPPORTED, "this coordinator keeps no jobs", "UNIMPLEMENTED")
        return self._replayer

    # ---- what is parked ----

    async def ListParkedGroups(self, request: pb.ListParkedGroupsRequest, context: Any) -> Any:
        return await _answered(self._groups(request), context)

    async def _groups(self, request: pb.ListParkedGroupsRequest) -> pb.ListParkedGroupsResponse:
        namespace = self._ops.namespace(request.namespace)
        query = filters.parse(request.filter, namespace=namespace, now_us=self._c.clock.now_us())
        await self._c.log.settle()
        found = await self._jobs.store.parked(query, 0, ("", ""), _MOST_PARKED)
        groups: dict[tuple[str, str, str], list[ParkedBranch]] = {}
        for p in found:
            groups.setdefault((str(p.branch.kind), p.branch.resource, _code(p.branch.reason)), []).append(p)
        biggest = sorted(groups.values(), key=len, reverse=True)[: min(request.limit or 50, 1_000)]
        return pb.ListParkedGroupsResponse(groups=[_group(members, request.filter) for members in biggest])

    # ---- jobs ----

    async def StartReplay(self, request: pb.StartReplayRequest, context: Any) -> Any:
        return await _answered(self._start(request), context)

    async def _start(self, request: pb.StartReplayRequest) -> pb.StartReplayResponse:
        namespace = self._ops.namespace(request.namespace)
        must_say(request.audit)
        now_us = self._c.clock.now_us()
        rate = request.rate_per_s
        if not 0 <= rate <= _FASTEST:
            raise bad(
                reasons.BAD_REQUEST, f"rate_per_s {rate:g}: between 0 and {_FASTEST:g} branches a second"
            )
        if len(request.canary) > 20 or any(size == 0 for size in request.canary):
            raise bad(reasons.BAD_REQUEST, "canary: at most 20 groups, each of at least one branch")
        if not -(2**53) < request.since_us < 2**53 or request.since_us < 0:
            raise bad(
                reasons.BAD_REQUEST, f"since_us {request.since_us}: microseconds since 1970 are expected"
            )
        if len(request.audit.request_id) > 200:
            raise bad(reasons.BAD_REQUEST, "request_id: at most 200 characters")
        who = audit_of(request.audit, "replay.start", now_us)
        job = Replay(
            id=identifiers.new_tx_id(now_us, self._c.random.getrandbits),
            namespace=namespace,
            order=Order(
                filter=request.filter,
                target=request.target,
                since_us=request.since_us,
                limit=request.limit,
                rate_per_s=rate,
                canary=tuple(request.canary),
                max_failures=request.max_failures,
                dry_run=request.audit.dry_run,
                by_hand=request.by_hand,
            ),
            actor=who.actor,
            reason=who.reason,
            request_id=storable(request.audit.request_id) or None,
            started_us=now_us,
            updated_us=now_us,
        )
        query_of(job)  # Refuses a filter that it cannot read.
        job = await self._jobs.store.create(job)
        self._jobs.wake()
        return pb.StartReplayResponse(replay=_replay(job))

    async def GetReplay(self, request: pb.GetReplayRequest, context: Any) -> Any:
        async def run() -> pb.GetReplayResponse:
            return pb.GetReplayResponse(replay=_replay(await self._job(request.namespace, request.id)))

        return await _answered(run(), context)

    async def CancelReplay(self, request: pb.CancelReplayRequest, context: Any) -> Any:
        async def run() -> pb.CancelReplayResponse:
            job = await self._turn(request, JobState.CANCELLED, "replay.cancel", 0.0)
            return pb.CancelReplayResponse(replay=_replay(job))

        return await _answered(run(), context)

    async def ResumeReplay(self, request: pb.ResumeReplayRequest, context: Any) -> Any:
        async def run() -> pb.ResumeReplayResponse:
            if not 0 <= request.rate_per_s <= _FASTEST:
                raise bad(reasons.BAD_REQUEST, f"rate_per_s: between 0 and {_FASTEST:g} branches a second")
            job = await self._turn(request, JobState.RUNNING, "replay.resume", request.rate_per_s)
            if job.state is not JobState.RUNNING:
                text = "a dry run is not resumed" if job.order.dry_run else f"it is {job.state}"
                raise bad(reasons.BAD_REQUEST, f"replay {job.id}: {text}", "FAILED_PRECONDITION")
            self._jobs.wake()
            return pb.ResumeReplayResponse(replay=_replay(job))

        return await _answered(run(), context)

    async def _turn(self, request: Any, state: JobState, action: str, rate_per_s: float) -> Replay:
        must_say(request.audit)
        job = await self._job(request.namespace, request.id)
        if request.audit.dry_run:
            return job
        order = audit_of(request.audit, action, self._c.clock.now_us())
        turned = await self._jobs.store.turn(job.namespace, job.id, state, order, rate_per_s)
        return turned or job

    async def ListReplays(self, request: pb.ListReplaysRequest, context: Any) -> Any:
        async def run() -> pb.ListReplaysResponse:
            namespace = self._ops.namespace(request.namespace)
            token, size = request.page_token, min(request.page_size or 50, 1_000)
            if token and not identifiers.is_tx_id(token):
                raise bad(reasons.BAD_REQUEST, f"page_token {token[:40]!r} was never given out")
            jobs = await self._jobs.store.page(namespace, token, size + 1)
            return pb.ListReplaysResponse(
                replays=[_replay(job) for job in jobs[:size]],
                next_page_token=jobs[size - 1].id if len(jobs) > size else "",
            )

        return await _answered(run(), context)

    async def ListReplayItems(self, request: pb.ListReplayItemsRequest, context: Any) -> Any:
        async def run() -> pb.ListReplayItemsResponse:
            job = await self._job(request.namespace, request.id)
            tx_id, _, branch = request.page_token.partition(":")
            if tx_id and not identifiers.is_tx_id(tx_id):
                raise bad(reasons.BAD_REQUEST, f"page_token {tx_id[:40]!r} was never given out")
            size = min(request.page_size or 100, 1_000)
            items = await self._jobs.store.items(job.id, (tx_id, branch[:100]), size + 1)
            last = items[size - 1] if len(items) > size else None
            return pb.ListReplayItemsResponse(
                effects=[_effect(item) for item in items[:size]],
                next_page_token=f"{last.tx_id}:{last.branch}" if last is not None else "",
            )

        return await _answered(run(), context)

    async def _job(self, namespace: str, replay_id: str) -> Replay:
        bare = identifiers.parse_tx_id(replay_id)
        namespace = self._ops.namespace(namespace)
        job = await self._jobs.store.get(namespace, bare) if bare is not None else None
        if job is None:
            raise bad(reasons.NOT_FOUND, f"there is no replay {replay_id[:80]!r}", "NOT_FOUND")
        return job

    # ---- who did what ----

    async def ListAudit(self, request: pb.ListAuditRequest, context: Any) -> Any:
        return await _answered(self._audits(request), context)

    async def _audits(self, request: pb.ListAuditRequest) -> pb.ListAuditResponse:
        namespace = self._ops.namespace(request.namespace)
        size = min(request.page_size or 100, 1_000)
        match = re.fullmatch(r"(\d{1,18}):(\d{1,19})", request.page_token)
        if request.page_token and match is None:
            raise bad(reasons.BAD_REQUEST, f"page_token {request.page_token[:40]!r} was never given out")
        before = (int(match[1]), int(match[2])) if match is not None else None
        query = filters.parse_audit(request.filter, namespace=namespace, before=before, limit=size + 1)
        if query.target or query.node:
            tokens.demand_everywhere()
        query = replace(query, everywhere=tokens.may_everywhere())
        if query.tx_id:
            # Also rows that were written before they named their namespace.
            tx = await self._ops.find(namespace, "", query.tx_id)
            audits = enumerate(await self._c.log.audits(tx.tx_id))
            found = [AuditRow(tx.tx_id, n, a) for n, a in audits if _matches(query, n, a)][::-1]
        else:
            await self._c.log.settle()
            found = await self._jobs.store.audits(query)
        last = found[size - 1] if len(found) > size else None
        return pb.ListAuditResponse(
            entries=[_entry(row, namespace, tokens.may(tokens.May.OPERATE)) for row in found[:size]],
            next_page_token=f"{last.audit.at_us}:{last.ordinal}" if last is not None else "",
        )


async def _answered(work: Awaitable[T], context: Any) -> T:
    try:
        return await work
    except Exception as error:
        await status.abort(context, error)


def _matches(query: AuditQuery, place: int, audit: Audit) -> bool:
    """Of those of one transaction."""
    return (
        query.actor in ("", audit.actor)
        and query.action in ("", audit.action)
        and query.replay in ("", audit.replay)
        and audit.at_us >= query.since_us
        and (query.before is None or (audit.at_us, place) < query.before)
    )


def _code(reason: str) -> str:
    """Of what groups are made: the code; for a no in phase two the participant's own code too."""
    code, _, rest = reason.partition(":")
    return f"{code}: {rest.strip().split(':', 1)[0]}" if code == "REFUSED_IN_PHASE_TWO" and rest else code


def _group(members: list[ParkedBranch], filter_: str) -> pb.ParkedGroup:
    first, newest = members[0].branch, max(members, key=lambda p: p.parked_us)
    kind, code = str(first.kind), _code(first.reason)
    terms = [
        term
        for term in (
            filter_,
            "parked",
            f"kind = {kind}",
            f'resource = "{first.resource}"',
            f'reason = "{code}"',
        )
        if term
    ]
    known = [p.parked_us for p in members if p.parked_us]
    text = newest.branch.reason
    return pb.ParkedGroup(
        kind=mapping.KIND[first.kind],
        target=first.resource,
        reason=code,
        fingerprint=hashlib.sha256(_VARIES.sub("#", text).encode()).hexdigest()[:12],
        count=len(members),
        oldest_us=min(known, default=0),
        newest_us=max(known, default=0),
        example_tx_id=newest.tx_id,
        filter=" AND ".join(terms),
        message=text,
        failed_again=sum(p.again for p in members),
    )


def _replay(job: Replay) -> pb.Replay:
    o = job.order
    return pb.Replay(
        id=job.id,
        state=_STATE[job.state],
        request=pb.StartReplayRequest(
            namespace=job.namespace,
            audit=pb.Audit(
                actor=job.actor, reason=job.reason, request_id=job.request_id or "", dry_run=o.dry_run
            ),
            filter=o.filter,
            target=o.target,
            since_us=o.since_us,
            limit=o.limit,
            rate_per_s=o.rate_per_s,
            canary=o.canary,
            max_failures=o.max_failures,
            by_hand=o.by_hand,
        ),
        taken=job.taken,
        succeeded=job.count(ItemState.SUCCEEDED),
        failed_again=job.count(ItemState.FAILED),
        refused=job.count(ItemState.REFUSED),
        started_us=job.started_us,
        updated_us=job.updated_us,
        ended_us=job.ended_us,
        message=job.message,
        owner=job.owner if job.state is JobState.RUNNING else "",
        canary_step=job.canary_step,
    )


_EFFECT = {
    ItemState.WAITING: "waiting",
    ItemState.TAKING: "taken",
    ItemState.TAKEN: "taken",
    ItemState.SUCCEEDED: "succeeded",
    ItemState.FAILED: "failed again",
    ItemState.REFUSED: "refused",
    ItemState.WOULD: "would be retried",
}


def _effect(item: ReplayItem) -> pb.Effect:
    effect = pb.Effect(
        tx_id=item.tx_id, gid=item.gid, branch=item.branch, effect=_EFFECT[item.state], message=item.message
    )
    if item.state is ItemState.REFUSED:
        effect.refused.CopyFrom(
            c.Status(code=9, reason=item.reason, message=item.message, definite=True)  # FAILED_PRECONDITION
        )
    return effect


def _detail(detail: str, whole: bool) -> str:
    """What was asked. A payload is its transaction's content: others see how long it is, and its hash."""
    asked = json.loads(detail) if '"payload"' in detail else {}
    payload = asked.get("payload")
    if not isinstance(payload, str):
        return detail
    content = base64.b64decode(payload)
    asked.update(payload_bytes=len(content), payload_sha256=hashlib.sha256(content).hexdigest())
    if not whole:
        del asked["payload"]
    return json.dumps(asked)


def _entry(row: AuditRow, namespace: str, whole: bool) -> pb.AuditEntry:
    a = row.audit
    return pb.AuditEntry(
        at_us=a.at_us,
        actor=a.actor,
        action=a.action,
        reason=a.reason,
        tx_id="" if row.tx_id == a.replay else row.tx_id,
        branch=a.branch,
        detail=_detail(a.detail, whole),
        replay_id=a.replay,
        namespace=namespace if row.tx_id else row.namespace,
        target=row.target or row.node,
        identity=row.identity,
    )
