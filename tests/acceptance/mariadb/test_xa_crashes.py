"""*XA* of the list of behaviours where the second database is MariaDB or MySQL: service, coordinator or database is
killed at a named moment."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import INSERT, Client, Site, client_of, eventually, new_gid, service
from tests.support.acceptance_mariadb import all_or_nothing, holds, maria
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import OutcomeUnknown, _finish, _keeping

# ---- the service is killed ----


@pytest.mark.parametrize("where", ["before_prepare", "after_prepare"])
async def test_service_killed_before_its_commit_is_aborted_at_the_deadline(
    site: Site, client: Client, where: str
) -> None:
    gid = new_gid()
    process = service(site, where, gid, "2.5")
    process.start(wait_s=0)
    assert await asyncio.to_thread(process.wait, 20) == -9
    tx_id = (await client.outcome(gid)).tx_id
    found = await client.ended(gid)
    assert (found.state, found.decided_by, found.reason) == ("ABORTED", "deadline", "DEADLINE")
    await all_or_nothing(site, gid, tx_id, committed=False)


async def test_service_without_a_gid_killed_after_prepare_leaves_an_orphan_that_goes(site: Site) -> None:
    before = set(site.prepared())
    process = service(site, "after_prepare", "", "1.5")
    process.start(wait_s=0)
    assert await asyncio.to_thread(process.wait, 20) == -9
    await eventually(lambda: not set(site.prepared()) - before, within=40)
    assert maria(site).limbo() == 0


async def test_service_killed_after_the_decision_is_finished_by_the_coordinator(
    site: Site, client: Client
) -> None:
    """Its session has gone with it: whoever comes next finishes the branch, with proof."""
    gid = new_gid()
    process = service(site, "after_decision", gid, "20")
    process.start(wait_s=0)
    assert await asyncio.to_thread(process.wait, 20) == -9
    tx_id = (await client.outcome(gid)).tx_id
    assert (await client.ended(gid)).state == "COMMITTED"
    await all_or_nothing(site, gid, tx_id, committed=True)


async def test_a_service_that_stands_still_loses_its_session_and_wakes_to_the_truth(
    site: Site, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator takes the branch over after its patience; the late session changes nothing."""
    finished = _keeping._finished
    body = new_gid()
    woken = asyncio.Event()

    async def late(*arguments: Any) -> Any:
        if holds(site):
            await eventually(lambda: site.counts(body)[1] == 1, within=30)
        woken.set()
        return await finished(*arguments)

    monkeypatch.setattr(_keeping, "_finished", late)
    async with client.coord.begin("pay", timeout=60) as g:
        await client.write_both(g, body)
    assert woken.is_set() is holds(site)
    assert g.outcome is not None
    assert g.outcome.state in ("COMMITTING", "COMMITTED")
    await all_or_nothing(site, body, g.tx_id, committed=True)
    # Its pool has a good connection again.
    async with client.coord.begin("pay") as g:
        await client.write_both(g, body)
    assert site.counts(body) == (2, 2)


# ---- the coordinator is killed ----


@pytest.mark.timeout(180)
async def test_coordinator_killed_before_and_after_the_decision_and_mid_phase_two(mortal: Site) -> None:
    """One transaction that survives all of it; the SDK asks again each time, and is told COMMITTED."""
    gid = new_gid()
    moments = [
        "begin.before_write",
        "begin.after_write",
        "commit.before_write",
        "commit.after_write",
        "finish.before",
    ]
    mortal.coordinator.kill9()  # before anything is asked of it: each of the lives is to be asked
    deaths = asyncio.ensure_future(mortal.lives(*moments))
    async with client_of(mortal, call_timeout=60) as client:
        async with client.coord.begin("pay", gid=gid, timeout=100) as g:
            await client.write_both(g, gid)
        assert g.outcome is not None
        assert g.outcome.state in ("COMMITTING", "COMMITTED")
        await deaths
        assert (await client.ended(gid)).state == "COMMITTED"
    await all_or_nothing(mortal, gid, g.tx_id, committed=True)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("moment", "state"), [("commit.before_write", "ABORTED"), ("commit.after_write", "COMMITTED")]
)
async def test_coordinator_stays_away_and_the_session_is_kept_until_it_is_back(
    mortal: Site, monkeypatch: pytest.MonkeyPatch, moment: str, state: str
) -> None:
    """The client is told that nobody knows; its pool never sees the prepared connection; and once the decision is
    known the very session that prepared finishes."""
    body = new_gid()
    mortal.restart(f"{moment}=kill")
    # On a busy machine the session hears of the decision late: it has all the time that it needs.
    monkeypatch.setitem(mortal.coordinator.env, "TXCOORD_RECOVERY__HOLD", "30s")
    async with client_of(mortal) as client:
        with pytest.raises(OutcomeUnknown) as caught:
            async with client.coord.begin("pay", timeout=1.0) as g:
                await client.write_both(g, body)
        assert caught.value.resources == ("accounts", "ledger")
        assert len(mortal.prepared(g.tx_id)) == 2, "what was prepared waits for the decision"
        pool: Any = client.ledger.pool
        assert (pool.checkedout(), pool.checkedin()) == ((1, 0) if holds(mortal) else (0, 1))
        await asyncio.to_thread(mortal.restart)
        settled = await client.coord.settle(caught.value)
        assert settled.committed is (state == "COMMITTED")
        assert (await client.ended(tx_id=g.tx_id)).state == state
        await all_or_nothing(mortal, body, g.tx_id, committed=state == "COMMITTED")
        await eventually(lambda: pool.checkedout() == 0)
        if holds(mortal):
            [branch] = [b for b in g._local if b.resource == "ledger"]
            async with client.ledger.connect() as same:
                found = (await same.execute(text("SELECT CONNECTION_ID()"))).scalar()
            assert found == branch.xid.connection_id, "no session was ended"
        # Every connection of the pool is good.
        async with client.coord.begin("pay") as g:
            await client.write_both(g, f"{body}-2")
        assert mortal.counts(f"{body}-2") == (1, 1)


@pytest.mark.timeout(120)
async def test_a_callers_session_is_free_while_its_branch_waits(mortal: Site) -> None:
    body = new_gid()
    mortal.restart("commit.after_write=kill")
    async with client_of(mortal) as client, AsyncSession(client.ledger) as session:
        with pytest.raises(OutcomeUnknown):
            async with client.coord.begin("pay", timeout=1.0) as g:
                await client.write(g, client.accounts, body)
                async with g.xa(session) as db:
                    await db.execute(text(INSERT), {"body": body})
        # It is another connection: what is prepared is not seen, and not touched.
        count = await session.execute(text("SELECT count(*) FROM note WHERE body = :b"), {"b": body})
        assert count.scalar() == 0
        await session.rollback()
        assert len(mortal.ledger.prepared(g.tx_id)) == 1
        await asyncio.to_thread(mortal.restart)
        await all_or_nothing(mortal, body, g.tx_id, committed=True)


# ---- the database dies ----


@pytest.mark.timeout(120)
async def test_the_server_dies_with_what_it_has_prepared_and_all_is_finished(
    pg18: PostgresServer,
    mariadb_server: Callable[..., MariaDBServer],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    databases = Databases()
    server = mariadb_server()
    site = site_on(tmp_path_factory.mktemp("dies"), pg18, server, databases)
    site.restart()
    ask = _finish._ask_commit

    async def crash(tx: Any, branches: Any) -> None:
        server.kill9()
        starting = asyncio.ensure_future(asyncio.to_thread(server.start))
        await ask(tx, branches)
        await starting

    monkeypatch.setattr(_finish, "_ask_commit", crash)
    try:
        body = new_gid()
        async with client_of(site) as client:
            async with client.coord.begin("pay", timeout=60) as g:
                await client.write_both(g, body)
            assert g.outcome is not None
            assert g.outcome.state in ("COMMITTING", "COMMITTED")
        await all_or_nothing(site, body, g.tx_id, committed=True)
    finally:
        site.stop()
