"""Messages, as *Behaviours* lists them: sent with a local transaction on PostgreSQL and on MariaDB, or as branches of
any other one, and taken by participants on either."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

import txcoord_client.sync as sync
from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import INSERT, Db, Site, eventually, new_gid
from tests.support.acceptance_participants import Shop, fail, refuse, shop_on
from tests.support.acceptance_wire import refused, wire_to
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Aborted, Coordinator, Rejected, UnknownResource
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import marker, postgresql


@pytest.fixture(scope="module")
def shared(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    databases = Databases()
    site = site_on(tmp_path_factory.mktemp("message"), pg18, mariadb, databases)
    try:
        site.restart()
        yield site
    finally:
        site.stop()
        databases.drop_all()


@dataclass
class Mail:
    """The shop, what takes messages there, and a sender's SDK."""

    shop: Shop
    coord: Coordinator
    told: tuple[Any, Any]
    """By each of the two services."""

    def engine(self, name: str) -> AsyncEngine:
        return (self.shop.stock if name == "accounts" else self.shop.coupons).engine

    def db(self, name: str) -> Db:
        return self.shop.site.accounts if name == "accounts" else self.shop.site.ledger

    def came(self, body: str) -> tuple[int, ...]:
        """How often a message has acted, at each."""
        return tuple(s.db.count(f"message told {body}") for s in self.shop.services)


@pytest.fixture
async def mail(shared: Site) -> AsyncIterator[Mail]:
    async with shop_on(shared) as shop, shop.coordinator() as coord:
        yield Mail(shop, coord, (shop.stock.message(), shop.coupons.message()))


on_both = pytest.mark.parametrize("database", ["accounts", "ledger"], ids=["postgresql", "mariadb"])


def mute(coord: Coordinator) -> None:
    """From now on it tells nothing: as if its process had died when its local transaction had committed."""
    tell = coord._runtime().wire.tell

    def muted(name: str, *args: Any, **more: Any) -> Any:
        assert name in ("report", "submit_message")
        args[0].tx_id = "0" * 32
        return tell(name, *args, **more)

    coord._runtime().wire.tell = muted  # type: ignore[method-assign]


@on_both
async def test_it_leaves_with_its_local_transaction_and_not_without(mail: Mail, database: str) -> None:
    body = new_gid()
    async with mail.coord.local(mail.engine(database), wait="delivered") as tx:
        await tx.db.execute(text(INSERT), {"body": body})
        tx.message(mail.told[0], {"body": body})
        tx.message(mail.told[1], {"body": body})
    outcome = tx.transaction.outcome
    assert outcome is not None
    assert (outcome.state, outcome.decided_by, outcome.delivered) == ("COMMITTED", "database", True)
    assert (mail.db(database).count(body), mail.came(body)) == (1, (1, 1))
    other = new_gid()
    with pytest.raises(ZeroDivisionError):
        async with mail.coord.local(mail.engine(database)) as tx:
            await tx.db.execute(text(INSERT), {"body": other})
            tx.message(mail.told[0], {"body": other})
            raise ZeroDivisionError
    assert await mail.coord.get(tx_id=tx.transaction.tx_id) is None
    assert (mail.db(database).count(other), mail.came(other)) == (0, (0, 0))


@on_both
async def test_its_sender_dies_after_its_commit_and_the_database_is_asked(mail: Mail, database: str) -> None:
    body = new_gid()
    async with mail.coord.local(mail.engine(database), timeout=1) as tx:
        await tx.db.execute(text(INSERT), {"body": body})
        tx.message(mail.told[0], {"body": body})
        mute(mail.coord)
    assert mail.db(database).count(body) == 1
    found = await eventually(lambda: mail.came(body) == (1, 0), what="it was delivered")
    outcome = await mail.coord.get(tx_id=tx.transaction.tx_id)
    assert found
    assert outcome is not None
    assert (outcome.state, outcome.decided_by) == ("COMMITTED", "database")


@on_both
async def test_the_database_is_asked_first_and_a_late_commit_is_refused(mail: Mail, database: str) -> None:
    body = new_gid()
    with pytest.raises(Aborted):
        async with mail.coord.local(mail.engine(database), timeout=1) as tx:
            await tx.db.execute(text(INSERT), {"body": body})
            tx.message(mail.told[0], {"body": body})
            branch = next(iter(tx.transaction._branches.values()))
            commit = branch.commit_one_phase

            async def late(until: float) -> None:
                # Its messages are prepared; the deadline passes, and the database is asked.

                async def asked() -> bool:
                    return await state_of(mail, tx.transaction.tx_id) == "ABORTED"

                await eventually(asked)
                await commit(until + 10)

            branch.commit_one_phase = late  # type: ignore[method-assign]
    assert (mail.db(database).count(body), mail.came(body)) == (0, (0, 0))


async def state_is(mail: Mail, tx_id: str, state: str) -> bool:
    return await state_of(mail, tx_id) == state


async def state_of(mail: Mail, tx_id: str) -> str:
    found = await mail.coord.get(tx_id=tx_id)
    return str(found.state) if found is not None else ""


async def test_each_receiver_has_an_end_of_its_own_and_an_operator_sees_to_it(mail: Mail) -> None:
    body = new_gid()
    mail.shop.coupons.script.next["message told"] = [refuse("NO_SUCH_ORDER")]
    mail.shop.stock.script.next["message told"] = [fail, fail]
    async with mail.coord.begin("order", gid=body, wait="delivered") as g:
        await g.tcc(mail.shop.stock.reserve, body=body)
        for told in mail.told:
            g.message(told, {"body": body})
    assert g.outcome is not None
    assert (g.outcome.state, g.outcome.parked_deliveries, g.outcome.delivered) == ("COMMITTED", 1, False)
    assert mail.came(body) == (1, 0)
    shown = mail.shop.site.txcoord("tx", "show", body)
    assert "COMMITTED (1 delivery parked)" in shown
    assert "NO_SUCH_ORDER" in shown
    mail.shop.site.txcoord("tx", "retry", body, "--reason", "it is there now", "--yes")
    await eventually(lambda: mail.came(body) == (1, 1))
    assert mail.shop.stock.script.ops(body).count("message told") == 3


async def test_not_before_its_time(mail: Mail) -> None:
    body = new_gid()
    began = time.monotonic()
    async with mail.coord.local(mail.engine("accounts"), wait="delivered") as tx:
        tx.message(mail.told[0], {"body": body}, delay=1.2)
        await tx.db.execute(text(INSERT), {"body": body})
    assert mail.came(body) == (1, 0)
    assert time.monotonic() - began >= 1.2


async def test_a_parked_branch_holds_it_back(mail: Mail) -> None:
    body = new_gid()
    mail.shop.stock.script.next["confirm"] = [refuse()]
    async with mail.coord.begin("order", gid=body) as g:
        await g.tcc(mail.shop.stock.reserve, body=body)
        g.message(mail.told[0], {"body": body})
    shown = mail.shop.site.txcoord("tx", "show", body)
    assert "the end of these, before COMMITTED: 1 delivery" in shown
    assert mail.came(body) == (0, 0)
    mail.shop.site.txcoord("tx", "retry", body, "--reason", "mended", "--yes")
    await eventually(lambda: mail.came(body) == (1, 0))


async def test_on_a_session_and_inside_another_transaction(mail: Mail) -> None:
    body = new_gid()
    async with (
        async_sessionmaker(mail.engine("accounts"))() as session,
        mail.coord.local(session, resource="accounts", wait="delivered") as tx,
    ):
        await tx.db.execute(text(INSERT), {"body": body})
        tx.message(mail.told[0], {"body": body})
    assert (mail.shop.site.accounts.count(body), mail.came(body)) == (1, (1, 0))
    other = new_gid()
    async with mail.coord.begin("outer", wait="delivered") as g:
        async with mail.coord.local(mail.engine("accounts")) as tx:
            await tx.db.execute(text(INSERT), {"body": other})
            tx.message(mail.told[0], {"body": other})
        async with g.xa(mail.engine("ledger")) as db:
            await db.execute(text(INSERT), {"body": other})
        assert mail.came(other) == (0, 0)
    assert (mail.shop.site.counts(other), mail.came(other)) == ((1, 1), (1, 0))


CASES = ("kept", "inner", "outer", "external", "closed")


@on_both
async def test_a_session_of_ones_own_at_its_outermost_commit(mail: Mail, database: str) -> None:
    bodies = {name: new_gid() for name in CASES}
    tx_ids: dict[str, str] = {}
    engine = mail.engine(database)
    sessions = async_sessionmaker(engine)

    async def say(session: Any, which: str) -> None:
        await session.execute(text(INSERT), {"body": bodies[which]})
        async with mail.coord.attach(session, resource=database, timeout=20) as tx:
            tx.message(mail.told[0], {"body": bodies[which]})
        tx_ids[which] = tx.transaction.tx_id

    async with sessions() as session:
        await say(session, "kept")
        savepoint = await session.begin_nested()
        await say(session, "inner")
        await savepoint.rollback()
        assert mail.came(bodies["kept"]) == (0, 0)
        await session.commit()
    async with sessions() as session:
        async with session.begin_nested():
            await say(session, "outer")
        await session.rollback()
    async with engine.connect() as connection:
        await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            await say(session, "external")
            await session.commit()
        assert await state_of(mail, tx_ids["external"]) == "ACTIVE"
        await connection.rollback()
    async with sessions() as session:
        await say(session, "closed")
    await only_what_was_kept(mail, database, bodies, tx_ids)


async def only_what_was_kept(
    mail: Mail, database: str, bodies: dict[str, str], tx_ids: dict[str, str]
) -> None:
    """The database says so of each: where it was not asked at once, at the deadline."""
    await eventually(lambda: mail.came(bodies["kept"]) == (1, 0))
    for which, tx_id in tx_ids.items():
        state = "COMMITTED" if which == "kept" else "ABORTED"
        await eventually(lambda tx_id=tx_id, state=state: state_is(mail, tx_id, state), within=60)
    for which, body in bodies.items():
        kept = which == "kept"
        assert (mail.db(database).count(body), mail.came(body)) == (int(kept), (int(kept), 0)), which


@on_both
async def test_a_session_in_a_thread_at_its_outermost_commit(mail: Mail, shared: Site, database: str) -> None:
    bodies = {name: new_gid() for name in CASES}
    tx_ids: dict[str, str] = {}
    url = mail.db(database).url.replace("+asyncpg", "+psycopg").replace("+asyncmy", "+pymysql")

    def work() -> None:
        engine = create_engine(url)
        places = {"stock": mail.shop.address}
        with sync.Coordinator(shared.address, resources={database: engine}, participants=places) as coord:

            def say(session: Session, which: str) -> None:
                session.execute(text(INSERT), {"body": bodies[which]})
                with coord.attach(session, resource=database, timeout=20) as tx:
                    tx.message("stock", {"body": bodies[which]}, operation="stock.told")
                tx_ids[which] = tx.transaction.tx_id

            with Session(engine) as session:
                say(session, "kept")
                savepoint = session.begin_nested()
                say(session, "inner")
                savepoint.rollback()
                session.commit()
            with Session(engine) as session:
                with session.begin_nested():
                    say(session, "outer")
                session.rollback()
            with engine.connect() as connection:
                connection.begin()
                with Session(connection, join_transaction_mode="create_savepoint") as session:
                    say(session, "external")
                    session.commit()
                connection.rollback()
            with Session(engine) as session:
                say(session, "closed")
        engine.dispose()

    await asyncio.to_thread(work)
    await only_what_was_kept(mail, database, bodies, tx_ids)


async def test_attached_inside_another_transaction_only_to_a_branch_of_it(mail: Mail) -> None:
    bodies = {name: new_gid() for name in ("alone", "joined", "outside", "failed")}
    sessions = async_sessionmaker(mail.engine("accounts"))

    async def say(session: Any, which: str, *, fails: bool = False) -> None:
        await session.execute(text(INSERT), {"body": bodies[which]})
        async with mail.coord.attach(session, resource="accounts") as tx:
            tx.message(mail.told[0], {"body": bodies[which]})
            if fails:
                raise ZeroDivisionError

    async with sessions() as own, sessions() as session, mail.coord.begin("outer") as g:
        with pytest.raises(Rejected, match="no branch of the transaction"):
            await say(own, "alone")
        await own.rollback()
        with mail.coord.outside():
            await say(own, "outside")
            await own.commit()
        async with g.xa(session, resource="accounts") as db:
            await say(db, "joined")
    async with sessions() as session:
        with pytest.raises(Aborted, match="left a block of attach"):
            async with mail.coord.begin("outer") as g, g.xa(session, resource="accounts") as db:
                with contextlib.suppress(ZeroDivisionError):
                    await say(db, "failed", fails=True)
    await eventually(lambda: all(mail.came(bodies[which]) == (1, 0) for which in ("joined", "outside")))
    for which, body in bodies.items():
        count = int(which in ("joined", "outside"))
        assert (mail.db("accounts").count(body), mail.came(body)) == (count, (count, 0)), which


async def test_what_a_savepoint_could_not_take_back_is_refused_in_it(mail: Mail, shared: Site) -> None:
    body = new_gid()
    async with async_sessionmaker(mail.engine("ledger"))() as session:
        for target in (mail.engine("accounts"), session):
            async with mail.coord.local(target, resource="" if target is not session else "ledger") as tx:
                savepoint = await tx.db.begin_nested()
                resource = tx.transaction._local[0].resource
                async with mail.coord.attach(tx.db, resource=resource) as attached:
                    for say in (tx.message, tx.notify, attached.message):
                        with pytest.raises(Rejected, match="inside of a savepoint"):
                            say(mail.told[0], {"body": body})
                await savepoint.rollback()

    def work() -> None:
        import psycopg

        url = shared.accounts.url.replace("+asyncpg", "")
        engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        with (
            psycopg.connect(url) as plain,
            engine.connect() as connection,
            Session(engine) as session,
            sync.Coordinator(
                shared.address, resources={"accounts": engine}, participants={"stock": mail.shop.address}
            ) as coord,
        ):
            for target, nested in (
                (plain, "transaction"),
                (connection, "begin_nested"),
                (session, "begin_nested"),
            ):
                with coord.local(target, resource="accounts", wait="delivered") as tx:
                    with getattr(tx.db, nested)(), pytest.raises(Rejected, match="inside of a savepoint"):
                        tx.message("stock", {"body": body}, operation="stock.told")
                    tx.message("stock", {"body": body}, operation="stock.told")
        engine.dispose()

    await asyncio.to_thread(work)
    assert mail.came(body) == (3, 0)


@on_both
async def test_a_connection_of_ones_own_by_one_call(mail: Mail, database: str) -> None:
    body = new_gid()
    async with mail.engine(database).connect() as connection:
        await connection.execute(text(INSERT), {"body": body})
        async with mail.coord.attach(connection, resource=database) as tx:
            tx.message(mail.told[0], {"body": body})
        await connection.commit()
    assert (await tx.settle()).committed
    await eventually(lambda: mail.came(body) == (1, 0))


async def test_from_threads(mail: Mail, shared: Site) -> None:
    bodies = [new_gid() for _ in range(3)]

    def work() -> None:
        engine = create_engine(shared.accounts.url.replace("+asyncpg", "+psycopg"))
        places = {"stock": mail.shop.address}
        with sync.Coordinator(shared.address, resources={"accounts": engine}, participants=places) as coord:
            with coord.local(engine, wait="delivered") as tx:
                tx.db.execute(text(INSERT), {"body": bodies[0]})
                tx.message("stock", {"body": bodies[0]}, operation="stock.told")
            with Session(engine) as session:
                for body in bodies[1:]:
                    session.execute(text(INSERT), {"body": body})
                    with coord.attach(session) as attached:
                        attached.message("stock", {"body": body}, operation="stock.told")
                    if body == bodies[1]:
                        session.commit()
                session.rollback()
        engine.dispose()

    await asyncio.to_thread(work)
    assert mail.came(bodies[0]) == (1, 0)
    await eventually(lambda: mail.came(bodies[1]) == (1, 0))
    assert [shared.accounts.count(body) for body in bodies] == [1, 1, 0]
    assert mail.came(bodies[2]) == (0, 0)


async def test_one_that_nobody_could_ask_about_is_refused_at_its_start(mail: Mail) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(UnknownResource):
        async with mail.coord.local(engine):
            pytest.fail("it began")
    with pytest.raises(UnknownResource):
        async with mail.coord.local(engine, resource="elsewhere"):
            pytest.fail("it began")
    await engine.dispose()


@pytest.mark.parametrize("submitted", [True, False], ids=["submitted", "asked about"])
async def test_by_the_wire_itself(mail: Mail, shared: Site, submitted: bool) -> None:
    """As a sender in another language does it: prepare, the local transaction with its marker, submit."""
    body = new_gid()
    async with wire_to(shared.address) as wire:
        tx = wire.tx(seconds=30 if submitted else 1)
        part = c.DeliveryPart(
            target=mail.shop.address, operation="stock.told", payload=f'{{"body": "{body}"}}'.encode()
        )
        prepare = pb.PrepareMessageRequest(
            tx_id=tx.tx_id,
            deadline_us=tx.deadline_us,
            branches=[c.Branch(id="1", kind=c.KIND_MESSAGE, delivery=part)],
            check=pb.MessageCheck(resource="accounts"),
        )
        for _ in range(2):
            assert (await wire.call("PrepareMessage", prepare)).outcome.state == c.STATE_ACTIVE
        limit_us = tx.deadline_us + wire.hello.limits.grace_us
        insert = postgresql.insert_marker(tx.tx_id, marker.ONE_BRANCH, marker.ONE, limit_us)
        shared.accounts.sql(f"BEGIN; INSERT INTO note VALUES ('{body}'); {insert}; COMMIT")
        submit = pb.SubmitMessageRequest(
            tx_id=tx.tx_id, deadline_us=tx.deadline_us, wait=c.WAIT_LEVEL_DELIVERED
        )
        for _ in range(2 if submitted else 0):
            outcome = (await wire.call("SubmitMessage", submit)).outcome
            assert (outcome.state, outcome.delivered) == (c.STATE_COMMITTED, True)
        await eventually(lambda: mail.came(body) == (1, 0))
        for check, code, reason in (
            (pb.MessageCheck(), "INVALID_ARGUMENT", "BAD_REQUEST"),
            (pb.MessageCheck(resource="accounts", target="nobody"), "INVALID_ARGUMENT", "BAD_REQUEST"),
            (pb.MessageCheck(resource="accounts", identity="9d0f"), "INVALID_ARGUMENT", "BAD_REQUEST"),
            (pb.MessageCheck(target="nobody"), "INVALID_ARGUMENT", "UNKNOWN_PARTICIPANT"),
            (pb.MessageCheck(target="http://169.254.169.254"), "PERMISSION_DENIED", "TARGET_NOT_ALLOWED"),
            (pb.MessageCheck(target=mail.shop.address, participant="?"), "INVALID_ARGUMENT", "BAD_REQUEST"),
            (pb.MessageCheck(resource="accounts", interval_us=1), "UNIMPLEMENTED", "NOT_SUPPORTED"),
        ):
            prepare.check.CopyFrom(check)
            with refused(code, reason):
                await wire.call("PrepareMessage", prepare)
        with refused("NOT_FOUND", "NOT_FOUND"):
            await wire.call("SubmitMessage", pb.SubmitMessageRequest(tx_id=wire.tx().tx_id))


async def test_what_is_not_carried_out_is_refused_at_the_edge(mail: Mail, shared: Site) -> None:
    async with wire_to(shared.address) as wire:
        for target, code, reason in (
            ("topic:orders", "PERMISSION_DENIED", "TARGET_NOT_ALLOWED"),
            ("sql:ledger", "PERMISSION_DENIED", "TARGET_NOT_ALLOWED"),
            ("nobody", "INVALID_ARGUMENT", "UNKNOWN_PARTICIPANT"),
            ("grpc://169.254.169.254:80", "PERMISSION_DENIED", "TARGET_NOT_ALLOWED"),
        ):
            part = c.DeliveryPart(target=target, operation="a.b")
            tx = wire.tx()
            with refused(code, reason):
                branch = c.Branch(id="1", kind=c.KIND_MESSAGE, delivery=part)
                request = pb.CommitRequest(tx_id=tx.tx_id, deadline_us=tx.deadline_us, branches=[branch])
                await wire.call("Commit", request)
            with refused(code, reason):
                check = pb.MessageCheck(resource="accounts")
                prepare = pb.PrepareMessageRequest(
                    tx_id=tx.tx_id, deadline_us=tx.deadline_us, branches=[branch], check=check
                )
                await wire.call("PrepareMessage", prepare)
    with pytest.raises(Rejected):
        async with mail.coord.begin("order") as g:
            g.message("topic:orders", {})
