"""Bad input: each kind gets its own clear error, and nothing half-written is left."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import multiprocessing
import os
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.support.acceptance import INSERT, Client, Site, client_of, eventually, new_gid
from tests.support.acceptance_wire import S, Wire, refused, told
from txcoord_client import (
    Coordinator,
    ForkedAfterUse,
    NotIdle,
    NoTransaction,
    Rejected,
    ResourceMismatch,
    Unavailable,
    UnknownResource,
)
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb


async def nothing_of(wire: Wire, tx_id: str) -> None:
    """The log has never heard of it."""
    with refused("NOT_FOUND", "NOT_FOUND"):
        await wire.get(tx_id=tx_id)


# ---- names and ids ----


@pytest.mark.parametrize("gid", ["with space", "ümlaut", "x" * 49, "a/b", "a'; DROP TABLE note"])
async def test_a_bad_gid(client: Client, wire: Wire, gid: str) -> None:
    with pytest.raises(Rejected, match="1 to 48 characters") as caught:
        client.coord.begin("pay", gid=gid)
    assert (caught.value.reason, caught.value.definite) == ("BAD_GID", True)
    tx = wire.tx(gid)
    with refused("INVALID_ARGUMENT", "BAD_GID", "1 to 48 characters") as refusal:
        await tx.begin()
    assert refusal.definite
    with refused("INVALID_ARGUMENT", "BAD_GID"):
        await tx.commit(tx.branch("1", "accounts"))
    await nothing_of(wire, tx.tx_id)


async def test_bad_ids_of_transactions_branches_and_namespaces(wire: Wire) -> None:
    tx = wire.tx()
    for tx_id in ("x", tx.tx_id.upper(), tx.tx_id[:-1], ""):
        with refused("INVALID_ARGUMENT", "BAD_TX_ID" if tx_id else "BAD_REQUEST"):
            await tx.begin(tx_id=tx_id)
    for number in ("", "one", "1.", "1." * 12 + "1"):
        branch = c.Branch(id=number, kind=c.KIND_XA, vote=c.VOTE_PREPARED)
        branch.xa.resource, branch.xa.xid = "accounts", tx.xid("1")
        with refused("INVALID_ARGUMENT", "BAD_BRANCH"):
            await tx.commit(branch)
    with refused("INVALID_ARGUMENT", "BAD_BRANCH", "there twice"):
        await tx.commit(tx.branch("1", "accounts"), tx.branch("1", "ledger"))
    with refused("INVALID_ARGUMENT", "BAD_NAMESPACE"):
        await tx.begin(namespace="no such thing")
    with refused("INVALID_ARGUMENT", "BAD_REQUEST", "deadline_us is missing"):
        await tx.commit(tx.branch("1", "accounts"), deadline_us=0)
    await nothing_of(wire, tx.tx_id)
    with pytest.raises(Rejected) as caught:
        Coordinator(namespace="no such thing")
    assert caught.value.reason == "BAD_NAMESPACE"


async def test_an_xid_of_another_log_or_transaction(wire: Wire) -> None:
    tx = wire.tx()
    for xid, code in (
        (tx.xid("1", log_id="0123456789"), "FAILED_PRECONDITION"),
        (wire.tx().xid("1"), "INVALID_ARGUMENT"),
        (tx.xid("2"), "INVALID_ARGUMENT"),
        ("my-own-name", "INVALID_ARGUMENT"),
    ):
        branch = tx.branch("1", "accounts")
        branch.xa.xid = xid
        with refused(code, "BAD_XID") as refusal:
            await tx.commit(branch)
        assert refusal.definite
        with refused(code, "BAD_XID"):
            await tx.enlist(branch)
    with refused("FAILED_PRECONDITION", "BAD_XID", "say Hello again"):
        await wire.call("Batch", pb.BatchRequest(log_id="0123456789"))
    await nothing_of(wire, tx.tx_id)


async def test_what_is_not_carried_out_here(wire: Wire) -> None:
    tx = wire.tx()
    part = c.DeliveryPart(target="topic:orders", operation="told")
    with refused("UNIMPLEMENTED", "NOT_SUPPORTED", "with begin, submit, enlist or commit"):
        await wire.stub.RegisterCallback(pb.RegisterCallbackRequest(gid="x"))
    with refused("PERMISSION_DENIED", "TARGET_NOT_ALLOWED", "has no Kafka"):
        await tx.commit(c.Branch(id="1", kind=c.KIND_MESSAGE, delivery=part))
    with refused("INVALID_ARGUMENT", "BAD_BRANCH", "says where it goes"):
        await tx.commit(c.Branch(id="1", kind=c.KIND_MESSAGE))
    await nothing_of(wire, tx.tx_id)


async def test_a_try_or_a_step_that_was_never_enlisted(wire: Wire) -> None:
    for kind in (c.KIND_TCC, c.KIND_SAGA):
        tx = wire.tx()
        with refused("INVALID_ARGUMENT", "BAD_BRANCH"):
            await tx.commit(c.Branch(id="1", kind=kind, vote=c.VOTE_PREPARED))
        await nothing_of(wire, tx.tx_id)


# ---- too large ----


async def test_too_large(client: Client, wire: Wire) -> None:
    tx = wire.tx(new_gid())
    with refused("INVALID_ARGUMENT", "TOO_LARGE", "262145 bytes; at most 262144"):
        await tx.commit(tx.branch("1", "accounts"), result=b"x" * (256 * 1024 + 1))
    with refused("INVALID_ARGUMENT", "TOO_LARGE", "more than 1000 branches"):
        await tx.commit(*(tx.branch(str(n), "accounts") for n in range(1, 1002)))
    for labels in ({str(n): "x" for n in range(17)}, {"big": "x" * 9000}):
        tx.labels = labels
        with refused("INVALID_ARGUMENT", "TOO_LARGE"):
            await tx.begin()
    await nothing_of(wire, tx.tx_id)
    with refused("INVALID_ARGUMENT", "TOO_LARGE", "1001 operations"):
        await wire.call("Batch", pb.BatchRequest(operations=[pb.Operation(op_id=n) for n in range(1001)]))


async def test_too_large_through_the_sdk(client: Client, wire: Wire, site: Site) -> None:
    """Refused at the commit: what was prepared by then is rolled back."""
    with pytest.raises(Rejected) as caught:
        async with client.coord.begin("pay", labels={str(n): "x" for n in range(17)}, gid=new_gid()):
            pytest.fail("it was begun")
    assert caught.value.reason == "TOO_LARGE"
    body = new_gid()
    with pytest.raises(Rejected, match="the result has") as caught:
        async with client.coord.begin("pay", gid=body) as g:
            await client.write_both(g, body)
            g.result = b"x" * (256 * 1024 + 1)
    assert (caught.value.reason, caught.value.definite) == ("TOO_LARGE", True)
    await eventually(lambda: not site.prepared(g.tx_id))
    assert (site.counts(body), (await client.ended(body)).state) == ((0, 0), "ABORTED")


async def test_a_deadline_too_far_away_or_none_at_all(client: Client, wire: Wire) -> None:
    with pytest.raises(Rejected) as caught:
        async with client.coord.begin("pay", timeout=25 * 3600):
            pytest.fail("it was begun")
    assert caught.value.reason == "DEADLINE_TOO_FAR"
    with pytest.raises(Rejected):
        client.coord.begin("pay", timeout=0)
    tx = wire.tx(seconds=25 * 3600)
    with refused("INVALID_ARGUMENT", "DEADLINE_TOO_FAR"):
        await tx.begin()
    with refused("INVALID_ARGUMENT", "DEADLINE_TOO_FAR"):
        await tx.rollback()
    await nothing_of(wire, tx.tx_id)
    assert wire.hello.limits.max_deadline_us == 24 * 3600 * S


async def test_one_bad_operation_of_a_batch_fails_alone(wire: Wire, site: Site) -> None:
    good, bad = wire.tx(new_gid()), wire.tx("no gid")
    operations = [
        pb.Operation(
            op_id=number, begin=pb.BeginRequest(tx_id=tx.tx_id, gid=tx.gid, deadline_us=tx.deadline_us)
        )
        for number, tx in ((1, bad), (2, good))
    ]
    operations.append(pb.Operation(op_id=3))
    response = await wire.call("Batch", pb.BatchRequest(operations=operations))
    results = {r.op_id: r for r in response.results}
    assert (results[1].status.reason, results[1].status.definite) == ("BAD_GID", True)
    assert told(results[2].begin.outcome)[0] == "ACTIVE"
    assert results[3].status.reason == "NOT_SUPPORTED"
    good.begun = True
    await good.rollback()


# ---- resources ----


async def test_an_unknown_resource(client: Client, wire: Wire, site: Site) -> None:
    tx = wire.tx()
    with refused("FAILED_PRECONDITION", "UNKNOWN_RESOURCE", "accounts, ledger") as refusal:
        await tx.commit(tx.branch("1", "stock"))
    assert refusal.facts["resource"] == "stock"
    with refused("FAILED_PRECONDITION", "UNKNOWN_RESOURCE"):
        await tx.rollback(resources=["stock"])
    await nothing_of(wire, tx.tx_id)

    async with Coordinator(site.address, resources={"stock": client.accounts}) as coord:
        with pytest.raises(UnknownResource, match="it has: accounts, ledger"):
            async with coord.begin("pay") as g, g.xa(client.accounts) as db:
                await db.execute(text(INSERT), {"body": "x"})
    async with Coordinator(site.address) as coord:
        with pytest.raises(UnknownResource, match="give it one in Coordinator"):
            async with coord.begin("pay") as g, g.xa(client.accounts):
                pytest.fail("it was enlisted")
        with pytest.raises(UnknownResource):
            async with coord.begin("pay", gid=new_gid(), resources=["stock"]):
                pytest.fail("it was begun")


async def test_swapped_resources(client: Client, site: Site) -> None:
    """The service has its two engines under each other's names: found before its first statement."""
    swapped = {"accounts": client.ledger, "ledger": client.accounts}
    body = new_gid()
    async with Coordinator(site.address, resources=swapped) as coord:
        for engine in swapped.values():
            with pytest.raises(ResourceMismatch, match="One of the two URLs is wrong") as caught:
                async with coord.begin("pay") as g:
                    await client.write(g, engine, body)
            assert caught.value.facts["here"] != caught.value.facts["coordinator"]
    assert site.counts(body) == (0, 0)


async def test_a_database_that_was_never_prepared_for_txcoord(
    client: Client, site: Site, pg_database: Any
) -> None:
    engine = create_async_engine(pg_database(site.accounts.server))
    async with Coordinator(site.address, resources={"accounts": engine}) as coord:
        with pytest.raises(ResourceMismatch, match="resource check accounts --fix") as caught:
            async with coord.begin("pay") as g, g.xa(engine) as db:
                await db.execute(text("CREATE TABLE t (i int)"))
        assert caught.value.reason == "RESOURCE_NOT_PREPARED"
    await engine.dispose()


async def test_the_services_wrong_credentials_are_the_drivers_own_error(client: Client, site: Site) -> None:
    engine = create_async_engine(site.accounts.url.replace("postgres@", "nobody_knows@"))
    body = new_gid()
    async with Coordinator(site.address, resources={"accounts": engine, "ledger": client.ledger}) as coord:
        with pytest.raises(DBAPIError, match="nobody_knows"):
            async with coord.begin("pay", gid=body) as g:
                await client.write(g, client.ledger, body)
                await client.write(g, engine, body)
    await engine.dispose()
    assert (site.counts(body), (await client.ended(body)).state) == ((0, 0), "ABORTED")


# ---- use of the SDK ----


async def test_enlisting_outside_of_a_transaction(client: Client, site: Site) -> None:
    """Never a silent local commit."""
    with pytest.raises(NoTransaction):
        client.coord.xa(client.accounts)
    with pytest.raises(NoTransaction):
        _ = client.coord.current
    body = new_gid()
    async with client.coord.begin("pay") as g:
        await client.write_both(g, body)
    for stale in (lambda: g.xa(client.accounts), lambda: client.coord.xa(client.accounts)):
        with pytest.raises(NoTransaction):
            async with stale():
                pytest.fail("it was enlisted")
    assert site.counts(body) == (1, 1)


async def test_a_connection_or_session_that_is_not_idle(client: Client, site: Site) -> None:
    body = new_gid()
    raw = await asyncpg.connect(site.ledger.dsn)
    async with AsyncSession(client.accounts) as session, client.accounts.connect() as connection:
        for busy in (session, connection):
            await busy.execute(text(INSERT), {"body": body})  # type: ignore[attr-defined]
            with pytest.raises(NotIdle):
                async with client.coord.begin("pay") as g, g.xa(busy):
                    pytest.fail("it was enlisted")
            await busy.rollback()  # type: ignore[attr-defined]
        async with raw.transaction():
            with pytest.raises(NotIdle):
                async with client.coord.begin("pay") as g, g.xa(raw, resource="ledger"):
                    pytest.fail("it was enlisted")
            await raw.execute("INSERT INTO note VALUES ($1)", body)
    await raw.close()
    assert site.counts(body) == (0, 1), "their own transactions are their own"


async def test_what_is_no_database(client: Client) -> None:
    async with client.coord.begin("pay") as g:
        for thing in ("postgresql://localhost/x", None, object()):
            with pytest.raises(Rejected, match="AsyncEngine, AsyncConnection or AsyncSession"):
                async with g.xa(thing):
                    pass
    with pytest.raises(Rejected, match="accepted, decided, committed, delivered"):
        client.coord.begin("pay", wait="done")
    with pytest.raises(Rejected):
        Coordinator(resources={"accounts": object()})


async def test_commit_and_rollback_inside_a_branch(client: Client, site: Site) -> None:
    body = new_gid()
    with pytest.raises(Rejected, match="begin_nested") as caught:
        async with client.coord.begin("pay") as g:
            await client.write(g, client.ledger, body)
            async with g.xa(client.accounts) as db:
                await db.execute(text(INSERT), {"body": body})
                await db.commit()
    assert caught.value.reason == "GUARD"
    await eventually(lambda: not site.prepared(g.tx_id))
    assert site.counts(body) == (0, 0)


async def test_a_scope_is_entered_once(client: Client) -> None:
    scope = client.coord.begin("pay")
    async with scope:
        pass
    with pytest.raises(Rejected, match="entered once"):
        await scope.__aenter__()


async def test_forked_after_use(client: Client) -> None:
    async with client.coord.begin("pay"):
        pass
    reader, writer = os.pipe()
    child = os.fork()
    if not child:  # nothing of gRPC may be touched here
        try:
            asyncio.set_event_loop(None)
            client.coord._runtime()
        except ForkedAfterUse as error:
            os.write(writer, error.reason.encode())
        finally:
            os._exit(0)
    os.close(writer)
    assert await asyncio.to_thread(os.waitpid, child, 0) == (child, 0)
    assert os.read(reader, 100) == b"FORKED_AFTER_USE"
    os.close(reader)
    assert multiprocessing.active_children() == []


async def test_nobody_answers(tmp_path: Any) -> None:
    async with Coordinator("127.0.0.1:1", call_timeout=0.3) as coord:
        with pytest.raises(Unavailable) as caught:
            async with coord.begin("pay"):
                pytest.fail("it was begun")
        assert caught.value.reason == "UNAVAILABLE"
        with pytest.raises(Unavailable):
            await coord.get("x")


async def test_two_namespaces_do_not_see_each_other(site: Site, client: Client, wire: Wire) -> None:
    gid = new_gid()
    async with client_of(site, namespace="shop") as shop:
        for one in (client, shop):
            async with one.coord.begin("pay", gid=gid) as g:
                await one.write_both(g, gid)
        assert site.counts(gid) == (2, 2)
        with refused("NOT_FOUND", "NOT_FOUND"):
            await wire.get(tx_id=g.tx_id)
        assert told((await wire.get(tx_id=g.tx_id, namespace="shop")).outcome)[0] == "COMMITTED"
