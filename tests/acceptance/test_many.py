"""Many at once: nobody blocks anybody, pools never deadlock, a caller that goes away leaves nothing half done,
and what deadlock or serialization undid is tried again."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.acceptance.conftest import NewSite
from tests.support.acceptance import INSERT, Client, Site, client_of, eventually, new_gid
from tests.support.acceptance_valve import Valve
from tests.support.acceptance_wire import Wire, log_held, round_trips
from txcoord.testing.postgres import PostgresServer
from txcoord_client import (
    Aborted,
    AlreadyAborted,
    Coordinator,
    InProgress,
    Transaction,
)


@contextmanager
def standing_still(server: PostgresServer) -> Iterator[None]:
    """All of its processes are stopped: it neither answers nor closes a connection."""
    pids = [server.pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == server.pid:
                pids.append(int(entry.name))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def idle(client: Client) -> bool:
    """Have all connections gone back to their pools?"""
    return all(engine.pool.checkedout() == 0 for engine in client.engines.values())  # type: ignore[attr-defined]


# ---- nobody blocks anybody ----


async def test_one_is_stuck_and_a_thousand_others_commit_meanwhile(
    pg18: PostgresServer,
    pg17: PostgresServer,
    pg_server: Callable[..., PostgresServer],
    new_site: NewSite,
) -> None:
    stopped = pg_server()
    site = new_site(servers=(pg18, pg17, stopped))
    async with client_of(site) as client:
        body = new_gid()
        with site.valves["third"].holding("COMMIT PREPARED") as held:
            async with client.coord.begin("stuck", wait="decided") as stuck:
                await client.write(stuck, client.accounts, body)
                await client.write(stuck, client.engines["third"], body)
            await held.reached()
            stop = standing_still(stopped)
            stop.__enter__()
        begun = time.monotonic()

        async def one() -> None:
            async with client.coord.begin("other") as g:
                await client.write_both(g, f"{body}-other")
            assert g.outcome is not None
            assert g.outcome.state == "COMMITTED"

        try:
            for _ in range(5):
                await asyncio.gather(*(one() for _ in range(200)))
            print(f"1,000 in {time.monotonic() - begun:.1f} s beside a stuck one")
            assert [db.count(f"{body}-other") for db in site.databases[:2]] == [1000, 1000]
            assert (await client.outcome(tx_id=stuck.tx_id)).state == "COMMITTING"
            assert site.accounts.count(body) == 1
        finally:
            stop.__exit__(None, None, None)
        assert (await client.ended(tx_id=stuck.tx_id)).state == "COMMITTED"
        assert site.databases[2].count(body) == 1


async def test_256_callers_over_two_default_pools_in_opposite_orders(site: Site) -> None:
    engines = {db.name: create_async_engine(db.url) for db in site.databases}
    body = new_gid()
    async with Coordinator(site.address, resources=engines) as coord:

        async def one(number: int) -> str:
            order = list(engines.values())
            if number % 2:
                order.reverse()
            async with coord.begin("pay") as g:
                for engine in order:
                    async with g.xa(engine) as db:
                        await db.execute(text(INSERT), {"body": body})
                        await asyncio.sleep(0.001)
            assert g.outcome is not None
            return g.outcome.state

        assert await asyncio.gather(*(one(number) for number in range(256))) == ["COMMITTED"] * 256
    assert site.counts(body) == (256, 256)
    for engine in engines.values():
        await engine.dispose()


async def test_later_blocks_on_an_engine_take_no_second_connection(site: Site, client: Client) -> None:
    """More callers than the pool has connections, each with two blocks on it: they go on with the one they have."""
    body = new_gid()

    async def one() -> None:
        async with client.coord.begin("pay") as g:
            await client.write(g, client.accounts, body)
            await asyncio.sleep(0)
            await client.write(g, client.accounts, body)
            await client.write(g, client.ledger, body)

    await asyncio.gather(*(one() for _ in range(60)))
    assert site.counts(body) == (120, 60)
    await eventually(lambda: idle(client))


# ---- a caller that goes away ----


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel it: it goes at once."""
    task.cancel()
    begun = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 5


async def test_cancelled_at_work_aborts(client: Client, site: Site) -> None:
    gid = new_gid()
    reached = asyncio.Event()

    async def work() -> None:
        async with client.coord.begin("pay", gid=gid) as g:
            await client.write_both(g, gid)
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await reached.wait()
    await cancelled(task)
    found = await client.ended(gid)
    assert (found.state, found.decided_by, site.counts(gid)) == ("ABORTED", "client", (0, 0))
    await eventually(lambda: idle(client))


async def test_cancelled_while_it_waits_for_a_lock_aborts(client: Client, site: Site) -> None:
    gid = new_gid()
    site.accounts.sql("CREATE TABLE IF NOT EXISTS seat (id int PRIMARY KEY)")
    waiting = asyncio.Event()

    async def work() -> None:
        async with client.coord.begin("pay", gid=gid) as g, g.xa(client.accounts) as db:
            waiting.set()
            await db.execute(text("LOCK TABLE seat"))

    async with client.engines["accounts"].connect() as other, other.begin():
        await other.execute(text("LOCK TABLE seat"))
        task = asyncio.ensure_future(work())
        await waiting.wait()
        await eventually(
            lambda: (
                site.accounts.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                != "0"
            )
        )
        await cancelled(task)
    assert (await client.ended(gid)).state == "ABORTED"
    await eventually(lambda: idle(client))
    async with client.engines["accounts"].connect() as again:
        assert (await again.execute(text("SELECT 1"))).scalar() == 1


@pytest.mark.parametrize("stage", ["BEGIN; SAVEPOINT", "PREPARE TRANSACTION", "COMMIT PREPARED"])
async def test_cancelled_at_each_stage_ends_one_way(site: Site, stage: str) -> None:
    """While the branch opens it is an abort; once the block was left, the commit goes on without its caller."""
    gid = new_gid()
    valve = Valve(site.ledger.url)
    commit = stage == "COMMIT PREPARED"
    where = site.valves["ledger"] if commit else valve
    try:
        async with client_of(site, urls={"ledger": valve.url}) as client:

            async def work() -> None:
                async with client.coord.begin("pay", gid=gid) as g:
                    await client.write(g, client.accounts, gid)
                    async with g.xa(client.ledger) as db:
                        await db.execute(text(INSERT), {"body": gid})

            # The driver's own first statements and the identity check shall not be what is held.
            async with client.coord.begin("warm up") as g, g.xa(client.ledger) as db:
                await db.execute(text("SELECT 1"))
            with where.holding(stage) as held:
                task = asyncio.ensure_future(work())
                await held.reached()
                await cancelled(task)
            found = await client.ended(gid)
            left = stage != "BEGIN; SAVEPOINT"
            assert (found.state, site.counts(gid)) == (("COMMITTED", (1, 1)) if left else ("ABORTED", (0, 0)))
            await eventually(lambda: idle(client))
            assert not site.prepared(found.tx_id)
    finally:
        valve.close()


async def test_cancelled_at_begin_leaves_no_gid_taken(client: Client, wire: Wire, site: Site) -> None:
    """The coordinator begins it all the same: its caller, gone, must not keep the name until the deadline."""
    gid = new_gid()
    async with client.coord.begin("warm up"):
        pass
    with log_held(site):
        task = asyncio.ensure_future(client.coord.begin("pay", gid=gid, timeout=25).__aenter__())
        await round_trips(wire)
        await cancelled(task)
    found = await client.ended(gid)
    assert (found.state, found.decided_by) == ("ABORTED", "client")


async def test_close_lets_the_ends_finish(site: Site) -> None:
    gid = new_gid()
    async with client_of(site) as client:

        async def work() -> None:
            async with client.coord.begin("pay", gid=gid) as g:
                await client.write_both(g, gid)

        with site.valves["ledger"].holding("COMMIT PREPARED") as held:
            task = asyncio.ensure_future(work())
            await held.reached()
            await cancelled(task)
        await client.coord.close()
    await eventually(lambda: site.counts(gid) == (1, 1))


# ---- run ----


async def test_run_is_done_once_and_answers_the_same_again(client: Client, site: Site) -> None:
    gid = new_gid()
    calls: list[str] = []

    async def pay(g: Transaction) -> dict[str, Any]:
        calls.append(g.tx_id)
        await client.write_both(g, gid)
        return {"seat": "12A", "calls": len(calls)}

    first = await client.coord.run(pay, gid=gid)
    again = [await client.coord.run(pay, gid=gid) for _ in range(2)]
    assert first == {"seat": "12A", "calls": 1}
    assert again == [first, first]
    async with client_of(site) as other:
        assert await other.coord.run(pay, gid=gid) == first
    assert (len(calls), site.counts(gid)) == (1, (1, 1))


async def test_run_at_the_same_time_is_done_once(client: Client, site: Site) -> None:
    gid = new_gid()

    async def pay(g: Transaction) -> str:
        await client.write_both(g, gid)
        return "paid"

    ended = await asyncio.gather(*(client.coord.run(pay, gid=gid) for _ in range(8)), return_exceptions=True)
    assert set(map(str, filter(lambda e: not isinstance(e, InProgress), ended))) == {"paid"}, ended
    assert site.counts(gid) == (1, 1)


async def test_run_tries_a_serialization_failure_again(site: Site) -> None:
    site.accounts.sql("CREATE TABLE IF NOT EXISTS counter (n int)")
    site.accounts.sql("TRUNCATE counter; INSERT INTO counter VALUES (0)")
    engine = create_async_engine(site.accounts.url, isolation_level="SERIALIZABLE", pool_size=20)
    runs: list[int] = []
    async with (
        client_of(site) as client,
        Coordinator(site.address, resources={"accounts": engine, "ledger": client.ledger}) as coord,
    ):
        body = new_gid()

        async def count(number: int) -> None:
            async def add(g: Transaction) -> None:
                runs.append(number)
                async with g.xa(engine) as db:
                    n = (await db.execute(text("SELECT n FROM counter"))).scalar()
                    await asyncio.sleep(0.01)
                    await db.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})
                await client.write(g, client.ledger, body)

            await coord.run(add, gid=f"{body}-{number}" if number % 2 else "", attempts=30)

        await asyncio.gather(*(count(number) for number in range(6)))
    await engine.dispose()
    assert (site.accounts.sql("SELECT n FROM counter"), site.ledger.count(body)) == ("6", 6)
    assert len(runs) > 6, "nothing conflicted"


async def test_run_tries_a_deadlock_again(client: Client, site: Site) -> None:
    site.accounts.sql("CREATE TABLE IF NOT EXISTS pair (id int PRIMARY KEY, n int)")
    site.accounts.sql("TRUNCATE pair; INSERT INTO pair VALUES (1, 0), (2, 0)")
    both = asyncio.Barrier(2)
    runs: list[str] = []

    async def change(first: int, second: int) -> None:
        async def work(g: Transaction) -> None:
            runs.append(g.tx_id)
            async with g.xa(client.accounts) as db:
                await db.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
                await db.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": first})
                if len(runs) <= 2:
                    await both.wait()
                await db.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": second})

        await client.coord.run(work, gid=new_gid())

    await asyncio.gather(change(1, 2), change(2, 1))
    assert site.accounts.sql("SELECT n FROM pair ORDER BY id") == "2\n2"
    assert len(runs) == 3
    assert len(set(runs)) == 3, "each try is a transaction of its own"


class SoldOut(Exception):
    """A business no."""


async def test_run_does_not_try_a_business_no_again(client: Client, site: Site) -> None:
    gid = new_gid()
    calls: list[int] = []

    async def pay(g: Transaction) -> str:
        calls.append(1)
        await client.write_both(g, gid)
        if len(calls) < 2:
            raise SoldOut
        return "paid"

    with pytest.raises(SoldOut):
        await client.coord.run(pay, gid=gid)
    with pytest.raises(AlreadyAborted) as caught:
        await client.coord.run(pay, gid=gid)
    assert (caught.value.reason, caught.value.retriable, len(calls)) == ("APPLICATION_ERROR", False, 1)
    assert await client.coord.run(pay, gid=gid, again=True) == "paid"
    assert (len(calls), site.counts(gid)) == (2, (1, 1))


async def test_run_gives_up_after_its_attempts(client: Client, site: Site) -> None:
    gid = new_gid()
    calls: list[int] = []

    async def slow(g: Transaction) -> None:
        calls.append(1)
        await client.write_both(g, gid)
        await client.ended(gid)  # its deadline aborts it

    with pytest.raises(Aborted) as caught:
        await client.coord.run(slow, gid=gid, timeout=0.4, attempts=2)
    assert (caught.value.reason, caught.value.retriable, len(calls)) == ("DEADLINE", True, 2)
    assert site.counts(gid) == (0, 0)


async def test_run_inside_a_transaction_is_a_part_of_it(client: Client, site: Site) -> None:
    body = new_gid()

    async def part() -> str:
        await client.write(client.coord.current, client.ledger, body)
        return "part"

    with pytest.raises(SoldOut):
        async with client.coord.begin("whole") as g:
            await client.write(g, client.accounts, body)
            assert await client.coord.run(part) == "part"
            raise SoldOut
    assert site.counts(body) == (0, 0)
