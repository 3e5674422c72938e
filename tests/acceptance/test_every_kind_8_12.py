"""*Every kind* of the list of behaviours, lines 8 (wait levels) and 12 (many branches, nesting): once with the log on
SQLite, once on PostgreSQL."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack

import asyncpg
import grpc
import pytest

from tests.support.acceptance import Client, Site, eventually, new_gid
from tests.support.acceptance_wire import Wire, log_held, round_trips, told
from txcoord_client import Aborted, NoTransaction, Rejected
from txcoord_client._pb import common_pb2 as c


@pytest.fixture(params=["sqlite", "postgres"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each test runs on both kinds of log."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


class SoldOut(Exception):
    """A business no."""


# ---- 8 ----


@pytest.mark.parametrize("level", ["ACCEPTED", "DECIDED", "COMMITTED", "DELIVERED"])
async def test_8_a_wait_level_returns_when_it_is_so_and_not_before(
    wire: Wire, site: Site, level: str
) -> None:
    tx = wire.tx(new_gid())
    await tx.begin()
    branches = [tx.prepare(site.accounts, "1", tx.gid), tx.prepare(site.ledger, "2", tx.gid)]
    with site.valves["ledger"].holding(tx.tx_id) as held:
        with log_held(site):
            asked = asyncio.ensure_future(tx.commit(*branches, wait=c.WaitLevel.Value(f"WAIT_LEVEL_{level}")))
            await round_trips(wire)
            assert not asked.done(), "nothing is durable yet"
            assert site.counts(tx.gid) == (0, 0)
        await held.reached()
        if level in ("ACCEPTED", "DECIDED"):
            assert told(await asked) == ("COMMITTING", "client", "")
        else:
            await eventually(lambda: site.counts(tx.gid) == (1, 0))
            await round_trips(wire)
            assert not asked.done(), "one branch is not committed yet"
    outcome = await asked
    assert not outcome.pending
    if level in ("COMMITTED", "DELIVERED"):
        assert told(outcome) == ("COMMITTED", "client", "")
        assert site.counts(tx.gid) == (1, 1)
    await tx.reached(c.WAIT_LEVEL_DELIVERED)


async def test_8_wait_for_what_is_not_decided_yet(wire: Wire, site: Site) -> None:
    tx = wire.tx(new_gid())
    await tx.begin()
    assert told(await tx.reached(c.WAIT_LEVEL_ACCEPTED))[0] == "ACTIVE"
    waiting = [
        asyncio.ensure_future(tx.reached(level)) for level in (c.WAIT_LEVEL_DECIDED, c.WAIT_LEVEL_COMMITTED)
    ]
    await round_trips(wire)
    assert not any(w.done() for w in waiting)
    with site.valves["accounts"].holding(tx.tx_id) as held:
        asked = asyncio.ensure_future(tx.commit(tx.prepare(site.accounts, "1", tx.gid)))
        await held.reached()
        assert told(await waiting[0])[0] == "COMMITTING"
        assert not waiting[1].done()
    assert told(await waiting[1]) == told(await asked) == ("COMMITTED", "client", "")


async def test_8_a_wait_past_the_calls_deadline_is_deadline_exceeded_and_the_transaction_goes_on(
    wire: Wire, site: Site
) -> None:
    tx = wire.tx()
    branches = [tx.prepare(site.accounts, "1", tx.tx_id), tx.prepare(site.ledger, "2", tx.tx_id)]
    with site.valves["ledger"].holding(tx.tx_id):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tx.commit(*branches, timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert told(await tx.reached(c.WAIT_LEVEL_COMMITTED)) == ("COMMITTED", "client", "")
    assert site.counts(tx.tx_id) == (1, 1)


async def test_8_a_wait_that_was_limited_tells_how_it_stands(wire: Wire, site: Site) -> None:
    tx = wire.tx()
    branches = [tx.prepare(site.accounts, "1", tx.tx_id), tx.prepare(site.ledger, "2", tx.tx_id)]
    with site.valves["ledger"].holding(tx.tx_id):
        outcome = await tx.commit(*branches, wait_us=200_000)
        assert (told(outcome)[0], outcome.pending) == ("COMMITTING", True)
    await tx.reached(c.WAIT_LEVEL_COMMITTED)


@pytest.mark.parametrize("wait", ["accepted", "decided", "committed", "delivered"])
async def test_8_the_sdks_exit_says_committing_when_time_is_up(client: Client, site: Site, wait: str) -> None:
    body = new_gid()
    with ExitStack() as stack:
        async with client.coord.begin("pay", timeout=0.8, wait=wait) as g:
            await client.write_both(g, body)
            stack.enter_context(site.valves["ledger"].holding(g.tx_id))
        assert g.outcome is not None
        assert (g.outcome.state, g.outcome.committed) == ("COMMITTING", True)
        assert site.ledger.count(body) == 0
    assert (await client.ended(tx_id=g.tx_id)).state == "COMMITTED"
    assert site.counts(body) == (1, 1)


# ---- 12 ----


async def test_12_fifty_branches_in_one_transaction(client: Client, site: Site) -> None:
    body = new_gid()
    connections = [(db, await asyncpg.connect(db.dsn)) for _ in range(25) for db in site.databases]
    async with client.coord.begin("many") as g:
        for db, connection in connections:
            async with g.xa(connection, resource=db.name) as conn:
                await conn.execute("INSERT INTO note VALUES ($1)", body)
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert (site.counts(body), site.prepared(g.tx_id)) == ((25, 25), [])
    shown = json.loads(site.txcoord("tx", "show", g.tx_id, "--json"))
    assert len(shown["branches"]) == 50
    with pytest.raises(SoldOut):
        async with client.coord.begin("many", gid=body) as g:
            for db, connection in connections:
                async with g.xa(connection, resource=db.name) as conn:
                    await conn.execute("INSERT INTO note VALUES ($1)", body)
            raise SoldOut
    for _, connection in connections:
        await connection.close()
    assert site.counts(body) == (25, 25)


async def test_12_nested_transactions_join_the_outer_one(client: Client, site: Site) -> None:
    body = new_gid()

    @client.coord.transaction("inner")
    async def inner() -> None:
        await client.write(client.coord.current, client.ledger, body)

    async with client.coord.begin("outer", gid=body) as g:
        await client.write(g, client.accounts, body)
        async with client.coord.begin("inner") as nested:
            assert nested is g
            await client.write(nested, client.ledger, body)
        await inner()
        async with client.coord.begin("inner", gid=body) as nested:
            assert nested is g
        assert site.counts(body) == (0, 0), "an inner block commits nothing"
    assert site.counts(body) == (1, 2)


async def test_12_an_error_that_leaves_a_nested_block_dooms_the_whole(client: Client, site: Site) -> None:
    body = new_gid()
    with pytest.raises(Aborted) as caught:
        async with client.coord.begin("outer") as g:
            await client.write_both(g, body)
            with pytest.raises(SoldOut):
                async with client.coord.begin("inner"):
                    raise SoldOut
    assert caught.value.reason == "APPLICATION_ERROR"
    assert site.counts(body) == (0, 0)


async def test_12_new_does_not_join_and_another_gid_inside_raises(client: Client, site: Site) -> None:
    body, audit = new_gid(), new_gid("audit")
    with pytest.raises(SoldOut):
        async with client.coord.begin("outer", gid=body) as g:
            await client.write(g, client.accounts, body)
            with pytest.raises(Rejected, match="new=True") as caught:
                async with client.coord.begin("other", gid=new_gid()):
                    pass
            assert caught.value.reason == "NESTED_GID"
            async with client.coord.begin("audit", gid=audit, new=True) as own:
                assert own is not g
                assert client.coord.current is own
                await client.write_both(own, audit)
            assert client.coord.current is g
            with client.coord.outside(), pytest.raises(NoTransaction):
                client.coord.xa(client.accounts)
            raise SoldOut
    assert (site.counts(body), site.counts(audit)) == ((0, 0), (1, 1))
