"""*XA* of the list of behaviours where the second database is MariaDB, whose own session finishes what it has
prepared, or MySQL, where the coordinator does."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.acceptance import INSERT, Client, Site, eventually, new_gid, service
from tests.support.acceptance_mariadb import all_or_nothing, maria
from txcoord.testing.processes import free_port
from txcoord_client import Aborted, Heuristic, NotIdle, _finish
from txcoord_client.sync import Coordinator as SyncCoordinator

# ---- nobody dies ----


async def test_postgresql_and_the_other_commit_together(client: Client, site: Site) -> None:
    body = new_gid()
    kills = maria(site).status("Com_kill")
    async with client.coord.begin("pay") as g:
        await client.write_both(g, body)
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert (site.counts(body), site.prepared(g.tx_id)) == ((1, 1), [])
    assert maria(site).sql(f"SELECT op, state FROM txcoord_marker WHERE tx_id = X'{g.tx_id}'") == "xa|1"
    assert maria(site).status("Com_kill") == kills, "its own session finished it"


async def test_an_exception_aborts_both(client: Client, site: Site) -> None:
    body = new_gid()
    with pytest.raises(ZeroDivisionError):
        async with client.coord.begin("pay") as g:
            await client.write_both(g, body)
            raise ZeroDivisionError
    await all_or_nothing(site, body, g.tx_id, committed=False)
    assert client.ledger.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_branch_that_says_no_aborts_both(client: Client, site: Site) -> None:
    """The other one is prepared already, and rolled back by its own session."""
    body = new_gid()
    with pytest.raises(Aborted) as caught:
        async with client.coord.begin("pay", gid=body) as g:
            await client.write_both(g, body)
            site.accounts.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            )
    assert caught.value.reason == "CONNECTION_LOST"
    await all_or_nothing(site, body, g.tx_id, committed=False)
    assert (await client.ended(body)).state == "ABORTED"


async def test_a_single_branch_is_committed_in_one_phase(client: Client, site: Site) -> None:
    gid = new_gid()
    prepares = maria(site).status("Com_xa_prepare")
    async with client.coord.begin("one", gid=gid, resources=["ledger"]) as g:
        await client.write(g, client.ledger, gid)
    assert site.counts(gid) == (0, 1)
    assert maria(site).status("Com_xa_prepare") == prepares
    assert (
        maria(site).sql(f"SELECT branch, op, state FROM txcoord_marker WHERE tx_id = X'{g.tx_id}'")
        == "0|one|1"
    )
    assert (await client.ended(gid)).decided_by == "database"


async def test_a_branch_that_was_declared_to_read_has_no_part_in_it(client: Client, site: Site) -> None:
    body = new_gid()
    async with client.coord.begin("pay") as g:
        await client.write(g, client.accounts, body)
        async with g.xa(client.ledger, read_only=True) as db:
            await db.execute(text("SELECT count(*) FROM note"))
    assert g.outcome is not None
    assert (g.outcome.state, site.counts(body)) == ("COMMITTED", (1, 0))


async def test_two_branches_in_one_database(client: Client, site: Site) -> None:
    body = new_gid()
    async with client.ledger.connect() as own, client.coord.begin("twice") as g:
        await client.write(g, client.ledger, body)
        async with g.xa(own) as db:
            await db.execute(text(INSERT), {"body": body})
        with pytest.raises(NotIdle):
            async with client.ledger.connect() as busy:
                await busy.execute(text("SELECT 1 FROM note"))
                async with g.xa(busy):
                    pass
    assert (site.counts(body), site.prepared(g.tx_id)) == ((0, 2), [])


async def test_a_callers_session(client: Client, site: Site) -> None:
    body = new_gid()
    async with AsyncSession(client.ledger) as session:
        async with client.coord.begin("pay") as g:
            await client.write(g, client.accounts, body)
            async with g.xa(session) as db:
                await db.execute(text(INSERT), {"body": body})
        count = await session.execute(text("SELECT count(*) FROM note WHERE body = :b"), {"b": body})
        assert count.scalar() == 1
    assert (site.counts(body), site.prepared(g.tx_id)) == ((1, 1), [])


def test_threads(site: Site) -> None:
    accounts = create_engine(site.accounts.url.replace("+asyncpg", "+psycopg"))
    ledger = create_engine(site.ledger.url.replace("+asyncmy", "+pymysql"))
    coord = SyncCoordinator(site.address, resources={"accounts": accounts, "ledger": ledger})
    body, other = new_gid(), new_gid()
    with coord.begin("pay") as g:
        for engine in (accounts, ledger):
            with g.xa(engine) as db:
                db.execute(text(INSERT), {"body": body})
    assert (site.counts(body), site.prepared(g.tx_id)) == ((1, 1), [])
    with pytest.raises(ZeroDivisionError), coord.begin("pay") as g:
        for engine in (accounts, ledger):
            with g.xa(engine) as db:
                db.execute(text(INSERT), {"body": other})
        raise ZeroDivisionError
    assert (site.counts(other), site.prepared(g.tx_id)) == ((0, 0), [])
    coord.close()
    accounts.dispose()
    ledger.dispose()


async def test_what_others_have_prepared_is_never_touched(client: Client, site: Site) -> None:
    ledger = maria(site)
    body = new_gid()
    foreign = [
        f"'{body}-foreign', 'b', 7",
        f"'{body}-foreign', 'c', 1954046769",  # with the format id of txcoord
        f"'txc1.vvvvvvvvvv.00000000.{'0' * 32}', '1@1', 1954046769",  # of a txcoord that nobody knows here
    ]
    connection = ledger.server.connect(ledger.url.rsplit("/", 1)[1])
    for name in foreign:
        with connection.cursor() as cursor:
            for statement in (
                f"XA START {name}",
                f"INSERT INTO note VALUES ('{body}')",
                f"XA END {name}",
                f"XA PREPARE {name}",
            ):
                cursor.execute(statement)
        connection.close()
        connection = ledger.server.connect(ledger.url.rsplit("/", 1)[1])
    connection.close()
    await eventually(lambda: sum(body in n or "vvvvvvvvvv" in n for n in ledger.prepared()) == 3)
    async with client.coord.begin("pay") as g:
        await client.write_both(g, f"{body}-ours")
    # An orphan, late already, shows that a scan has been here since.
    process = service(site, "after_prepare", "", "0.5")
    before = set(site.prepared())
    process.start(wait_s=0)
    assert await asyncio.to_thread(process.wait, 20) == -9
    await eventually(lambda: not set(site.prepared()) - before, within=40)
    assert sum(body in n or "vvvvvvvvvv" in n for n in ledger.prepared()) == 3
    for name in foreign:
        with ledger.server.connect() as again, again.cursor() as cursor:
            cursor.execute(f"XA ROLLBACK {name}")
    assert site.counts(body) == (0, 0)


# ---- a called service ----


@pytest.fixture
async def notes(site: Site) -> AsyncIterator[Any]:
    """A service of its own process that writes where it is told to."""
    process = service(site, port=free_port())
    await asyncio.to_thread(process.start)
    yield process
    process.stop()


@contextlib.asynccontextmanager
async def calling(client: Client, notes: Any) -> AsyncIterator[Callable[..., Any]]:
    """Calls of that service that carry the transaction."""
    async with grpc.aio.insecure_channel(
        notes.address, interceptors=client.coord.client_interceptors()
    ) as channel:
        write = channel.unary_unary("/Notes/Write")
        yield lambda **order: write(json.dumps(order).encode())


@pytest.mark.parametrize("commits", [True, False])
async def test_a_called_service_finishes_its_own_branch(
    site: Site, client: Client, notes: Any, commits: bool
) -> None:
    body = new_gid()
    kills = maria(site).status("Com_kill")
    with contextlib.suppress(ZeroDivisionError):
        async with calling(client, notes) as call, client.coord.begin("pay") as g:
            await client.write(g, client.accounts, body)
            await call(to=["ledger"], body=body)
            assert len(maria(site).prepared(g.tx_id)) == 1
            if not commits:
                raise ZeroDivisionError
    await all_or_nothing(site, body, g.tx_id, committed=commits)
    assert maria(site).status("Com_kill") == kills


async def test_a_called_service_that_is_killed_leaves_its_branch_to_the_coordinator(
    site: Site, client: Client, notes: Any
) -> None:
    body = new_gid()
    async with calling(client, notes) as call, client.coord.begin("pay") as g:
        await client.write(g, client.accounts, body)
        await call(to=["ledger"], body=body)
        await asyncio.to_thread(notes.kill9)
    await all_or_nothing(site, body, g.tx_id, committed=True)


# ---- finished by hand ----


async def test_a_branch_rolled_back_by_hand_against_the_commit_is_surfaced(
    site: Site, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    gid = new_gid()
    ledger = maria(site)
    ask = _finish._ask_commit

    async def meddle(tx: Any, branches: Any) -> None:
        [branch] = [b for b in tx._local if b.resource == "ledger"]
        if branch.kept:
            ledger.sql(f"KILL {branch.xid.connection_id}")
            # Only then the server has let go of the branch.
            await eventually(lambda: ledger.transactions_of(branch.xid.connection_id) == 0)
        ledger.sql(f"XA ROLLBACK '{branch.xid.gtrid}', '{branch.xid.bqual}', 1954046769")
        await ask(tx, branches)

    monkeypatch.setattr(_finish, "_ask_commit", meddle)
    with pytest.raises(Heuristic, match="tx show"):
        async with client.coord.begin("pay", gid=gid) as g:
            await client.write_both(g, gid)
    assert site.counts(gid) == (1, 0)
    found = await client.outcome(gid)
    assert (found.state, found.heuristic, found.parked) == ("COMMITTING", True, 1)
    assert "HEURISTIC" in site.txcoord("tx", "show", gid)
    site.txcoord("tx", "resolve", gid, "--branch", "2", "--reason", "credited by hand", "--yes")
    assert (await client.ended(gid)).state == "COMMITTED"
    del g
