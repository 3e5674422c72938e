"""*Every kind* of the list of behaviours, lines 1, 2, 5, 6 and 7: once with the log on SQLite, once on
PostgreSQL. 8 and 12 are in the file beside it; 3, 4, 9, 10 and 11 are about participants, which this version does not
call."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import json

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.acceptance import INSERT, Client, Site, eventually, new_gid
from tests.support.acceptance_wire import Wire, refused, told
from txcoord_client import Aborted, AlreadyAborted, AlreadyCommitted, InProgress
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb


@pytest.fixture(params=["sqlite", "postgres"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each test runs on both kinds of log."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


# ---- 1 ----


@pytest.mark.parametrize("gid", [new_gid("one"), ""], ids=["with a gid", "without"])
async def test_1_commit_with_all_branches_well_is_committed_once(
    client: Client, site: Site, gid: str
) -> None:
    body = f"{gid or new_gid('one')}-{id(site)}"
    async with client.coord.begin("pay", gid=gid and body) as g:
        await client.write_both(g, body)
    assert g.outcome is not None
    assert (g.outcome.state, g.outcome.decided_by, g.outcome.heuristic) == ("COMMITTED", "client", False)
    assert (site.counts(body), site.prepared(g.tx_id)) == ((1, 1), [])
    assert (await client.outcome(tx_id=g.tx_id)).state == "COMMITTED"
    for db in site.databases:
        assert db.sql(f"SELECT op, state FROM txcoord_marker WHERE tx_id = '{g.tx_id}'") == "xa|1"


async def test_1_sessions_connections_and_pools_take_part_alike(client: Client, site: Site) -> None:
    body = new_gid()
    pool = await asyncpg.create_pool(site.ledger.dsn, min_size=1, max_size=2)
    async with (
        AsyncSession(client.accounts) as session,
        client.ledger.connect() as connection,
        client.coord.begin("mix") as g,
    ):
        async with g.xa(session) as db:
            await db.execute(text(INSERT), {"body": body})
        async with g.xa(connection) as db:
            await db.execute(text(INSERT), {"body": body})
        async with g.xa(pool, resource="ledger") as db:
            await db.execute("INSERT INTO note VALUES ($1)", body)
        async with g.xa(session) as db:  # goes on with the same branch
            await db.execute(text(INSERT), {"body": body})
    await pool.close()
    assert site.counts(body) == (2, 2)
    shown = json.loads(site.txcoord("tx", "show", g.tx_id, "--json"))
    assert [b["state"] for b in shown["branches"]] == ["DONE"] * 3


# ---- 2 ----


class SoldOut(Exception):
    """A business no."""


@pytest.mark.parametrize("gid", ["sold-out", ""], ids=["with a gid", "without"])
async def test_2_abort_by_the_client_undoes_all_and_keeps_its_reason(
    client: Client, site: Site, gid: str
) -> None:
    gid = gid and new_gid(gid)
    body = gid or new_gid()
    error = SoldOut()
    with pytest.raises(SoldOut) as caught:
        async with client.coord.begin("order", gid=gid) as g:
            await client.write_both(g, body)
            raise error
    assert caught.value is error
    assert (site.counts(body), site.prepared(g.tx_id)) == ((0, 0), [])
    if gid:
        found = await client.ended(gid)
        assert (found.state, found.decided_by, found.reason) == ("ABORTED", "client", "APPLICATION_ERROR")
        with pytest.raises(AlreadyAborted) as again:
            await client.coord.begin("order", gid=gid).__aenter__()
        assert (again.value.reason, again.value.retriable) == ("APPLICATION_ERROR", False)


async def test_2_set_rollback_only_aborts_with_the_reason_given(client: Client, site: Site) -> None:
    gid = new_gid()
    with pytest.raises(Aborted) as caught:
        async with client.coord.begin("order", gid=gid) as g:
            await client.write_both(g, gid)
            g.set_rollback_only("CREDIT_LIMIT", "not today")
    assert (caught.value.reason, caught.value.decided_by) == ("CREDIT_LIMIT", "client")
    assert "not today" in str(caught.value)
    found = await client.ended(gid)
    assert (found.state, found.reason, site.counts(gid)) == ("ABORTED", "CREDIT_LIMIT", (0, 0))


async def test_2_rollback_over_the_wire_undoes_what_is_prepared(wire: Wire, site: Site) -> None:
    tx = wire.tx(new_gid())
    await tx.begin()
    branches = [tx.prepare(site.accounts, "1", tx.gid), tx.prepare(site.ledger, "2", tx.gid)]
    await tx.enlist(branches[0])
    outcome = await tx.rollback(branches[1])
    assert told(outcome) == ("ABORTED", "client", "CHANGED_MY_MIND")
    assert (site.counts(tx.gid), site.prepared(tx.tx_id)) == ((0, 0), [])


async def test_2_abort_by_the_deadline(client: Client, wire: Wire, site: Site) -> None:
    gid = new_gid()
    with pytest.raises(Aborted) as caught:
        async with client.coord.begin("slow", gid=gid, timeout=0.8) as g:
            await client.write_both(g, gid)
            assert (await client.ended(gid)).state == "ABORTED"  # while the caller still works
    assert (caught.value.reason, caught.value.retriable) == ("DEADLINE", True)
    found = await client.outcome(gid)
    assert (found.state, found.decided_by, found.reason) == ("ABORTED", "deadline", "DEADLINE")
    assert (site.counts(gid), site.prepared(g.tx_id)) == ((0, 0), [])
    with pytest.raises(AlreadyAborted) as again:
        await client.coord.begin("slow", gid=gid).__aenter__()
    assert again.value.retriable


async def test_2_abort_by_a_branch(client: Client, wire: Wire, site: Site) -> None:
    """A branch that votes no: over the wire, and as a deferred constraint that fails at PREPARE."""
    tx = wire.tx(new_gid())
    await tx.begin()
    prepared = tx.prepare(site.accounts, "1", tx.gid)
    outcome = await tx.commit(
        prepared, tx.branch("2", "ledger", c.VOTE_NO, reason="SOLD_OUT", message="none left")
    )
    assert told(outcome) == ("ABORTED", "branch", "SOLD_OUT")
    assert (site.counts(tx.gid), site.prepared(tx.tx_id)) == ((0, 0), [])

    site.ledger.sql("CREATE TABLE IF NOT EXISTS late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    gid = new_gid()
    with pytest.raises(Aborted, match="late_id_key") as caught:
        async with client.coord.begin("late", gid=gid) as g:
            await client.write(g, client.accounts, gid)
            async with g.xa(client.ledger) as db:
                await db.execute(text("INSERT INTO late VALUES (1), (1)"))
    assert caught.value.definite
    assert (site.counts(gid), site.prepared(g.tx_id)) == ((0, 0), [])
    assert site.ledger.sql("SELECT count(*) FROM late") == "0"
    assert (await client.ended(gid)).state == "ABORTED"


async def test_2_a_branch_without_a_vote_is_no_yes(wire: Wire, site: Site) -> None:
    tx = wire.tx()
    prepared = tx.prepare(site.accounts, "1", tx.tx_id)
    outcome = await tx.commit(prepared, tx.branch("2", "ledger", c.VOTE_UNSPECIFIED))
    assert told(outcome) == ("ABORTED", "branch", "VOTE_MISSING")
    assert (site.counts(tx.tx_id), site.prepared(tx.tx_id)) == ((0, 0), [])


# ---- 5 ----


async def test_5_the_same_request_twice_before_during_and_after_phase_two(wire: Wire, site: Site) -> None:
    tx = wire.tx(new_gid(), labels={"tenant": "a"})
    first = await tx.begin()
    assert told(await tx.begin()) == told(first) == ("ACTIVE", "unspecified", "")
    branches = [tx.prepare(site.accounts, "1", tx.gid), tx.prepare(site.ledger, "2", tx.gid)]
    once = await tx.enlist(branches[0])
    twice = await tx.enlist(branches[0])
    assert once.version == twice.version
    with site.valves["ledger"].holding(tx.tx_id) as held:
        outcome = await tx.commit(*branches, wait=c.WAIT_LEVEL_DECIDED)
        await held.reached()
        again = await tx.commit(*branches, wait=c.WAIT_LEVEL_DECIDED)
        assert told(outcome) == told(again) == ("COMMITTING", "client", "")
        assert (outcome.decided_us, outcome.version) == (again.decided_us, again.version)
        # Others have nothing to say any more, and hear how it is.
        assert told(await tx.rollback(wait=c.WAIT_LEVEL_DECIDED)) == told(again)
        with refused("FAILED_PRECONDITION", "DECIDED") as refusal:
            await tx.enlist(branches[0])
        assert not refusal.definite  # It repeats what took effect.
    assert told(await tx.reached(c.WAIT_LEVEL_COMMITTED)) == ("COMMITTED", "client", "")
    for _ in range(2):
        assert told(await tx.commit(*branches)) == ("COMMITTED", "client", "")
        assert told(await tx.rollback(*branches)) == ("COMMITTED", "client", "")
        with refused("ALREADY_EXISTS", "ALREADY_COMMITTED"):
            await tx.begin()
    assert (site.counts(tx.gid), site.prepared(tx.tx_id)) == ((1, 1), [])


async def test_5_the_same_rollback_twice_before_during_and_after_phase_two(wire: Wire, site: Site) -> None:
    tx = wire.tx(new_gid())
    await tx.begin()
    branches = [tx.prepare(site.accounts, "1", tx.gid), tx.prepare(site.ledger, "2", tx.gid)]
    await tx.enlist(*branches)
    with site.valves["ledger"].holding(tx.tx_id) as held:
        outcome = await tx.rollback(wait=c.WAIT_LEVEL_DECIDED)
        await held.reached()
        again = await tx.rollback(wait=c.WAIT_LEVEL_DECIDED)
        assert told(outcome) == told(again) == ("ABORTING", "client", "CHANGED_MY_MIND")
    for _ in range(2):
        assert told(await tx.rollback()) == ("ABORTED", "client", "CHANGED_MY_MIND")
        with refused("ALREADY_EXISTS", "ALREADY_ABORTED"):
            await tx.begin()
    assert (site.counts(tx.gid), site.prepared(tx.tx_id)) == ((0, 0), [])


async def test_5_requests_sent_at_the_same_time_have_one_effect(wire: Wire, site: Site) -> None:
    tx = wire.tx(new_gid())
    assert {told(o) for o in await asyncio.gather(*(tx.begin() for _ in range(8)))} == {
        ("ACTIVE", "unspecified", "")
    }
    branches = [tx.prepare(site.accounts, "1", tx.gid), tx.prepare(site.ledger, "2", tx.gid)]
    outcomes = await asyncio.gather(*(tx.commit(*branches) for _ in range(8)))
    assert {told(o) for o in outcomes} == {("COMMITTED", "client", "")}
    assert len({o.decided_us for o in outcomes}) == 1
    assert site.counts(tx.gid) == (1, 1)


async def test_5_the_same_gid_is_done_once(client: Client, site: Site) -> None:
    gid = new_gid()

    async def pay() -> str:
        async with client.coord.begin("pay", gid=gid) as g:
            await client.write_both(g, gid)
        assert g.outcome is not None
        return g.outcome.state

    ended = await asyncio.gather(*(pay() for _ in range(6)), return_exceptions=True)
    assert ended.count("COMMITTED") == 1
    assert all(isinstance(e, InProgress | AlreadyCommitted) for e in ended if e != "COMMITTED"), ended
    with pytest.raises(AlreadyCommitted) as caught:
        await pay()
    assert caught.value.gid == gid
    assert site.counts(gid) == (1, 1)


async def test_5_who_has_no_tx_ids_repeats_by_the_gid_alone(wire: Wire) -> None:
    gid = new_gid()
    request = pb.BeginRequest(gid=gid, spec=c.TransactionSpec(name="pay"))
    first = (await wire.call("Begin", request)).outcome
    many = await asyncio.gather(*(wire.call("Begin", request) for _ in range(5)))
    assert {answer.outcome.tx_id for answer in many} == {first.tx_id}
    request.spec.name = "buy"
    with refused("ALREADY_EXISTS", "CONTENT_MISMATCH"):
        await wire.call("Begin", request)
    await wire.call("Rollback", pb.RollbackRequest(gid=gid))
    request.spec.name = "pay"
    with refused("ALREADY_EXISTS", "ALREADY_ABORTED"):
        await wire.call("Begin", request)


async def test_5_text_that_no_log_can_keep(wire: Wire) -> None:
    """PostgreSQL has no NUL: what names something is refused, what only explains is kept without it."""
    gid = new_gid()
    with refused("INVALID_ARGUMENT", "BAD_REQUEST", "NUL"):
        await wire.call("Begin", pb.BeginRequest(gid=gid, spec=c.TransactionSpec(name="a\0")))
    await wire.call("Begin", pb.BeginRequest(gid=gid))
    done = (await wire.call("Rollback", pb.RollbackRequest(gid=gid, reason="BECAUSE\0"))).outcome
    assert told(done) == ("ABORTED", "client", "BECAUSE?")
    for request in (pb.ListRequest(filter='name = "a\0"'), pb.ListRequest(page_token="x")):
        with refused("INVALID_ARGUMENT", "BAD_REQUEST"):
            await wire.call("List", request)


async def test_5_the_same_gid_with_other_content_already_exists(wire: Wire, site: Site) -> None:
    tx = wire.tx(new_gid(), labels={"tenant": "a"})
    await tx.begin()
    tx.labels = {"tenant": "b"}
    with refused("ALREADY_EXISTS", "CONTENT_MISMATCH") as refusal:
        await tx.begin()
    assert refusal.definite
    with refused("ALREADY_EXISTS", "CONTENT_MISMATCH", "names other work"):
        await wire.tx(tx.gid, name="another").begin()
    # Another one by the same name gets neither the transaction nor its row.
    other = wire.tx(tx.gid)
    with refused("ALREADY_EXISTS", "IN_PROGRESS") as refusal:
        await other.begin()
    assert refusal.facts["tx_id"] == tx.tx_id
    assert int(refusal.facts["deadline_us"]) == tx.deadline_us
    with refused("ALREADY_EXISTS", "IN_PROGRESS"):
        await other.commit(other.prepare(site.accounts, "1", tx.gid))
    await other.rollback(other.branch("1", "accounts"), gid="")
    # A branch by a known number that is something else.
    await tx.enlist(tx.branch("1", "accounts"))
    with refused("ALREADY_EXISTS", "CONTENT_MISMATCH"):
        await tx.enlist(tx.branch("1", "ledger"))
    with refused("ALREADY_EXISTS", "CONTENT_MISMATCH"):
        await tx.commit(tx.branch("1", "ledger"))
    assert told((await tx.get()).outcome)[0] == "ACTIVE"
    await tx.rollback(tx.branch("1", "accounts"))
    await eventually(lambda: not site.prepared(other.tx_id))


async def test_5_a_commit_with_another_list_than_before_already_exists(wire: Wire, site: Site) -> None:
    tx = wire.tx()
    branches = [tx.prepare(site.accounts, "1", tx.tx_id), tx.prepare(site.ledger, "2", tx.tx_id)]
    await tx.commit(*branches)
    with refused("ALREADY_EXISTS", "CONTENT_MISMATCH"):
        await tx.commit(*branches, tx.branch("3", "ledger"))
    assert told(await tx.commit(*branches))[0] == "COMMITTED"


# ---- 6 ----


async def test_6_get_of_an_unknown_gid_is_not_found(client: Client, wire: Wire) -> None:
    for what in ({"gid": new_gid("nobody")}, {"tx_id": wire.tx().tx_id}):
        with refused("NOT_FOUND", "NOT_FOUND", "no outcome"):
            await wire.get(**what)
    assert await client.coord.get(new_gid("nobody")) is None


async def test_6_enlist_after_the_decision_is_refused(wire: Wire, site: Site) -> None:
    committed, aborted = wire.tx(new_gid()), wire.tx(new_gid())
    await committed.begin()
    await aborted.begin()
    await committed.commit(committed.prepare(site.accounts, "1", committed.gid))
    await aborted.rollback()
    for tx in (committed, aborted):
        before = await tx.get()
        with refused("FAILED_PRECONDITION", "DECIDED") as refusal:
            await tx.enlist(tx.branch("2", "ledger"))
        assert refusal.definite
        assert [b.spec.id for b in (await tx.get()).branches] == [b.spec.id for b in before.branches]


async def test_6_commit_after_abort_is_refused_with_the_reason(wire: Wire, site: Site) -> None:
    tx = wire.tx(new_gid())
    await tx.begin()
    branch = tx.prepare(site.accounts, "1", tx.gid)
    await tx.rollback(branch, reason="SOLD_OUT")
    with refused("FAILED_PRECONDITION", "SOLD_OUT"):
        await tx.commit(branch)
    assert (site.counts(tx.gid), site.prepared(tx.tx_id)) == ((0, 0), [])


async def test_6_commit_after_abort_tells_the_abort(client: Client, wire: Wire, site: Site) -> None:
    """However it is answered: never as done, and the SDK raises Aborted with the reason."""
    gid = new_gid()
    with pytest.raises(Aborted) as caught:
        async with client.coord.begin("pay", gid=gid) as g:
            await client.write_both(g, gid)
            other = wire.tx(gid)
            other.tx_id, other.deadline_us, other.begun = g.tx_id, g.deadline_us, True
            await other.rollback(initiator=False, reason="SOLD_OUT")
    assert (caught.value.reason, caught.value.definite) == ("SOLD_OUT", True)
    assert g.outcome is not None
    assert g.outcome.aborted
    await eventually(lambda: not site.prepared(g.tx_id))
    assert site.counts(gid) == (0, 0)


# ---- 7 ----


async def test_7_after_the_deadline_enlist_and_commit_are_refused_and_branches_undone(
    wire: Wire, site: Site
) -> None:
    tx = wire.tx(new_gid(), seconds=0.7)
    await tx.begin()
    branches = [tx.prepare(site.accounts, "1", tx.gid), tx.prepare(site.ledger, "2", tx.gid)]
    await tx.enlist(branches[0])
    assert told(await tx.reached(c.WAIT_LEVEL_COMMITTED)) == ("ABORTED", "deadline", "DEADLINE")
    with refused("FAILED_PRECONDITION", "DECIDED"):
        await tx.enlist(tx.branch("3", "ledger"))
    assert site.counts(tx.gid) == (0, 0)
    # The second was never enlisted: the scanner finds it after the grace.
    await eventually(lambda: not site.prepared(tx.tx_id))


async def test_7_commit_after_the_deadline_is_refused_with_the_reason(wire: Wire, site: Site) -> None:
    tx = wire.tx(new_gid(), seconds=0.3)
    await tx.begin()
    branch = tx.prepare(site.accounts, "1", tx.gid)
    await tx.reached(c.WAIT_LEVEL_COMMITTED)
    with refused("FAILED_PRECONDITION", "DEADLINE"):
        await tx.commit(branch)


async def test_7_a_commit_that_comes_first_after_the_deadline_is_an_abort(wire: Wire, site: Site) -> None:
    """Without a gid nobody knows it: there is no row that a deadline could end."""
    tx = wire.tx(seconds=0.3)
    branch = tx.prepare(site.accounts, "1", tx.tx_id)
    await asyncio.sleep(0.4)  # the deadline itself is what is waited for
    for _ in range(2):  # the same answer to the same request
        with refused("FAILED_PRECONDITION", "DEADLINE"):
            await tx.commit(branch)
    with refused("FAILED_PRECONDITION", "DEADLINE"):
        await wire.tx(new_gid(), seconds=-1).begin()
    assert (site.counts(tx.tx_id), site.prepared(tx.tx_id)) == ((0, 0), [])
