"""Contract of the log: what each kind of change does, and when it is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.support.logs import (
    Held,
    LogContract,
    Place,
    S,
    aborted,
    active,
    amend,
    committing,
    decide,
    end,
    get,
    insert,
    lazily,
    operate,
    put,
    release,
    until_waiting,
    written,
    xa,
)
from txcoord.adapters.sql import mariadb_server as server
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.mariadb import MariaDBStore
from txcoord.adapters.sql.postgresql import PostgresStore
from txcoord.core.action import Action, Retry
from txcoord.core.model import (
    Audit,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    DecidedBy,
    Decision,
    HistoryEntry,
    Kind,
    TxState,
    Written,
)

ACTION = Action(
    "Reserve",
    name="a step",
    content_type="text/plain",
    first_operation="/try",
    commit_operation="/confirm",
    abort_operation="/cancel",
    run_first=True,
    forward=True,
    no_undo=True,
    after=("2", "1"),
    results_of=("2",),
    aborted_means_refused=True,
    headers={"x": "\u4e8c"},
    retry=Retry(1, 2, 1.5, 4, 5, 6, (7, 8)),
)
OK, CONFLICT, TOO_LATE = Written.OK, Written.CONFLICT, Written.TOO_LATE


class TestInsert(LogContract):
    async def test_everything_comes_back_as_it_was(self, log: SqlLog) -> None:
        now = await log.now_us()
        branches = (
            Branch("2", Kind.XA, BranchState.FINISHING, "accounts", "txc1.a.b.c.2", 3, now + 7, "DOWN: busy"),
            Branch(
                "1.1",
                Kind.TCC,
                BranchState.READY,
                "stock",
                payload=b"\x00\xff",
                result=b"r\x00",
                action=ACTION,
                result_type="text/plain",
                failures=2,
                since_us=now + 3,
            ),
            Branch("1.2", Kind.SAGA, resource="grpc://ship", action=Action("Pack")),
        )
        tx = committing(
            now,
            *branches,
            gid="order-1",
            one_phase_resource="accounts",
            labels={"b": "1", "a": "zwei 二"},
            headers={"traceparent": "00-1"},
            result=b"\x00bytes",
            reason="WHY",
        )
        assert await written(log, insert(tx)) == [OK]
        assert await get(log, tx.tx_id) == tx

    async def test_the_key_is_taken(self, log: SqlLog) -> None:
        tx = active(await log.now_us(), xa())
        assert await written(log, insert(tx), insert(replace(tx, name="other"))) == [OK, CONFLICT]
        assert await get(log, tx.tx_id) == tx

    async def test_one_gid_in_a_namespace(self, log: SqlLog) -> None:
        now = await log.now_us()
        first, second = active(now, gid="order-1"), active(now, gid="order-1")
        elsewhere = active(now, gid="order-1", namespace="bank")
        without = active(now), active(now)
        changes = [insert(t) for t in (first, second, elsewhere, *without)]
        assert await written(log, *changes) == [OK, CONFLICT, OK, OK, OK]
        assert await log.read_gid("shop", "order-1") == first
        assert await log.read_gid("bank", "order-1") == elsewhere
        assert await log.read_gid("bank", "order-2") is None
        assert second.tx_id not in await log.read([second.tx_id])

    async def test_one_gid_in_one_flush(self, log: SqlLog) -> None:
        now = await log.now_us()
        rivals = [active(now, xa(), gid="order-1") for _ in range(3)]
        results = await asyncio.gather(*(log.write(insert(t)) for t in rivals))
        assert sorted(r.written for r in results) == [CONFLICT, CONFLICT, OK]
        assert len(await log.read([t.tx_id for t in rivals])) == 1

    async def test_a_refused_row_leaves_no_branch_behind(self, log: SqlLog) -> None:
        now = await log.now_us()
        await put(log, active(now, gid="order-1"))
        loser = active(now, xa(), gid="order-1")
        entry = HistoryEntry(now, "x")
        assert await written(log, insert(loser, history=(entry,))) == [CONFLICT]
        winner = replace(loser, gid="", branches=())
        await put(log, winner)
        assert await get(log, winner.tx_id) == winner
        assert await log.history(winner.tx_id) == []

    async def test_the_statement_keeps_the_time_limit(self, log: SqlLog) -> None:
        now = await log.now_us()
        late, taken, early = active(now), active(now), active(now)
        await put(log, taken)
        results = [
            await log.write(insert(late, not_after_us=now)),
            await log.write(insert(taken, not_after_us=now)),
            await log.write(insert(early, not_after_us=now + 60 * S)),
        ]
        assert [r.written for r in results] == [TOO_LATE, TOO_LATE, OK]
        assert all(now < r.now_us <= now + 60 * S for r in results)
        assert set(await log.read([late.tx_id, early.tx_id])) == {early.tx_id}

    async def test_late_and_in_time_in_one_flush(self, log: SqlLog) -> None:
        now = await log.now_us()
        txs = [active(now, xa()) for _ in range(7)]
        results = await asyncio.gather(
            *(log.write(insert(t, not_after_us=now + (i % 2) * 60 * S)) for i, t in enumerate(txs))
        )
        assert [r.written for r in results] == [TOO_LATE if i % 2 == 0 else OK for i in range(7)]
        assert set(await log.read([t.tx_id for t in txs])) == {t.tx_id for t in txs[1::2]}


class TestAmend(LogContract):
    async def test_enlist_and_vote(self, log: SqlLog) -> None:
        tx = active(await log.now_us(), xa("1"))
        await put(log, tx)
        more = replace(tx, branches=(xa("1"), xa("2")))
        voted = replace(more, version=2, branches=(xa("1", BranchState.READY), xa("2")))
        changes = amend(tx, more, xa("2")), amend(replace(more, version=2), voted, voted.branches[0])
        assert await written(log, *changes) == [OK, OK]
        assert await get(log, tx.tx_id) == replace(voted, version=3)

    async def test_who_read_an_older_row_must_read_again(self, log: SqlLog) -> None:
        tx = active(await log.now_us())
        await put(log, tx)
        one, two = amend(tx, tx, xa("1")), amend(tx, tx, xa("2"))
        assert await written(log, one, two) == [OK, CONFLICT]
        assert [b.id for b in (await get(log, tx.tx_id)).branches] == ["1"]

    async def test_nothing_to_amend(self, log: SqlLog) -> None:
        tx = active(await log.now_us())
        assert await written(log, amend(tx, tx, xa())) == [CONFLICT]
        assert await log.read([tx.tx_id]) == {}

    async def test_the_first_decision_stands(self, log: SqlLog) -> None:
        tx = active(await log.now_us(), xa(state=BranchState.READY))
        await put(log, tx)
        commit, abort = decide(tx, Decision.COMMIT), decide(tx, Decision.ABORT)
        assert await written(log, commit, abort) == [OK, CONFLICT]
        # Not even by who knows the version.
        decided = await get(log, tx.tx_id)
        again = amend(decided, replace(abort.tx), forced=True)
        assert await written(log, again) == [CONFLICT]
        assert await get(log, tx.tx_id) == commit.tx

    async def test_one_decision_among_racers_in_one_flush(self, log: SqlLog, place: Place) -> None:
        other = await place.open()
        tx = active(await log.now_us(), xa(state=BranchState.READY))
        await put(log, tx)
        changes = [decide(tx, d) for d in (Decision.COMMIT, Decision.ABORT) for _ in range(8)]
        results = await asyncio.gather(*((log, other)[i % 2].write(c) for i, c in enumerate(changes)))
        assert sorted(r.written for r in results) == [CONFLICT] * 15 + [OK]
        winner = next(c for c, r in zip(changes, results, strict=True) if r.written is OK)
        assert await get(log, tx.tx_id) == winner.tx

    async def test_a_decision_keeps_its_time_limit(self, log: SqlLog) -> None:
        now = await log.now_us()
        tx = active(now, xa(state=BranchState.READY))
        await put(log, tx)
        commit = decide(tx, Decision.COMMIT, not_after_us=now)
        assert await written(log, commit) == [TOO_LATE]
        assert await get(log, tx.tx_id) == tx


class TestProgress(LogContract):
    async def test_the_end_record(self, log: SqlLog) -> None:
        tx = committing(await log.now_us(), xa("1", BranchState.FINISHING), xa("2", BranchState.FINISHING))
        await put(log, tx)
        change = end(tx)
        assert await written(log, change) == [OK]
        done = tuple(replace(b, state=BranchState.DONE) for b in tx.branches)
        assert await get(log, tx.tx_id) == replace(change.tx, branches=done)

    async def test_the_epoch_fences(self, log: SqlLog) -> None:
        tx = committing(await log.now_us())
        await put(log, tx)
        stale = replace(end(tx), expected_epoch=0)
        assert await written(log, stale) == [CONFLICT]
        assert await get(log, tx.tx_id) == tx

    async def test_it_never_touches_the_decision(self, log: SqlLog) -> None:
        tx = committing(await log.now_us())
        await put(log, tx)
        lie = replace(
            tx,
            decision=Decision.ABORT,
            decided_by=DecidedBy.OPERATOR,
            reason="?",
            version=9,
            result=b"?",
            deadline_us=1,
        )
        change = Change(ChangeKind.PROGRESS, lie, expected_epoch=tx.epoch)
        assert await written(log, change) == [OK]
        assert await get(log, tx.tx_id) == tx

    async def test_an_undecided_row_makes_no_progress(self, log: SqlLog) -> None:
        tx = active(await log.now_us())
        await put(log, tx)
        assert await written(log, Change(ChangeKind.PROGRESS, tx, expected_epoch=0)) == [CONFLICT]

    async def test_a_failed_attempt(self, log: SqlLog) -> None:
        now = await log.now_us()
        tx = committing(now)
        await put(log, tx)
        failed = replace(tx.branches[0], attempts=1, next_attempt_us=now + S, reason="DOWN")
        new = replace(tx, branches=(failed,))
        entry = HistoryEntry(now, "branch.failed", "1", "n1", "DOWN")
        change = Change(ChangeKind.PROGRESS, new, (failed,), expected_epoch=1, history=(entry,), forced=False)
        assert (await lazily(log, change)).written is OK
        assert await get(log, tx.tx_id) == new
        assert await log.history(tx.tx_id) == [entry]

    async def test_it_never_shortens_a_lease(self, log: SqlLog) -> None:
        tx = committing(await log.now_us())
        await put(log, tx)
        await log.renew("n1", [tx.tx_id], 60 * S)
        renewed = await get(log, tx.tx_id)
        assert renewed.lease_until_us > tx.lease_until_us
        assert await written(log, Change(ChangeKind.PROGRESS, tx, expected_epoch=1)) == [OK]
        assert await get(log, tx.tx_id) == renewed


class TestOperate(LogContract):
    async def test_it_takes_the_row_over_and_is_audited(self, log: SqlLog) -> None:
        tx = committing(await log.now_us())
        await put(log, tx)
        change = operate(tx)
        assert await written(log, change, end(tx)) == [OK, CONFLICT]
        assert await get(log, tx.tx_id) == change.tx
        assert await log.audits(tx.tx_id) == [change.audit]
        assert await log.history(tx.tx_id) == list(change.history)

    async def test_no_audit_without_the_change(self, log: SqlLog) -> None:
        tx = committing(await log.now_us())
        await put(log, tx)
        assert await written(log, replace(operate(tx), expected_epoch=7)) == [CONFLICT]
        assert await log.audits(tx.tx_id) == []
        assert await log.history(tx.tx_id) == []

    async def test_no_change_without_the_audit(self, log: SqlLog) -> None:
        tx = committing(await log.now_us())
        await put(log, tx)
        broken = replace(operate(tx), audit=Audit("ann", "why", None, 1))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="cannot store"):
            await log.write(broken)
        assert await get(log, tx.tx_id) == tx


class TestReleaseGid(LogContract):
    async def test_the_same_work_again(self, log: SqlLog) -> None:
        now = await log.now_us()
        old = aborted(now, gid="order-1")
        await put(log, old)
        new = active(now, gid="order-1")
        assert await written(log, insert(new), release(old), insert(new)) == [CONFLICT, OK, OK]
        assert await log.read_gid("shop", "order-1") == new
        assert await get(log, old.tx_id) == replace(old, gid="")

    async def test_release_and_begin_in_one_flush(self, log: SqlLog) -> None:
        now = await log.now_us()
        old = aborted(now, gid="order-1")
        await put(log, old)
        new = active(now, gid="order-1")
        results = await asyncio.gather(log.write(release(old)), log.write(insert(new)))
        assert [r.written for r in results] == [OK, OK]

    async def test_only_of_an_aborted_one(self, log: SqlLog) -> None:
        now = await log.now_us()
        open_, committed = active(now, gid="a"), committing(now, gid="b")
        await put(log, open_, committed)
        stale = aborted(now, gid="c")
        await put(log, stale)
        changes = release(open_), release(committed), release(stale, expected_version=7)
        assert await written(log, *changes) == [CONFLICT] * 3
        assert await log.read_gid("shop", "b") == committed


class TestGroupCommit(LogContract):
    async def test_what_arrives_during_a_flush_leaves_together(self, log: SqlLog) -> None:
        now = await log.now_us()
        held = Held(log)
        first = asyncio.create_task(log.write(insert(active(now))))
        await held.taken.wait()
        txs = [active(now, xa("1"), xa("2")) for _ in range(64)]
        others = [asyncio.create_task(log.write(insert(t))) for t in txs]
        await until_waiting(log, 64)
        before = log.forced_flushes
        held.let_go()
        results = await asyncio.gather(first, *others)
        assert {r.written for r in results} == {OK}
        assert log.forced_flushes - before <= 1 + 2
        assert len(await log.read([t.tx_id for t in txs])) == 64

    async def test_all_kinds_in_one_flush(self, log: SqlLog) -> None:
        now = await log.now_us()
        rows = {
            "amend": active(now),
            "commit": active(now, xa(state=BranchState.READY)),
            "end": committing(now),
            "operate": committing(now),
            "release": aborted(now, gid="g"),
        }
        await put(log, *rows.values())
        changes = [
            insert(active(now, xa(), gid="h")),
            amend(rows["amend"], rows["amend"], xa()),
            decide(rows["commit"], Decision.COMMIT),
            end(rows["end"]),
            operate(rows["operate"]),
            release(rows["release"]),
            amend(rows["end"], rows["end"]),  # refused: it is decided
            insert(rows["amend"]),  # refused: it is there
        ]
        held = Held(log)
        first = asyncio.create_task(log.write(insert(active(now))))
        await held.taken.wait()
        others = [asyncio.create_task(log.write(c)) for c in changes]
        await until_waiting(log, len(changes))
        before = sum(await log.flushes())
        held.let_go()
        await first
        results = await asyncio.gather(*others)
        assert [r.written for r in results] == [OK] * 6 + [CONFLICT] * 2
        assert sum(await log.flushes()) - before == 2

    async def test_changes_of_one_transaction_keep_their_order(self, log: SqlLog) -> None:
        now = await log.now_us()
        tx = active(now, xa(state=BranchState.READY))
        commit = decide(tx, Decision.COMMIT)
        results = await asyncio.gather(*(log.write(c) for c in (insert(tx), commit, end(commit.tx))))
        assert [r.written for r in results] == [OK] * 3
        assert (await get(log, tx.tx_id)).state is TxState.COMMITTED
        assert log.forced_flushes == 1

    @pytest.mark.parametrize("bad", [{"name": "nul \x00"}, {"version": 2**40}, {"reason": None}])
    async def test_one_bad_change_fails_alone(self, log: SqlLog, bad: dict[str, object]) -> None:
        now = await log.now_us()
        txs = [active(now, xa()) for _ in range(20)]
        changes = [insert(t) for t in txs]
        changes[13] = insert(replace(txs[13], **bad))  # type: ignore[arg-type]
        results = await asyncio.gather(*(log.write(c) for c in changes), return_exceptions=True)
        refused = results.pop(13)
        assert {getattr(r, "written", r) for r in results} == {OK}
        if not isinstance(refused, ValueError):  # SQLite has no such limits
            assert bad.keys() <= {"name", "version"}
            assert getattr(refused, "written", refused) is OK

    async def test_a_bad_lazy_change_is_dropped(self, log: SqlLog) -> None:
        tx = committing(await log.now_us())
        await put(log, tx)
        broken = replace(end(tx), tx=replace(tx, ended_us=2**70))
        heard: list[object] = []
        log.write_lazily(broken, heard.append)
        good = lazily(log, end(tx))
        assert (await good).written is OK
        assert heard == []


class TestLazy(LogContract):
    async def test_it_rides_on_a_forced_flush(self, place: Place) -> None:
        log = await place.open(tick_s=3600)
        now = await log.now_us()
        tx = committing(now)
        await put(log, tx)
        before = await log.flushes()
        ended = lazily(log, end(tx))
        assert (await log.write(insert(active(now)))).written is OK
        assert (await ended).written is OK
        assert await log.flushes() == (before[0] + 1, before[1])

    async def test_a_tick_writes_it_when_nothing_else_comes(self, log: SqlLog) -> None:
        tx = committing(await log.now_us())
        await put(log, tx)
        before = await log.flushes()
        assert (await lazily(log, end(tx))).written is OK
        assert await log.flushes() == (before[0], before[1] + 1)

    async def test_settle_writes_it_now(self, place: Place) -> None:
        log = await place.open(tick_s=3600)
        tx = committing(await log.now_us())
        await put(log, tx)
        log.write_lazily(end(tx))
        await log.settle()
        assert (await get(log, tx.tx_id)).ended

    async def test_close_writes_it(self, place: Place) -> None:
        log = await place.open(tick_s=3600)
        tx = committing(await log.now_us())
        await put(log, tx)
        log.write_lazily(end(tx))
        await log.close()
        again = await place.open()
        assert (await get(again, tx.tx_id)).ended

    async def test_not_synced_alone_and_synced_with_others(self, log: SqlLog) -> None:
        now = await log.now_us()
        tx, later = committing(now), committing(now)
        await put(log, tx, later)
        await lazily(log, end(tx))
        assert await _synchronous(log) in (
            "1",
            "on",
        )  # NORMAL; on PostgreSQL it is off for that transaction only
        ended = lazily(log, end(later))
        await put(log, active(now))
        assert (await ended).written is OK
        assert await _synchronous(log) in ("2", "on")  # FULL

    async def test_a_listener_that_raises_hurts_nobody(self, log: SqlLog) -> None:
        now = await log.now_us()
        tx = committing(now)
        await put(log, tx)

        def listener(_: object) -> None:
            raise RuntimeError("a bug elsewhere")

        log.write_lazily(end(tx), listener)
        await log.settle()
        assert await written(log, insert(active(now))) == [OK]


async def _synchronous(log: SqlLog) -> str:
    """What the flushing connection's commits wait for."""
    store: Any = log.store
    if isinstance(store, PostgresStore):
        return str(await store._flusher.fetchval("SHOW synchronous_commit"))  # type: ignore[union-attr]
    if isinstance(store, MariaDBStore):  # always, if the server is set so
        rows = await server.ask(await store._hot(), "SELECT @@innodb_flush_log_at_trx_commit")
        return {1: "on"}.get(rows[0][0], "off")
    row = await store._writer.run(lambda: store._writer.raw.execute("PRAGMA synchronous").fetchone())
    return str(row[0])
