"""Contract of what operators say about targets: kept beside the log, with who, when and why."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.support.logs import LogContract, Place, committing, new_id, put
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.nodes import SqlNodes
from txcoord.adapters.sql.outbox import SqlOutbox
from txcoord.adapters.sql.replays import SqlReplays
from txcoord.adapters.sql.targets import SqlTargets
from txcoord.core.model import Audit, Branch, BranchState, Kind, TargetAudit, TargetRule
from txcoord.core.replaying import AuditQuery, AuditRow
from txcoord.ports import NodeOrder, NodeStatus


def a_target() -> str:
    """Of this test alone: the database may have had others."""
    return f"grpc://{new_id()}:7000"


def audit(action: str, target: str, **more: str) -> TargetAudit:
    return TargetAudit(target, action, more.pop("actor", "ann"), more.pop("reason", "works"), 0, "shop")


async def audits(log: SqlLog, target: str, limit: int = 10) -> list[Audit]:
    """Who has changed its rule, the latest first."""
    rows = await SqlReplays(log).audits(AuditQuery("shop", target=target, limit=limit))
    assert all((row.target, row.namespace) == (target, "shop") for row in rows)
    return [row.audit for row in rows]


class TestTargets(LogContract):
    async def test_it_is_kept_with_who_when_and_why(self, log: SqlLog) -> None:
        targets, t = SqlTargets(log), a_target()
        before_us = await log.now_us()
        paused = await targets.change(
            audit("target.pause", t), lambda rule: replace(rule, paused=True, paused_until_us=7)
        )
        assert paused == replace(
            TargetRule(t, True, 7), actor="ann", reason="works", changed_us=paused.changed_us
        )
        assert before_us <= paused.changed_us <= await log.now_us()
        limited = await targets.change(
            audit("target.limit", t, actor="bob"), lambda rule: replace(rule, rate_per_s=0.25, at_once=4)
        )
        assert (limited.paused, limited.rate_per_s, limited.at_once, limited.actor) == (True, 0.25, 4, "bob")
        other = await targets.change(audit("target.limit", a_target()), lambda rule: rule)
        found = {rule.target: rule for rule in await targets.all()}
        assert (found[t], found[other.target]) == (limited, other)
        second, first = await audits(log, t)
        assert (first.action, first.actor, first.reason) == ("target.pause", "ann", "works")
        assert (first.at_us, second.at_us) == (paused.changed_us, limited.changed_us)
        assert json.loads(second.detail)["before"]["paused"] is True
        assert json.loads(second.detail)["after"]["rate_per_s"] == 0.25
        assert await audits(log, t, 1) == [second]

    async def test_what_is_noted_is_nobodys_word_and_a_disabled_one_is_announced(self, log: SqlLog) -> None:
        targets, t = SqlTargets(log, events=True), a_target()
        said = await targets.change(audit("target.limit", t), lambda rule: replace(rule, at_once=4))
        noted = await targets.note(t, lambda rule: replace(rule, failing_since_us=7))
        assert noted == replace(said, failing_since_us=7)
        assert len(await audits(log, t)) == 1
        disabled = await targets.change(
            audit("target.disable", t, actor="txcoord"), lambda rule: replace(rule, disabled_us=9)
        )
        assert disabled in await targets.all()
        await targets.change(audit("target.limit", t), lambda rule: replace(rule, at_once=5))
        found = [o.announcement for o in await SqlOutbox(log).take([], 500)]
        [told] = [json.loads(a.data) for a in found if a.what == "target.disabled" and t in a.data]
        assert told == {"target": t, "reason": "works", "failing_since_us": 7, "disabled_us": 9}

    async def test_what_is_parked_for_each(self, log: SqlLog) -> None:
        t, now_us = a_target(), await log.now_us()

        def branch(number: str, state: BranchState) -> Branch:
            return Branch(number, Kind.TCC, state, t)

        for states in (
            [BranchState.PARKED, BranchState.DONE],
            [BranchState.PARKED] * 2,
            [BranchState.FINISHING],
        ):
            await put(log, committing(now_us, *(branch(str(n), s) for n, s in enumerate(states, 1))))
        assert (await SqlTargets(log).parked())[t] == 3

    async def test_the_trail_is_one_by_pages_and_by_what_is_asked(self, log: SqlLog) -> None:
        targets, nodes, store, t = SqlTargets(log), SqlNodes(log), SqlReplays(log), a_target()
        began_us = await log.now_us()
        for number in range(3):
            await targets.change(audit("target.limit", t), lambda rule: replace(rule, at_once=4))
            await nodes.join(NodeStatus(f"n{number}", "coordinator", "", "1"))
            await nodes.drain(f"n{number}", True, NodeOrder("node.drain", "bob", "disks", "token"))

        async def pages(**wanted: Any) -> list[str]:
            found: list[AuditRow] = []
            while True:
                before = (found[-1].audit.at_us, found[-1].ordinal) if found else None
                query = AuditQuery("shop", since_us=began_us, before=before, limit=2, **wanted)
                more = await store.audits(query)
                found.extend(more)
                if not more:
                    return [row.target or row.node for row in found]

        assert await pages() == ["n2", t, "n1", t, "n0", t]
        assert await pages(actor="bob") == await pages(action="node.drain") == ["n2", "n1", "n0"]
        assert await pages(target=t) == [t, t, t]
        assert await pages(node="n1") == ["n1"]
        assert await pages(everywhere=False) == await pages(tx_id=new_id()) == []

    async def test_an_edit_that_fails_leaves_nothing(self, log: SqlLog) -> None:
        targets, t = SqlTargets(log), a_target()

        def bad(_: TargetRule) -> TargetRule:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError):
            await targets.change(audit("target.pause", t), bad)
        assert await audits(log, t) == []
        assert t not in {rule.target for rule in await targets.all()}

    async def test_two_at_once_lose_nothing(self, place: Place) -> None:
        nodes, t = [SqlTargets(await place.open()) for _ in range(4)], a_target()
        await asyncio.gather(
            *(
                node.change(audit("target.limit", t), lambda rule: replace(rule, at_once=rule.at_once + 1))
                for node in nodes
            )
        )
        assert {rule.target: rule.at_once for rule in await nodes[0].all()}[t] == 4
        assert len(await audits(place.opened[0], t)) == 4
