"""Messages with a local transaction in a database that the coordinator does not know: its participant is asked."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.acceptance import test_message
from tests.acceptance.test_message import Mail, mute, on_both, state_is, state_of
from tests.support.acceptance import INSERT, Site, eventually, new_gid
from tests.support.acceptance_wire import wire_to
from txcoord_client import Rejected, Unavailable
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import marker, postgresql

shared, mail = test_message.shared, test_message.mail


def asked_about(site: Site, tx_id: str) -> bool:
    """Was it asked, without an answer, what became of it?"""
    lines = site.coordinator.tail(50_000).splitlines()
    return any("deadline.refused" in line and tx_id in line for line in lines)


def answerer(mail: Mail, database: str) -> Any:
    return (mail.shop.stock if database == "accounts" else mail.shop.coupons).participant


@on_both
async def test_its_participant_is_asked_in_place_of_its_database(
    mail: Mail, shared: Site, database: str
) -> None:
    bodies = {name: new_gid() for name in ("told", "raised", "died", "rolled back", "attached", "open")}
    by, engine = answerer(mail, database), mail.engine(database)
    told = mail.told[0]
    async with mail.coord.local(engine, answered_by=by, wait="delivered") as tx:
        await tx.db.execute(text(INSERT), {"body": bodies["told"]})
        async with tx.db.begin_nested():
            with pytest.raises(Rejected, match="inside of a savepoint"):
                tx.message(told, {"body": bodies["told"]})
        tx.message(told, {"body": bodies["told"]})
    outcome = tx.transaction.outcome
    assert outcome is not None
    assert (outcome.state, outcome.decided_by, outcome.delivered) == ("COMMITTED", "database", True)
    with pytest.raises(ZeroDivisionError):
        async with mail.coord.local(engine, answered_by=by) as tx:
            await tx.db.execute(text(INSERT), {"body": bodies["raised"]})
            tx.message(told, {"body": bodies["raised"]})
            raise ZeroDivisionError
    async with mail.coord.local(engine, answered_by=by, timeout=1) as tx:
        await tx.db.execute(text(INSERT), {"body": bodies["died"]})
        tx.message(told, {"body": bodies["died"]})
        mute(mail.coord)
    async with engine.connect() as connection:
        await connection.execute(text(INSERT), {"body": bodies["rolled back"]})
        async with mail.coord.attach(connection, answered_by=by, timeout=1) as undone:
            undone.message(told, {"body": bodies["rolled back"]})
        await connection.rollback()
    async with AsyncSession(engine) as session:
        await session.execute(text(INSERT), {"body": bodies["attached"]})
        async with mail.coord.attach(session, answered_by=by) as attached:
            attached.message(told, {"body": bodies["attached"]})
        await session.commit()
    async with engine.connect() as connection:
        # Open at its deadline, it is asked about again and again.
        await connection.execute(text(INSERT), {"body": bodies["open"]})
        async with mail.coord.attach(connection, answered_by=by, timeout=1) as late:
            late.message(told, {"body": bodies["open"]})
        tx_id = late.transaction.tx_id
        await eventually(lambda: asked_about(shared, tx_id))
        with pytest.raises(Unavailable):
            await late.settle()
        assert await state_of(mail, tx_id) == "ACTIVE"
        await connection.commit()
    for name, there in (("told", 1), ("raised", 0), ("died", 1), ("attached", 1), ("open", 1)):
        await eventually(lambda n=name, t=there: mail.came(bodies[n]) == (t, 0), what=name)
        assert mail.db(database).count(bodies[name]) == there, name
    await eventually(lambda: state_is(mail, undone.transaction.tx_id, "ABORTED"))
    assert (mail.db(database).count(bodies["rolled back"]), mail.came(bodies["rolled back"])) == (0, (0, 0))


async def test_a_participant_that_is_away_is_asked_until_it_is_back(mail: Mail, shared: Site) -> None:
    """Another life of the coordinator goes on asking; and whoever commits after the answer fails."""
    kept, undone, late = (new_gid() for _ in range(3))
    by, engine = answerer(mail, "accounts"), mail.engine("accounts")
    await mail.shop.leave()
    for body in (kept, undone):
        async with engine.connect() as connection:
            await connection.execute(text(INSERT), {"body": body})
            async with mail.coord.attach(connection, answered_by=by, timeout=1) as tx:
                tx.message(mail.told[0], {"body": body})
            await (connection.commit() if body == kept else connection.rollback())
    part = c.DeliveryPart(
        target=mail.shop.address, operation="stock.told", payload=f'{{"body": "{late}"}}'.encode()
    )
    async with wire_to(shared.address) as wire:
        slow = wire.tx(seconds=1)
        check = pb.MessageCheck(target=mail.shop.address, participant="stock")
        await wire.call(
            "PrepareMessage",
            pb.PrepareMessageRequest(
                tx_id=slow.tx_id,
                deadline_us=slow.deadline_us,
                branches=[c.Branch(id="1", kind=c.KIND_MESSAGE, delivery=part)],
                check=check,
            ),
        )
    asked = "which is asked since the deadline"
    await eventually(lambda: asked in mail.shop.site.txcoord("tx", "show", tx.transaction.tx_id))
    shared.restart()  # Not in a thread, with which it would die.
    await eventually(lambda: asked_about(shared, slow.tx_id))
    await mail.shop.serve()
    await eventually(lambda: mail.came(kept) == (1, 0))
    for tx_id in (tx.transaction.tx_id, slow.tx_id):
        await eventually(lambda i=tx_id: state_is(mail, i, "ABORTED"))
    insert = postgresql.insert_marker(slow.tx_id, marker.ONE_BRANCH, marker.ONE, 2**60)
    with pytest.raises(Exception, match="duplicate key"):
        shared.accounts.sql(f"BEGIN; INSERT INTO note VALUES ('{late}'); {insert}; COMMIT")
    assert [shared.accounts.count(b) for b in (kept, undone, late)] == [1, 0, 0]
    assert (mail.came(undone), mail.came(late)) == ((0, 0), (0, 0))


@on_both
async def test_who_has_another_database_says_nothing(mail: Mail, shared: Site, database: str) -> None:
    """One of several instances, say, whose URL is another shard's: its tombstone would prove nothing."""
    body, by, engine = new_gid(), answerer(mail, database), mail.engine(database)
    other = "ledger" if database == "accounts" else "accounts"
    await answerer(mail, other)._home()
    async with mail.coord.local(engine, answered_by=by, timeout=1) as tx:
        await tx.db.execute(text(INSERT), {"body": body})
        tx.message(mail.told[0], {"body": body})
        mute(mail.coord)
        by.db = mail.engine(other)
    tx_id = tx.transaction.tx_id
    await eventually(lambda: asked_about(shared, tx_id))
    assert "this is another database than the sender's" in shared.coordinator.tail(50_000)
    assert await state_of(mail, tx_id) == "ACTIVE"
    key = f"'{tx_id}'" if other == "accounts" else f"X'{tx_id}'"
    assert mail.db(other).sql(f"SELECT count(*) FROM txcoord_marker WHERE tx_id = {key}") == "0"
    by.db = engine
    await eventually(lambda: mail.came(body) == (1, 0))


async def test_only_its_own_database_is_answered_for(mail: Mail) -> None:
    by = answerer(mail, "accounts")
    with pytest.raises(Rejected):
        mail.coord.local(mail.engine("ledger"), answered_by=by)
    async with mail.engine("ledger").connect() as connection:
        with pytest.raises(Rejected):
            mail.coord.attach(connection, answered_by=by)
    async with mail.coord.begin("outer") as g:
        with pytest.raises(Rejected):
            async with mail.coord.local(mail.engine("accounts"), answered_by=by):
                pytest.fail("it began")
        assert g.active
