"""A coordinator in process on real MariaDB and MySQL: branches that their own sessions finish, and those whose
session is gone, or hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pymysql
import pytest

from tests.support.acceptance_wire import RawTx, Wire, refused, wire_to
from tests.support.databases import Databases
from tests.support.maria_resource import Holder, MariaResource
from tests.support.virtual import eventually
from txcoord.adapters.sql.migrate import migrate
from txcoord.config import Settings
from txcoord.testing.mariadb import MariaDBServer, MySQLServer
from txcoord.wiring import Node
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker
from txcoord_client.protocol.xid import Xid

S = 1_000_000


class Shop:
    """Two databases, a coordinator in this process, and its raw client."""

    def __init__(self, node: Node, wire: Wire, databases: dict[str, MariaResource]) -> None:
        self.node = node
        self.wire = wire
        self.databases = databases

    def tx(self, **more: Any) -> RawTx:
        return self.wire.tx(**more)

    def prepare(self, tx: RawTx, number: str, name: str, *, held: bool = True) -> tuple[c.Branch, Holder]:
        """Work in a database, prepared as the SDK does it."""
        db = self.databases[name]
        conn = db.session()
        bare = tx.xid(number)
        x = Xid(
            self.wire.hello.log_id, tx.deadline_us, tx.tx_id, number, conn.thread_id() if db.mariadb else 0
        )
        holder = Holder(conn, x)
        db.holders.append(holder)
        not_after_us = tx.deadline_us + self.wire.hello.limits.grace_us
        holder.sql(my.xa_start(str(x)))
        holder.sql(f"INSERT INTO work VALUES ({int(tx.tx_id[-6:], 16)})")
        holder.sql(my.insert_marker(tx.tx_id, number, marker.XA, not_after_us))
        holder.sql(my.xa_end(str(x)))
        holder.sql(my.xa_prepare(str(x)))
        branch = c.Branch(id=number, kind=c.KIND_XA, vote=c.VOTE_PREPARED)
        branch.xa.resource, branch.xa.xid, branch.xa.held = name, bare, held and db.mariadb
        branch.xa.connection_id = x.connection_id
        return branch, holder

    def report(self, tx: RawTx, event: int, *branches: c.Branch) -> pb.ReportRequest:
        reports = [c.BranchReport(branch=b.id, event=event, xa=b.xa) for b in branches]  # type: ignore[arg-type]
        return pb.ReportRequest(tx_id=tx.tx_id, deadline_us=tx.deadline_us, reports=reports)

    def counts(self) -> list[int]:
        return [len(db.work()) for db in self.databases.values()]


@asynccontextmanager
async def a_shop(
    folder: Path, databases: dict[str, MariaResource], *, scheme: str = "mariadb", **recovery: str
) -> AsyncIterator[Shop]:
    for number, db in enumerate(databases.values()):
        await db.finisher.prepare_database(f"{number + 1:x}" * 32)
        db.finisher.expected_identity = f"{number + 1:x}" * 32
        db.sql("CREATE TABLE work (i int PRIMARY KEY) ENGINE=InnoDB")
    log_url = f"sqlite:///{folder / 'log.db'}"
    settings = Settings.model_validate(
        {
            "listen": "127.0.0.1:0",
            "log": {"url": log_url},
            "resources": {
                name: {"url": scheme + "://" + db.url.partition("://")[2]} for name, db in databases.items()
            },
            "recovery": {"scan_interval": "200ms", "grace": "200ms", **recovery},
        }
    )
    await migrate(settings.log.url.get_secret_value())
    try:
        async with Node(settings) as node, wire_to(node.address) as wire:
            yield Shop(node, wire, databases)
    finally:
        for db in databases.values():
            await db.close()


@pytest.fixture
async def shop(mariadb: MariaDBServer, new_database: Databases, tmp_path: Path) -> AsyncIterator[Shop]:
    """Both databases are on one server."""
    databases = {name: MariaResource(mariadb, new_database(mariadb), name=name) for name in ("m1", "m2")}
    async with a_shop(tmp_path, databases, hold="700ms") as shop:
        yield shop


async def test_hello_tells_what_it_is_whatever_the_url_says(
    mariadb: MariaDBServer, mysql: MySQLServer, new_database: Databases, tmp_path: Path
) -> None:
    databases = {
        "m": MariaResource(mariadb, new_database(mariadb)),
        "y": MariaResource(mysql, new_database(mysql)),
    }
    async with a_shop(tmp_path, databases, scheme="mysql") as shop:
        told = {r.name: (r.engine, r.available, r.engine_version) for r in shop.wire.hello.resources}
        assert told["m"][:2] == ("mariadb", True), shop.wire.hello.resources
        assert told["y"][:2] == ("mysql", True), shop.wire.hello.resources
        tx = shop.tx()
        one, holder = shop.prepare(tx, "1", "m")
        two, other = shop.prepare(tx, "2", "y")
        other.close()
        committing = asyncio.ensure_future(tx.commit(one, two))
        holder_waits = pb.WaitItem(tx_id=tx.tx_id, level=c.WAIT_LEVEL_DECIDED, expected=True)
        answer = await shop.wire.call("Wait", pb.WaitRequest(items=[holder_waits], wait_us=10 * S))
        assert answer.results[0].outcome.decision == c.DECISION_COMMIT
        holder.sql(my.xa_commit(str(holder.x)))
        await shop.wire.call("Report", shop.report(tx, c.BRANCH_EVENT_COMMITTED, one))
        assert (await committing).state == c.STATE_COMMITTED
        assert shop.counts() == [1, 1]


@pytest.mark.parametrize("commit", [True, False])
async def test_their_own_sessions_finish_and_live_on(shop: Shop, commit: bool) -> None:
    tx = shop.tx()
    one, first = shop.prepare(tx, "1", "m1")
    two, second = shop.prepare(tx, "2", "m2")
    wait = pb.WaitRequest(
        items=[pb.WaitItem(tx_id=tx.tx_id, level=c.WAIT_LEVEL_DECIDED, expected=True)], wait_us=20 * S
    )
    waiting = asyncio.ensure_future(shop.wire.call("Wait", wait, timeout=30))
    if commit:
        ending = asyncio.ensure_future(tx.commit(one, two))
    else:
        # It stays unlogged: nobody else could tell the holders.
        ending = asyncio.ensure_future(tx.rollback(one, two, initiator=True, sealed=True))
    told = (await waiting).results[0].outcome
    assert told.decision == (c.DECISION_COMMIT if commit else c.DECISION_ABORT)
    event = c.BRANCH_EVENT_COMMITTED if commit else c.BRANCH_EVENT_ROLLED_BACK
    for holder in (first, second):
        holder.sql((my.xa_commit if commit else my.xa_rollback)(str(holder.x)))
    operations = [
        pb.Operation(op_id=i, report=shop.report(tx, event, branch)) for i, branch in enumerate((one, two))
    ]
    operations.append(pb.Operation(op_id=9, wait=wait))
    answers = (await shop.wire.call("Batch", pb.BatchRequest(operations=operations))).results
    assert [a.status.code for a in answers] == [0, 0, 0]
    assert (await ending).state == (c.STATE_COMMITTED if commit else c.STATE_ABORTED)
    for holder in (first, second):
        assert holder.sql("SELECT 1") == ((1,),)
    assert shop.counts() == ([1, 1] if commit else [0, 0])
    assert not shop.node.coordinator.alarms


@pytest.mark.parametrize("commit", [True, False])
async def test_a_session_that_hangs_or_is_gone_is_finished_by_the_coordinator(
    shop: Shop, commit: bool
) -> None:
    tx = shop.tx()
    one, hangs = shop.prepare(tx, "1", "m1")
    two, dies = shop.prepare(tx, "2", "m2")
    dies.close()
    end = await (tx.commit(one, two) if commit else tx.rollback(one, two, initiator=True, sealed=True))
    assert end.state == (c.STATE_COMMITTED if commit else c.STATE_ABORTED)
    with pytest.raises(pymysql.MySQLError):
        hangs.sql("SELECT 1")
    assert shop.counts() == ([1, 1] if commit else [0, 0])
    assert shop.databases["m1"].listed() == []


async def test_who_says_that_nobody_holds_it_need_not_wait(shop: Shop) -> None:
    tx = shop.tx()
    one, gone = shop.prepare(tx, "1", "m1", held=False)
    gone.close()
    shop.node.coordinator.phase_two._hold_us = 3600 * S
    assert (await tx.commit(one)).state == c.STATE_COMMITTED
    tx = shop.tx()
    one, gives_up = shop.prepare(tx, "1", "m1")
    committing = asyncio.ensure_future(tx.commit(one))
    await eventually(lambda: shop.node.coordinator.live.get(tx.tx_id) is not None)
    await shop.wire.call("Report", shop.report(tx, c.BRANCH_EVENT_RELEASED, one))
    assert (await committing).state == c.STATE_COMMITTED
    gives_up.close()


async def test_an_orphan_is_rolled_back_and_its_session_ended(shop: Shop) -> None:
    """Each by the scan of its own database, though both lists show both."""
    tx = shop.tx(seconds=0.3)
    foreign = shop.databases["m1"].session()
    with foreign.cursor() as cursor:
        for verb in ("START", "END", "PREPARE"):
            cursor.execute(f"XA {verb} 'somebody', 'else', 1")
    _, lives = shop.prepare(tx, "1", "m1")
    _, dies = shop.prepare(tx, "2", "m2")
    dies.close()
    listed = shop.databases["m1"].listed
    async with asyncio.timeout(30):
        while len(listed()) > 1:  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.05)
    with pytest.raises(pymysql.MySQLError):
        lives.sql("SELECT 1")
    with foreign.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.execute("XA ROLLBACK 'somebody', 'else', 1")
    foreign.close()
    row = (await tx.get()).outcome
    assert (row.decided_by, row.reason) == (c.DECIDED_BY_SCANNER, "ORPHAN")
    assert shop.counts() == [0, 0]


async def test_bad_reports_are_refused(shop: Shop) -> None:
    tx = shop.tx()
    one, holder = shop.prepare(tx, "1", "m1")
    with refused("NOT_FOUND", "NOT_FOUND"):
        await shop.wire.call("Report", shop.report(tx, c.BRANCH_EVENT_COMMITTED, one))
    with refused("INVALID_ARGUMENT", "BAD_REQUEST"):
        await shop.wire.call("Report", shop.report(tx, c.BRANCH_EVENT_COMMITTED))
    with refused("NOT_FOUND", "NOT_FOUND"):
        await shop.wire.call("Report", shop.report(tx, c.BRANCH_EVENT_ANSWER, one))
    other = shop.tx()
    with refused("INVALID_ARGUMENT", "BAD_XID"):
        await shop.wire.call("Report", shop.report(other, c.BRANCH_EVENT_COMMITTED, one))
    with refused("INVALID_ARGUMENT", "BAD_TX_ID"):
        await shop.wire.call("Wait", pb.WaitRequest(items=[pb.WaitItem(gid="x", expected=True)]))
    unknown = pb.WaitItem(tx_id=tx.tx_id, level=c.WAIT_LEVEL_DECIDED, expected=True)
    for wait_us in (0, S // 10):
        assert not (await shop.wire.call("Wait", pb.WaitRequest(items=[unknown], wait_us=wait_us))).results
    holder.sql(my.xa_rollback(str(holder.x)))
    answer = await shop.wire.call("Report", shop.report(tx, c.BRANCH_EVENT_ROLLED_BACK, one))
    assert answer.outcome.state == c.STATE_UNSPECIFIED, "nobody knows it: presumed abort"
