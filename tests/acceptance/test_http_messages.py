"""Messages over HTTP as a service in any language sends them: it prepares, commits in its own database and submits; and
where it has not, it is asked. Nothing here is of the SDK."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.acceptance import eventually, new_gid
from tests.support.http_api import Api, PlainService, api_of, http_node, plain_service

TX, MESSAGES = "/v1/transactions", "/v1/messages"
COMMITTED, ABORTED = 1, 2


class Orders:
    """The sender's own database, and how it answers what became of a local transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(self.open()) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("CREATE TABLE sent (tx_id text PRIMARY KEY, state int NOT NULL)")
            db.execute("CREATE TABLE paid (gid text)")

    def open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=0.2, isolation_level=None)

    def pay(self, db: sqlite3.Connection, gid: str, tx_id: str) -> None:
        """The local transaction, but for its end."""
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO paid VALUES (?)", (gid,))
        db.execute("INSERT INTO sent VALUES (?, ?)", (tx_id, COMMITTED))

    def paid(self, gid: str) -> int:
        with closing(self.open()) as db:
            return int(db.execute("SELECT count(*) FROM paid WHERE gid = ?", (gid,)).fetchone()[0])

    def answer(self, question: Any) -> Any:
        return {"answers": [self._answer(item) for item in question["items"]]}

    def _answer(self, item: Any) -> Any:
        verdict = "ABORTED"
        with closing(self.open()) as db:
            try:
                db.execute("INSERT INTO sent VALUES (?, ?)", (item["txId"], ABORTED))
            except sqlite3.IntegrityError:
                found = db.execute("SELECT state FROM sent WHERE tx_id = ?", (item["txId"],)).fetchone()
                verdict = "COMMITTED" if found[0] == COMMITTED else "ABORTED"
            except sqlite3.OperationalError:
                verdict = "OPEN"
        return {"txId": item["txId"], "branch": item["branch"], "verdict": f"QUERY_BACK_VERDICT_{verdict}"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with http_node(tmp_path, deadline={"default": "1s"}) as node, api_of(node) as api:
        yield api


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[PlainService]:
    async with plain_service() as shop:
        yield shop


@pytest.fixture
def orders(tmp_path: Path, shop: PlainService) -> Orders:
    orders = Orders(tmp_path / "orders.db")
    shop.answers = orders.answer
    return orders


def message(shop: PlainService, gid: str, **more: Any) -> dict[str, Any]:
    part = {"target": shop.target, "operation": "/pack", "payloadJson": {"order": gid}}
    branch = {"id": "1", "kind": "KIND_MESSAGE", "delivery": part}
    return {"check": {"target": shop.target, "participant": "orders"}, "branches": [branch], **more}


async def prepared(api: Api, shop: PlainService, gid: str, **more: Any) -> str:
    """Its tx id."""
    answer = await api.post(MESSAGES, message(shop, gid, **more), expect=201, Idempotency_Key=gid)
    assert answer["outcome"]["state"] == "STATE_ACTIVE"
    return str(answer["outcome"]["txId"])


def packed(shop: PlainService, gid: str) -> int:
    return [body for path, body, _ in shop.calls if path == "/pack"].count({"order": gid})


async def test_prepare_commit_submit(api: Api, shop: PlainService, orders: Orders) -> None:
    gid, later = new_gid(), str(2**62)
    with closing(orders.open()) as db:
        tx_id = await prepared(api, shop, gid)
        assert await prepared(api, shop, gid) == tx_id, "the same key"
        for other in ({"spec": {"name": "other"}}, {"check": {"target": "http://127.0.0.1:9"}}):
            refused = await api.post(MESSAGES, message(shop, gid) | other, expect=422, Idempotency_Key=gid)
            assert refused["reason"] == "CONTENT_MISMATCH"
        orders.pay(db, gid, tx_id)
        db.execute("COMMIT")
    body = {"wait": "WAIT_LEVEL_DELIVERED"}
    for ref in (gid, tx_id):
        outcome = (await api.post(f"{MESSAGES}/{ref}/submit", body))["outcome"]
        assert (outcome["state"], outcome["delivered"]) == ("STATE_COMMITTED", True)
    assert packed(shop, gid) == 1
    refused = await api.post(MESSAGES, message(shop, gid), expect=409, Idempotency_Key=gid)
    assert refused["reason"] == "ALREADY_COMMITTED"
    # And what is no message, or comes too late.
    assert (await api.post(MESSAGES, message(shop, gid), expect=400))["reason"] == "BAD_REQUEST"
    refused = await api.post(
        MESSAGES, message(shop, gid, deadlineUs=later), expect=400, Idempotency_Key=new_gid()
    )
    assert refused["reason"] == "DEADLINE_TOO_FAR"
    await api.post(TX, {"gid": (plain := new_gid())}, expect=201)
    # Begun without saying who is asked: its deadline would abort it, whatever became of the local transaction.
    refused = await api.post(MESSAGES, message(shop, plain), expect=422, Idempotency_Key=plain)
    assert refused["reason"] == "CONTENT_MISMATCH"
    assert (await api.post(f"{MESSAGES}/{plain}/submit", expect=409))["reason"] == "NOT_SUPPORTED"
    assert (await api.post(f"{MESSAGES}/{new_gid()}/submit", expect=404))["reason"] == "NOT_FOUND"


async def test_a_sender_that_dies_is_asked(api: Api, shop: PlainService, orders: Orders) -> None:
    committed, undone, late = (new_gid() for _ in range(3))
    shop.fail.add("/txcoord/v1/query-back")  # At first it is out of order.
    with closing(orders.open()) as db:
        ids = {gid: await prepared(api, shop, gid) for gid in (committed, undone, late)}
        for gid, end in ((committed, "COMMIT"), (undone, "ROLLBACK")):
            orders.pay(db, gid, ids[gid])
            db.execute(end)
        await eventually(lambda: shop.paths().count("/txcoord/v1/query-back") >= 3)
        shop.fail.clear()
        for gid, state in ((committed, "COMMITTED"), (undone, "ABORTED"), (late, "ABORTED")):
            told = await api.get(f"{TX}/{gid}/wait?level=delivered&timeout=30s")
            assert told["outcome"]["state"] == f"STATE_{state}"
        with pytest.raises(sqlite3.IntegrityError):
            orders.pay(db, late, ids[late])
        db.execute("ROLLBACK")
    assert [orders.paid(gid) for gid in (committed, undone, late)] == [1, 0, 0]
    assert [packed(shop, gid) for gid in (committed, undone, late)] == [1, 0, 0]


async def test_one_that_is_open_is_asked_again(api: Api, shop: PlainService, orders: Orders) -> None:
    gid = new_gid()
    tx_id = await prepared(api, shop, gid)
    with closing(orders.open()) as db:
        orders.pay(db, gid, tx_id)
        await eventually(lambda: shop.paths().count("/txcoord/v1/query-back") >= 2)
        assert (await api.get(f"{TX}/{gid}"))["transaction"]["outcome"]["state"] == "STATE_ACTIVE"
        db.execute("COMMIT")
    assert (await api.get(f"{TX}/{gid}/wait?level=delivered&timeout=30s"))["outcome"]["delivered"]
    assert (orders.paid(gid), packed(shop, gid)) == (1, 1)
