"""*XA* of the list of behaviours: the lines in which nobody dies. Kills are in `test_xa_crashes.py`, one-phase in
`test_xa_one_phase.py`."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.acceptance.conftest import NewSite
from tests.support.acceptance import INSERT, Client, Site, client_of, eventually, new_gid
from tests.support.acceptance_wire import Wire, answer_to_commit, told, wire_to
from tests.support.log_proxy import Proxy
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import coordinator
from txcoord_client import Aborted, Coordinator, Heuristic, Rejected

# ---- two databases ----


async def test_two_postgresql_databases_of_two_majors(client: Client, site: Site) -> None:
    body = new_gid()
    async with client.coord.begin("pay") as g:
        await client.write_both(g, body)
    versions = {db.sql("SHOW server_version_num")[:2] for db in site.databases}
    assert (site.counts(body), versions) == ((1, 1), {"17", "18"})


async def test_two_branches_in_one_database(client: Client, site: Site) -> None:
    body = new_gid()
    async with client.accounts.connect() as own, client.coord.begin("twice") as g:
        await client.write(g, client.accounts, body)
        async with g.xa(own) as db:
            await db.execute(text(INSERT), {"body": body})
            # They are apart: neither sees the other.
            assert (
                await db.execute(text("SELECT count(*) FROM note WHERE body = :b"), {"b": body})
            ).scalar() == 1
    assert (site.counts(body), site.prepared(g.tx_id)) == ((2, 0), [])
    assert (
        site.accounts.sql(f"SELECT branch FROM txcoord_marker WHERE tx_id = '{g.tx_id}' ORDER BY 1") == "1\n2"
    )


async def test_two_branches_in_one_database_that_block_each_other_end_by_the_lock_timeout(
    client: Client, site: Site
) -> None:
    site.accounts.sql("CREATE TABLE IF NOT EXISTS row (id int PRIMARY KEY, n int)")
    site.accounts.sql("INSERT INTO row VALUES (1, 0) ON CONFLICT DO NOTHING")
    with pytest.raises(Exception, match="lock timeout"):
        async with client.accounts.connect() as own, client.coord.begin("twice") as g:
            async with g.xa(client.accounts) as db:
                await db.execute(text("UPDATE row SET n = n + 1"))
            async with g.xa(own) as db:
                await db.execute(text("SET LOCAL lock_timeout = '100ms'"))
                await db.execute(text("UPDATE row SET n = n + 1"))
    assert (site.accounts.sql("SELECT n FROM row"), site.prepared(g.tx_id)) == ("0", [])


# ---- SQLite ----


async def test_sqlite_as_a_resource_is_refused(tmp_path: Path, site: Site) -> None:
    """By the coordinator before it starts, and by the SDK before any work."""
    process = coordinator(tmp_path, resources={"accounts": f"sqlite:///{tmp_path}/accounts.db"})
    process.start(wait_s=0)
    assert await asyncio.to_thread(process.wait, 20) == 3
    assert "SQLite cannot take part in XA" in process.tail()
    assert not (tmp_path / "accounts.db").exists()

    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/accounts.db")
    async with Coordinator(site.address, resources={"accounts": engine}) as coord:
        with pytest.raises(Rejected, match="sqlite") as caught:
            async with coord.begin("pay") as g, g.xa(engine) as db:
                await db.execute(text("CREATE TABLE note (body text)"))
        assert caught.value.reason == "NOT_SUPPORTED"
    await engine.dispose()


# ---- orphans, and what is not ours ----


async def test_an_orphan_is_rolled_back_after_its_deadline_and_grace_and_not_before(
    wire: Wire, site: Site
) -> None:
    soon, later = wire.tx(seconds=0.3), wire.tx(seconds=3000)
    orphan = soon.prepare(site.accounts, "1", soon.tx_id)
    young = later.prepare(site.accounts, "1", later.tx_id)
    await eventually(lambda: not site.prepared(soon.tx_id))
    assert time.time_ns() // 1000 > soon.deadline_us + wire.hello.limits.grace_us
    # The ABORT row was there first, and says who; the young one was seen by the same scan and left alone.
    assert told((await soon.get()).outcome)[1:] == ("scanner", "ORPHAN")
    assert site.prepared(later.tx_id) == [young.xa.xid]
    # A commit that comes after it is refused, and so is a late PREPARE of the same branch.
    assert await answer_to_commit(soon, orphan) == ("ABORTED", "scanner", "ORPHAN")
    with pytest.raises(Exception, match="null value in column"):
        soon.prepare(site.accounts, "1", soon.tx_id)
    assert told(await later.commit(young))[0] == "COMMITTED"
    assert (site.counts(soon.tx_id), site.counts(later.tx_id)) == ((0, 0), (1, 0))


async def test_what_others_have_prepared_is_never_touched(
    new_site: NewSite, site: Site, tmp_path: Path
) -> None:
    """Other programs, and a second txcoord with a log of its own on the same databases."""
    second = Site(tmp_path, *site.databases, name="second")
    try:
        second.start()
        async with (
            wire_to(site.address) as wire,
            wire_to(second.address) as others,
            client_of(second) as client,
        ):
            assert wire.hello.log_id != others.hello.log_id
            body = new_gid()
            stranger = others.tx(seconds=0.3)
            foreign = {
                "a-program-of-its-own",
                stranger.xid("1", log_id="vvvvvvvvvv"),  # of a txcoord that nobody knows here
                f"txc1.{wire.hello.log_id}.nonsense",
            }
            for gid in foreign:
                site.accounts.sql(f"BEGIN; INSERT INTO note VALUES ('{body}'); PREPARE TRANSACTION '{gid}'")
            with second.valves["ledger"].holding("PREPARED 'txc1") as held:
                async with client.coord.begin("pay", timeout=0.7) as g:
                    await client.write_both(g, body)
                assert g.outcome is not None
                assert g.outcome.state == "COMMITTING"
                await held.reached()
                # An orphan of each log, late already, shows that both have scanned since.
                orphans = [
                    tx.prepare(site.accounts, "1", body)
                    for tx in (wire.tx(seconds=0.1), others.tx(seconds=0.1))
                ]
                await eventually(lambda: not any(o.xa.xid in site.accounts.prepared() for o in orphans))
                assert len(site.ledger.prepared(g.tx_id)) == 1, (
                    "the first log's scanner left the second's alone"
                )
            assert (await client.ended(tx_id=g.tx_id)).state == "COMMITTED"
            assert site.counts(body) == (1, 1)
            assert foreign <= set(site.accounts.prepared())
            for gid in foreign:
                site.accounts.sql(f"ROLLBACK PREPARED '{gid}'")
    finally:
        second.stop()


async def test_a_prepared_branch_that_is_missing_from_the_commit_is_rolled_back(
    wire: Wire, site: Site
) -> None:
    tx = wire.tx(seconds=20)
    listed = tx.prepare(site.accounts, "1", tx.tx_id)
    missing = tx.prepare(site.ledger, "2", tx.tx_id)
    assert told(await tx.commit(listed))[0] == "COMMITTED"
    await eventually(lambda: missing.xa.xid not in site.ledger.prepared())
    assert site.counts(tx.tx_id) == (1, 0)
    shown = json.loads(site.txcoord("tx", "show", tx.tx_id, "--json"))
    assert [(e["event"], e["branch"]) for e in shown["timeline"] if e["branch"]] == [
        ("branch.finished_late", "2")
    ]


# ---- commit against rollback ----


async def test_a_rollback_that_overtakes_a_delayed_commit_wins(wire: Wire, site: Site) -> None:
    tx = wire.tx()
    branches = [tx.prepare(site.accounts, "1", tx.tx_id), tx.prepare(site.ledger, "2", tx.tx_id)]
    # Nobody knows it yet. Whoever asks for its abort settles it, though a commit is on its way.
    outcome = await tx.rollback(initiator=False, reason="SETTLED")
    assert told(outcome) == ("ABORTED", "client", "SETTLED")
    assert await answer_to_commit(tx, *branches) == ("ABORTED", "client", "SETTLED")
    await eventually(lambda: not site.prepared(tx.tx_id))
    assert site.counts(tx.tx_id) == (0, 0)


async def test_commit_races_rollback_and_both_hear_the_same(site: Site, wire: Wire) -> None:
    async with wire_to(site.address) as other:
        body = new_gid()

        async def one(number: int) -> tuple[str, str]:
            tx = wire.tx(new_gid() if number % 2 else "")
            if tx.gid:
                await tx.begin()
            branches = [
                tx.prepare(site.accounts, "1", f"{body}-{tx.tx_id}"),
                tx.prepare(site.ledger, "2", f"{body}-{tx.tx_id}"),
            ]
            again = other.tx(tx.gid)
            again.tx_id, again.deadline_us, again.begun = tx.tx_id, tx.deadline_us, tx.begun
            commit = answer_to_commit(tx, *branches)
            rollback = again.rollback(*branches, initiator=False)
            first, second = (commit, rollback) if number % 3 else (rollback, commit)
            answers = await asyncio.gather(asyncio.ensure_future(first), asyncio.ensure_future(second))
            told_ = [a if isinstance(a, tuple) else told(a) for a in answers]
            assert told_[0] == told_[1]
            return tx.tx_id, told_[0][0]

        ended = await asyncio.gather(*(one(number) for number in range(24)))
        await eventually(lambda: not any(site.prepared(tx_id) for tx_id, _ in ended))
        for tx_id, state in ended:
            assert site.counts(f"{body}-{tx_id}") == ((1, 1) if state == "COMMITTED" else (0, 0))


async def test_a_lost_reply_to_prepare_is_no_vote_and_leaves_nothing(client: Client, site: Site) -> None:
    body = new_gid()
    async with Proxy(site.ledger.url) as proxy, client_of(site, urls={"ledger": proxy.url}) as client:
        with pytest.raises(Aborted) as caught:
            async with client.coord.begin("pay") as g:
                await client.write_both(g, body)
                proxy.lose_reply(b"PREPARE TRANSACTION")
        assert (caught.value.reason, caught.value.retriable) == ("CONNECTION_LOST", True)
        assert proxy.broke.is_set()
        await eventually(lambda: not site.prepared(g.tx_id))
        assert site.counts(body) == (0, 0)


# ---- max_prepared_transactions ----


async def test_max_prepared_transactions_zero_or_full_is_a_clear_error(
    pg18: PostgresServer, pg_server: Callable[..., PostgresServer], new_site: NewSite
) -> None:
    small = pg_server(settings={"max_prepared_transactions": "1"})
    site = new_site(servers=(pg18, small))
    async with client_of(site) as client:
        body = new_gid()
        async with client.ledger.connect() as own:
            with pytest.raises(Aborted, match="is used up") as caught:
                async with client.coord.begin("full") as g:
                    await client.write_both(g, body)
                    async with g.xa(own) as db:
                        await db.execute(text(INSERT), {"body": body})
        assert (caught.value.reason, caught.value.retriable) == ("PREPARE_FULL", True)
        await eventually(lambda: not site.prepared())
        async with client.coord.begin("fits") as g:
            await client.write_both(g, body)
        assert site.counts(body) == (1, 1)
    assert "max_prepared_transactions is 1" in site.txcoord("resource", "check", "ledger")

    small.settings["max_prepared_transactions"] = "0"
    small.restart()
    async with client_of(site) as client:
        body = new_gid()
        with pytest.raises(Aborted, match="set max_prepared_transactions") as caught:
            async with client.coord.begin("off") as g:
                await client.write_both(g, body)
        assert (caught.value.reason, caught.value.retriable) == ("PREPARE_DISABLED", False)
        await eventually(lambda: not site.prepared())
        assert site.counts(body) == (0, 0)
    with pytest.raises(Exception, match="PREPARE_DISABLED: max_prepared_transactions is 0"):
        site.txcoord("resource", "check", "ledger")


# ---- finished by hand ----


async def test_a_branch_rolled_back_by_hand_against_the_commit_is_surfaced(
    client: Client, site: Site
) -> None:
    gid = new_gid()
    by_hand: list[asyncio.Task[None]] = []

    async def roll_back() -> None:
        with site.valves["ledger"].holding(g.tx_id) as held:
            await held.reached()
            [xid] = site.ledger.prepared(g.tx_id)
            site.ledger.sql(f"ROLLBACK PREPARED '{xid}'")

    with pytest.raises(Heuristic, match="tx show") as caught:
        async with client.coord.begin("pay", gid=gid) as g:
            await client.write_both(g, gid)
            by_hand.append(asyncio.ensure_future(roll_back()))
            await asyncio.sleep(0)  # so that it holds before the end begins
    await asyncio.gather(*by_hand)
    assert (caught.value.gid, caught.value.definite) == (gid, False)
    assert g.outcome is not None
    assert (g.outcome.heuristic, g.outcome.parked) == (True, 1)
    assert site.counts(gid) == (1, 0)
    found = await client.outcome(gid)
    assert (found.state, found.heuristic, found.parked) == ("COMMITTING", True, 1)
    page = site.txcoord("tx", "show", gid)
    assert "COMMITTING (PARKED, HEURISTIC)" in page
    assert "someone rolled it back, though commit was decided" in page
    assert gid in site.txcoord("tx", "list", "heuristic")
    assert gid in site.txcoord("tx", "list", "parked")
    # A person settles it: it ends, and stays marked.
    site.txcoord("tx", "resolve", gid, "--branch", "2", "--reason", "credited by hand", "--yes")
    found = await client.ended(gid)
    assert (found.state, found.heuristic, found.parked) == ("COMMITTED", True, 0)
    assert "operator.resolve branch 2 by ann: credited by hand" in site.txcoord("tx", "show", gid)


async def test_a_branch_committed_by_hand_as_decided_is_no_heuristic(client: Client, site: Site) -> None:
    gid = new_gid()

    async def commit() -> None:
        with site.valves["ledger"].holding(g.tx_id) as held:
            await held.reached()
            [xid] = site.ledger.prepared(g.tx_id)
            site.ledger.sql(f"COMMIT PREPARED '{xid}'")

    async with client.coord.begin("pay", gid=gid) as g:
        await client.write_both(g, gid)
        by_hand = asyncio.ensure_future(commit())
        await asyncio.sleep(0)
    await by_hand
    assert g.outcome is not None
    assert (g.outcome.state, g.outcome.heuristic) == ("COMMITTED", False)
    assert site.counts(gid) == (1, 1)


async def test_a_branch_committed_by_hand_against_the_abort_is_surfaced(wire: Wire, site: Site) -> None:
    tx = wire.tx(new_gid())
    await tx.begin()
    branches = [tx.prepare(site.accounts, "1", tx.gid), tx.prepare(site.ledger, "2", tx.gid)]
    await tx.enlist(*branches)
    with site.valves["ledger"].holding(tx.tx_id) as held:
        asked = asyncio.ensure_future(tx.rollback())
        await held.reached()
        site.ledger.sql(f"COMMIT PREPARED '{branches[1].xa.xid}'")
    outcome = await asked
    assert (told(outcome)[0], outcome.heuristic, outcome.parked) == ("ABORTING", True, 1)
    [bad] = outcome.branches
    assert (bad.branch, bad.reason, bad.heuristic) == ("2", "HEURISTIC", True)
    assert site.counts(tx.gid) == (0, 1)
    assert "ABORTING (PARKED, HEURISTIC)" in site.txcoord("tx", "show", tx.gid)
