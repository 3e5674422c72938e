"""*XA* of the list of behaviours: a single branch is committed in one phase, and never tells two stories."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from tests.support.acceptance import Client, Site, client_of, eventually, new_gid
from tests.support.acceptance_valve import Valve
from tests.support.acceptance_wire import told, wire_to
from tests.support.databases import database_of
from tests.support.log_proxy import Proxy
from txcoord_client import Aborted, AlreadyAborted, AlreadyCommitted, OutcomeUnknown

ONE = "'one'"
"""In the message that commits in one phase: the marker's op."""
with_and_without_gid = pytest.mark.parametrize("named", [True, False], ids=["with a gid", "without"])


@pytest.fixture
def valve(site: Site) -> Iterator[Valve]:
    """Between the service and its database; the coordinator's way is another."""
    valve = Valve(site.accounts.url)
    yield valve
    valve.close()


def markers(site: Site, tx_id: str) -> str:
    return site.accounts.sql(f"SELECT branch, op, state FROM txcoord_marker WHERE tx_id = '{tx_id}'")


@with_and_without_gid
async def test_a_single_branch_is_committed_in_one_phase(client: Client, site: Site, named: bool) -> None:
    body = new_gid()
    # With a gid whoever aborts must know the database, so it is named at begin.
    async with client.coord.begin("note", gid=body if named else "", resources=["accounts"]) as g:
        await client.write(g, client.accounts, body)
        g.result = b'{"seat": "12A"}'
    assert g.outcome is not None
    assert (g.outcome.state, g.outcome.decided_by) == ("COMMITTED", "database")
    assert (site.counts(body), markers(site, g.tx_id)) == ((1, 0), "0|one|1")

    async def known() -> bool:
        return await client.coord.get(tx_id=g.tx_id) is not None

    await eventually(known)  # The report is on its way when the block has ended.
    found = await client.outcome(tx_id=g.tx_id)
    assert (found.state, found.decided_by, found.result) == ("COMMITTED", "database", b'{"seat": "12A"}')
    if named:
        with pytest.raises(AlreadyCommitted) as caught:
            await client.coord.begin("note", gid=body).__aenter__()
        assert caught.value.result == b'{"seat": "12A"}'


async def test_a_gid_whose_database_was_not_named_is_committed_in_two(client: Client, site: Site) -> None:
    gid = new_gid()
    async with client.coord.begin("note", gid=gid) as g:
        await client.write(g, client.accounts, gid)
    assert markers(site, g.tx_id) == "1|xa|1"
    other = new_gid()
    async with client.coord.begin("note", gid=other, resources=["accounts"]) as g:
        await client.write(g, client.ledger, other)  # another one than was announced
    assert (site.counts(other), markers(site, g.tx_id)) == ((0, 1), "")


async def test_a_branch_that_only_read_drops_out(client: Client, site: Site) -> None:
    """Alone nothing is asked of anybody; beside another one it is not in phase two."""
    async with client.coord.begin("look") as g, g.xa(client.accounts) as db:
        await db.execute(text("SELECT count(*) FROM note"))
    assert g.outcome is not None
    assert (g.outcome.state, markers(site, g.tx_id)) == ("COMMITTED", "")
    assert await client.coord.get(tx_id=g.tx_id) is None
    body = new_gid()
    async with client.coord.begin("copy") as g:
        async with g.xa(client.accounts) as db:
            await db.execute(text("SELECT count(*) FROM note"))
        await client.write(g, client.ledger, body)
    assert (site.counts(body), markers(site, g.tx_id)) == ((0, 1), "")
    assert "READ_ONLY" in site.txcoord("tx", "show", g.tx_id)


@with_and_without_gid
async def test_a_lost_reply_to_the_local_commit_is_told_as_it_was(site: Site, named: bool) -> None:
    body = new_gid()
    async with Proxy(site.accounts.url) as proxy, client_of(site, urls={"accounts": proxy.url}) as client:
        async with client.coord.begin("note", gid=body if named else "", resources=["accounts"]) as g:
            await client.write(g, client.accounts, body)
            proxy.lose_reply(ONE.encode())
        assert proxy.broke.is_set()
        assert g.outcome is not None
        assert g.outcome.committed
        assert site.counts(body) == (1, 0)
        assert (await client.ended(tx_id=g.tx_id)).state == "COMMITTED"


@with_and_without_gid
async def test_a_local_commit_that_never_arrived_is_told_as_aborted(
    site: Site, valve: Valve, named: bool
) -> None:
    body = new_gid()

    async def cut() -> None:
        with valve.holding(ONE) as held:
            await held.reached()
            site.accounts.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE 'idle in trans%'"
                f" AND datname = '{database_of(site.accounts.url)}'"
            )

    async with client_of(site, urls={"accounts": valve.url}) as client:
        with pytest.raises(Aborted) as caught:
            async with client.coord.begin("note", gid=body if named else "", resources=["accounts"]) as g:
                await client.write(g, client.accounts, body)
                cutting = asyncio.ensure_future(cut())
                await asyncio.sleep(0)
        await cutting
        assert caught.value.definite
        assert (await client.ended(tx_id=g.tx_id)).state == "ABORTED"
        assert (site.counts(body), markers(site, g.tx_id)) == ((0, 0), "0|one|2")


@with_and_without_gid
async def test_a_local_commit_that_comes_after_the_deadlines_abort_is_refused(
    site: Site, valve: Valve, named: bool
) -> None:
    """It is still on its way when the transaction is aborted; the tombstone has its key."""
    body = new_gid()
    async with client_of(site, urls={"accounts": valve.url}) as client:
        with valve.holding(ONE) as held:
            with pytest.raises(Aborted) as caught:
                async with client.coord.begin(
                    "note", gid=body if named else "", resources=["accounts"], timeout=0.7
                ) as g:
                    await client.write(g, client.accounts, body)
            await held.reached()
            assert caught.value.definite
            assert (await client.ended(tx_id=g.tx_id)).state == "ABORTED"
            assert markers(site, g.tx_id) == "0|one|2"
        # Now it arrives.
        await eventually(
            lambda: (
                site.accounts.sql(
                    "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in trans%'"
                    f" AND datname = '{database_of(site.accounts.url)}'"
                )
                == "0"
            )
        )
        assert (site.counts(body), markers(site, g.tx_id)) == ((0, 0), "0|one|2")


async def test_an_abort_that_comes_while_the_local_commit_is_open_waits_for_it(
    site: Site, client: Client
) -> None:
    """Whoever asks for the abort of what is being committed hears COMMITTED."""
    body = new_gid()
    async with Proxy(site.accounts.url) as proxy, client_of(site, urls={"accounts": proxy.url}) as service:
        with pytest.raises(OutcomeUnknown) as caught:
            async with service.coord.begin("note", timeout=20) as g:
                await service.write(g, service.accounts, body)
                proxy.lose_reply(ONE.encode())
                g._runtime.wire._closed = True  # it cannot ask any more
        assert (caught.value.resources, caught.value.definite) == (("accounts",), False)
        service.coord._runtime().wire._closed = False
    settled = await client.coord.settle(caught.value)
    assert (settled.state, settled.decided_by) == ("COMMITTED", "database")
    assert site.counts(body) == (1, 0)
    again = await client.coord.settle(caught.value)
    assert again.state == "COMMITTED"


async def test_one_phase_against_the_deadline_never_tells_two_stories(site: Site) -> None:
    """Many commits sent just before, at and just after their deadlines."""
    rng = random.Random(4)
    ends: dict[str, int] = {}

    async def one(client: Client, number: int) -> None:
        body = new_gid()
        gid = body if number % 2 else ""
        told_ = "committed"
        try:
            async with client.coord.begin("race", gid=gid, resources=["accounts"], timeout=0.6) as g:
                await client.write(g, client.accounts, body)
                await asyncio.sleep(max(g.remaining + rng.uniform(-0.03, 0.03), 0))
        except Aborted:
            told_ = "aborted"
        except OutcomeUnknown as error:
            settled = await client.coord.settle(error)
            told_ = "committed" if settled.committed else "aborted"
        ends[told_] = ends.get(told_, 0) + 1
        assert site.accounts.count(body) == (told_ == "committed"), f"{told_} was told of {body}"
        if gid:
            found = await client.ended(gid)
            assert (found.committed, found.heuristic) == (told_ == "committed", False)
            with pytest.raises(AlreadyCommitted if found.committed else AlreadyAborted):
                await client.coord.begin("race", gid=gid).__aenter__()

    async with client_of(site) as client:
        for _ in range(6):
            await asyncio.gather(*(one(client, number) for number in range(8)))
    assert sum(ends.values()) == 48


async def test_one_phase_races_a_rollback_and_both_hear_the_same(site: Site) -> None:
    async with wire_to(site.address) as wire, client_of(site) as client:

        async def one(number: int) -> None:
            body = new_gid()
            others: list[asyncio.Task[str]] = []

            async def roll_back() -> str:
                await asyncio.sleep(number * 0.001)
                tx = wire.tx()
                tx.tx_id, tx.deadline_us = g.tx_id, g.deadline_us
                outcome = await tx.rollback(resources=["accounts"], initiator=False, force_log=True)
                return told(outcome)[0]

            mine = "COMMITTED"
            try:
                async with client.coord.begin("race") as g:
                    await client.write(g, client.accounts, body)
                    others.append(asyncio.ensure_future(roll_back()))
            except Aborted:
                mine = "ABORTED"
            assert mine == await others[0]
            assert site.accounts.count(body) == (mine == "COMMITTED")

        for _ in range(3):
            await asyncio.gather(*(one(number) for number in range(8)))
