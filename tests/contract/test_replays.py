"""Contract of ``ports.Replays``: jobs beside the log, on each kind of database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.support.logs import LogContract, Place, S, committing, new_id, put, written, xa
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.replays import SqlReplays
from txcoord.core.model import (
    Audit,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    HistoryEntry,
    Kind,
    Tx,
    Written,
)
from txcoord.core.replaying import AuditQuery, ItemState, JobState, Order, Replay, ReplayItem
from txcoord.ports import Query

LEASE = 10 * S
I = ItemState  # noqa: E741


def job(now_us: int, **more: Any) -> Replay:
    values: dict[str, Any] = {"order": Order("parked", rate_per_s=2.5, canary=(1, 5)), "started_us": now_us}
    return Replay(new_id(), "shop", actor="ann", reason="it is back", **{**values, **more})


class TestJobs(LogContract):
    @pytest.fixture
    def store(self, log: SqlLog) -> SqlReplays:
        return SqlReplays(log)

    async def test_it_is_written_once_with_its_audit_row(self, log: SqlLog, store: SqlReplays) -> None:
        now = await log.now_us()
        first = job(now, request_id="r1")
        assert await store.create(first) == first
        assert await store.create(replace(job(now), request_id="r1")) == first
        other = await store.create(job(now + 1))
        assert await store.get("shop", first.id) == first
        assert await store.get("elsewhere", first.id) is None
        assert await store.page("shop", "", 10) == [other, first]
        assert await store.page("shop", other.id, 10) == [first]
        rows = await store.audits(AuditQuery("shop", replay=first.id))
        assert [(r.audit.action, r.audit.actor, r.audit.reason) for r in rows] == [
            ("replay.start", "ann", "it is back")
        ]

    async def test_one_node_has_it_at_a_time(self, place: Place, log: SqlLog, store: SqlReplays) -> None:
        there = SqlReplays(await place.open())
        made = await store.create(job(await log.now_us()))
        claims = await asyncio.gather(store.claim("n1", LEASE, []), there.claim("n2", LEASE, []))
        taken = [r for found in claims for r in found]
        assert len(taken) == 1
        assert taken[0].epoch == 1
        mine = taken[0]
        assert await store.claim("n3", LEASE, []) == []
        assert await store.claim(mine.owner, LEASE, [mine.id]) == []
        # After its restart it goes on at once; what the one before it has in its hands is written no more.
        again = (await there.claim(mine.owner, LEASE, []))[0]
        assert again.epoch == 2
        assert await store.save(mine, LEASE, new=[ReplayItem(new_id(), "1")]) is None
        assert await store.items(made.id, ("", ""), 10) == []

    async def test_items_and_counts_are_written_with_it(self, log: SqlLog, store: SqlReplays) -> None:
        await store.create(job(await log.now_us()))
        mine = (await store.claim("n1", LEASE, []))[0]
        items = [ReplayItem(new_id(), b, gid="g") for b in ("1", "2", "3")]
        kept = await store.save(replace(mine, listed=True, after=("x", "3")), LEASE, new=items)
        assert kept is not None
        assert kept.counts == {I.WAITING: 3}
        assert kept.after == ("x", "3")
        said = replace(items[1], state=I.REFUSED, reason="NOT_PARKED", message="it is done now")
        kept = await store.save(kept, LEASE, [replace(items[0], state=I.TAKEN), said])
        assert kept is not None
        assert kept.counts == {I.WAITING: 1, I.TAKEN: 1, I.REFUSED: 1}
        assert await store.pick(mine.id, [I.REFUSED], 10) == [said]
        assert await store.items(mine.id, (items[0].tx_id, "1"), 1) == [said]
        done = await store.save(replace(kept, state=JobState.DONE), LEASE)
        assert done is not None
        assert done.ended_us
        assert await store.claim("n1", LEASE, []) == []

    async def test_cancelled_and_resumed(self, log: SqlLog, store: SqlReplays) -> None:
        now = await log.now_us()
        made = await store.create(job(now))
        mine = (await store.claim("n1", LEASE, []))[0]
        mine = await store.save(mine, LEASE, new=[ReplayItem(new_id(), "1", I.FAILED)])  # type: ignore[assignment]
        cancel = Audit("bob", "wrong target", "replay.cancel", now + 1)
        cancelled = await store.turn("shop", made.id, JobState.CANCELLED, cancel, 0.0)
        assert cancelled is not None
        assert cancelled.state is JobState.CANCELLED
        assert await store.save(mine, LEASE) is None
        assert await store.claim("n1", LEASE, []) == []
        again = Audit("bob", "mended", "replay.resume", now + 2)
        resumed = await store.turn("shop", made.id, JobState.RUNNING, again, 9.0)
        assert resumed is not None
        assert (resumed.state, resumed.order.rate_per_s) == (JobState.RUNNING, 9.0)
        assert (resumed.base.taken, resumed.base.failed) == (1, 1)
        assert [r.id for r in await store.claim("n2", LEASE, [])] == [made.id]
        assert await store.turn("elsewhere", made.id, JobState.CANCELLED, cancel, 0.0) is None
        rows = await store.audits(AuditQuery("shop", replay=made.id))
        assert [r.audit.action for r in rows] == ["replay.resume", "replay.cancel", "replay.start"]

    async def test_its_orders_are_written_only_while_it_runs(self, log: SqlLog, store: SqlReplays) -> None:
        now = await log.now_us()
        made = await store.create(job(now))
        rows = [committing(now, xa()) for _ in range(4)]
        await put(log, *rows)

        def order(row: Tx, epoch: int) -> Change:
            who = Audit("ann", "it is back", "retry", now, replay=made.id)
            taken = replace(row, epoch=row.epoch + 10)
            return Change(
                ChangeKind.OPERATE, taken, expected_epoch=row.epoch, audit=who, job=(made.id, epoch)
            )

        mine = (await store.claim("n1", LEASE, []))[0]
        # Beside one of an earlier run, and what nobody has to do with a job.
        plain = replace(order(rows[2], 0), job=None, audit=None)
        many = order(rows[0], mine.epoch), order(rows[1], mine.epoch - 1), plain
        assert await written(log, *many) == [Written.OK, Written.CONFLICT, Written.OK]
        cancel = Audit("bob", "wrong target", "replay.cancel", now + 1)
        await store.turn("shop", made.id, JobState.CANCELLED, cancel, 0.0)
        cancelled = await store.get("shop", made.id)
        assert cancelled is not None
        late = order(rows[1], mine.epoch), order(rows[3], cancelled.epoch)
        assert await written(log, *late) == [Written.CONFLICT] * 2
        assert [len(await log.audits(row.tx_id)) for row in rows] == [1, 0, 0, 0]

    async def test_what_is_parked(self, log: SqlLog, store: SqlReplays) -> None:
        now = await log.now_us()

        def parked(kind: Kind, target: str, reason: str, **more: Any) -> Branch:
            return Branch("2", kind, BranchState.PARKED, target, reason=reason, **more)

        one = committing(now, xa(), parked(Kind.TCC, "a", "REFUSED_IN_PHASE_TWO: GONE"), gid="one")
        two = committing(now, xa(), parked(Kind.TCC, "b", "RETRIES_SPENT: after 2 attempts"))
        other = replace(committing(now, parked(Kind.TCC, "a", "X")), namespace="elsewhere")
        await put(log, one, two, other, committing(now))
        entries = (
            HistoryEntry(now - 5, "branch.parked", "2"),
            HistoryEntry(now - 4, "operator.retry", "2"),
            HistoryEntry(now - 3, "branch.parked", "2"),
        )
        note = Change(ChangeKind.PROGRESS, one, (), one.epoch, one.epoch, history=entries)
        assert await written(log, note) == [Written.OK]

        async def found(since_us: int = 0, **query: Any) -> list[Tx]:
            some = await store.parked(Query("shop", **query), since_us, ("", ""), 10)
            return [next(t for t in (one, two, other) if t.tx_id == p.tx_id) for p in some]

        assert await found() == [one, two]
        assert await found(resource="a") == [one]
        assert await found(kind=Kind.XA) == []
        assert await found(gid="one") == await found(gid=one.tx_id) == [one]
        assert await found(reason="RETRIES_SPENT") == [two]
        assert await found(reason="REFUSED_IN_PHASE_TWO: GONE") == [one]
        assert await found(since_us=now - 3) == [one]
        assert await found(since_us=now) == []
        # What an operator has parked stays so, until it is parked by itself again.
        for seen, *more in (
            ([one], HistoryEntry(now - 4, "branch.parked", "2"), HistoryEntry(now - 2, "operator.park", "2")),
            ([one, two], HistoryEntry(now - 1, "branch.parked", "2")),
        ):
            assert await written(log, replace(note, tx=two, history=tuple(more))) == [Written.OK]
            some = await store.parked(Query("shop"), 0, ("", ""), 10, by_hand=False)
            assert [p.tx_id for p in some] == [t.tx_id for t in seen]
        first = (await store.parked(Query("shop"), 0, ("", ""), 1))[0]
        assert (first.gid, first.parked_us, first.again) == ("one", now - 3, True)
        rest = await store.parked(Query("shop"), 0, (first.tx_id, first.branch.id), 10)
        assert [(p.tx_id, p.again) for p in rest] == [(two.tx_id, False)]
