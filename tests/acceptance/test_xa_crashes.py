"""*XA* of the list of behaviours: the service or the coordinator is killed (SIGKILL) at a named moment. The outcome
is the same everywhere, and whoever asked is told the truth."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.acceptance.conftest import new_databases
from tests.support.acceptance import Client, Site, client_of, eventually, new_gid, service
from tests.support.acceptance_wire import answer_to_commit, told, wire_to
from tests.support.databases import Databases, database_of
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Aborted, OutcomeUnknown, Unavailable
from txcoord_client._pb import common_pb2 as c


@pytest.fixture(scope="module")
def mortal(
    pg18: PostgresServer, pg17: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A site whose coordinator is killed by the tests of this file, and started again."""
    databases = Databases()
    site = Site(tmp_path_factory.mktemp("mortal"), *new_databases(databases, pg18, pg17))
    try:
        site.prepare()
        yield site
    finally:
        site.stop()
        databases.drop_all()


async def all_or_nothing(site: Site, body: str, tx_id: str, committed: bool) -> None:
    """Once nothing is left prepared, it is in both databases or in none."""
    await eventually(lambda: not site.prepared(tx_id))
    assert site.counts(body) == ((1, 1) if committed else (0, 0))


# ---- the coordinator ----


@pytest.mark.timeout(120)
async def test_coordinator_killed_before_and_after_the_decision_and_mid_phase_two(mortal: Site) -> None:
    """One transaction that survives all of it; the SDK asks again each time, and is told COMMITTED."""
    gid = new_gid()
    mortal.coordinator.kill9()  # before anything is asked of it: each of the lives is to be asked
    deaths = asyncio.ensure_future(
        mortal.lives(
            "begin.before_write", "begin.after_write", "commit.before_write", "commit.after_write",
            "finish.before", "finish.after", "finish.after=kill@2",
        )
    )  # fmt: skip
    async with client_of(mortal, call_timeout=60) as client:
        async with client.coord.begin("pay", gid=gid, timeout=100) as g:
            await client.write_both(g, gid)
        assert g.outcome is not None
        assert (g.outcome.state, g.outcome.decided_by) == ("COMMITTED", "client")
        await deaths
        assert (await client.ended(gid)).state == "COMMITTED"
    await all_or_nothing(mortal, gid, g.tx_id, committed=True)


@pytest.mark.timeout(120)
async def test_coordinator_killed_on_the_way_to_an_abort(mortal: Site) -> None:
    gid = new_gid()
    async with client_of(mortal, call_timeout=60) as client:
        mortal.coordinator.kill9()  # before anything is asked of it: each of the lives is to be asked
        deaths = asyncio.ensure_future(
            mortal.lives("rollback.before_write", "rollback.after_write", "finish.before", "finish.after")
        )
        with pytest.raises(ZeroDivisionError):
            async with client.coord.begin("pay", gid=gid, timeout=100) as g:
                await client.write_both(g, gid)
                for branch in g._local:  # prepared already, so that phase two has something to do
                    await branch.prepare(g._until)
                raise ZeroDivisionError
        await deaths
        found = await client.ended(gid)
        assert (found.state, found.decided_by, found.reason) == ("ABORTED", "client", "APPLICATION_ERROR")
    await all_or_nothing(mortal, gid, g.tx_id, committed=False)


@pytest.mark.parametrize(
    ("moment", "state"), [("commit.before_write", "ABORTED"), ("commit.after_write", "COMMITTED")]
)
async def test_coordinator_stays_away_and_the_client_is_told_that_nobody_knows(
    mortal: Site, moment: str, state: str
) -> None:
    body = new_gid()
    mortal.restart(f"{moment}=kill")
    async with client_of(mortal) as client:
        with pytest.raises(OutcomeUnknown) as caught:
            async with client.coord.begin("pay", timeout=1.0) as g:
                await client.write_both(g, body)
        assert not caught.value.definite
        assert (caught.value.tx_id, caught.value.resources) == (g.tx_id, ("accounts", "ledger"))
        assert len(mortal.prepared(g.tx_id)) == 2, "what was prepared waits for the decision"
        await asyncio.to_thread(mortal.restart)
        settled = await client.coord.settle(caught.value)
        assert settled.committed is (state == "COMMITTED")
        assert (await client.ended(tx_id=g.tx_id)).state == state
    await all_or_nothing(mortal, body, g.tx_id, committed=state == "COMMITTED")


async def test_coordinator_unreachable_at_begin_and_the_work_never_starts(mortal: Site) -> None:
    mortal.coordinator.kill9()
    async with client_of(mortal, call_timeout=0.5) as client:
        with pytest.raises(Unavailable):
            async with client.coord.begin("pay"):
                pytest.fail("work without a coordinator")


@pytest.mark.timeout(120)
async def test_coordinator_killed_while_it_removes_an_orphan(mortal: Site) -> None:
    mortal.restart()
    async with wire_to(mortal.address) as wire:
        tx = wire.tx(seconds=0.1)
        orphan = tx.prepare(mortal.accounts, "1", tx.tx_id)
    await mortal.lives("orphan.before_fence", "orphan.after_fence", "finish.before", "finish.after")
    async with wire_to(mortal.address) as wire:
        tx.wire = wire
        await all_or_nothing(mortal, tx.tx_id, tx.tx_id, committed=False)
        assert await answer_to_commit(tx, orphan) == ("ABORTED", "scanner", "ORPHAN")


async def test_coordinator_killed_while_its_database_is_away(mortal: Site) -> None:
    """Decided, and one branch cannot be finished: it goes on in the next life."""
    mortal.restart()
    async with wire_to(mortal.address) as wire:
        tx = wire.tx(new_gid())
        await tx.begin()
        branches = [tx.prepare(mortal.accounts, "1", tx.gid), tx.prepare(mortal.ledger, "2", tx.gid)]
        with mortal.valves["ledger"].holding(tx.tx_id):
            assert told(await tx.commit(*branches, wait=c.WAIT_LEVEL_DECIDED))[0] == "COMMITTING"
            await asyncio.to_thread(mortal.restart)
            async with wire_to(mortal.address) as again:
                assert told((await again.get(gid=tx.gid)).outcome)[0] == "COMMITTING"
    async with wire_to(mortal.address) as wire:
        tx.wire = wire
        assert told(await tx.reached(c.WAIT_LEVEL_COMMITTED))[0] == "COMMITTED"
    await all_or_nothing(mortal, tx.gid, tx.tx_id, committed=True)


# ---- the service ----


@pytest.mark.parametrize("where", ["before_prepare", "after_prepare"])
async def test_service_killed_before_its_commit_is_aborted_at_the_deadline(
    site: Site, client: Client, where: str
) -> None:
    gid = new_gid()
    process = service(site, where, gid, "2.5")
    process.start(wait_s=0)
    assert await asyncio.to_thread(process.wait, 20) == -9
    tx_id = (await client.outcome(gid)).tx_id
    assert len(site.prepared(tx_id)) == (2 if where == "after_prepare" else 0)
    found = await client.ended(gid)
    assert (found.state, found.decided_by, found.reason) == ("ABORTED", "deadline", "DEADLINE")
    await all_or_nothing(site, gid, tx_id, committed=False)


async def test_service_killed_after_its_commit_is_finished_by_the_coordinator(
    site: Site, client: Client
) -> None:
    gid = new_gid()
    process = service(site, "nowhere", gid, "20")
    with site.valves["ledger"].holding("COMMIT PREPARED") as held:
        process.start(wait_s=0)
        await held.reached()
        process.kill9()
        tx_id = (await client.outcome(gid)).tx_id
        assert len(site.ledger.prepared(tx_id)) == 1
    assert (await client.ended(gid)).state == "COMMITTED"
    await all_or_nothing(site, gid, tx_id, committed=True)


async def test_service_without_a_gid_killed_after_prepare_leaves_an_orphan_that_goes(site: Site) -> None:
    before = set(site.prepared())
    process = service(site, "after_prepare", "", "1.5")
    process.start(wait_s=0)
    assert await asyncio.to_thread(process.wait, 20) == -9
    assert len(set(site.prepared()) - before) == 2
    await eventually(lambda: not set(site.prepared()) - before)


async def test_a_database_that_drops_the_connection_before_prepare_aborts(client: Client, site: Site) -> None:
    """One that dies as a whole is in `tests/faults`; one that stands still in `test_many.py`."""
    body = new_gid()
    with pytest.raises(Aborted) as caught:
        async with client.coord.begin("pay", gid=body) as g:
            await client.write_both(g, body)
            site.ledger.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE state = 'idle in transaction' AND datname = '{database_of(site.ledger.url)}'"
            )
    assert (caught.value.reason, caught.value.retriable) == ("CONNECTION_LOST", True)
    await all_or_nothing(site, body, g.tx_id, committed=False)
