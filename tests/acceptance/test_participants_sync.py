"""TCC and sagas with the synchronous SDK, on both sides: PostgreSQL over psycopg and MariaDB over PyMySQL."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from sqlalchemy import Engine, create_engine, text

from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import INSERT, Site, new_gid
from tests.support.acceptance_sync import soon
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Aborted, Pending, Refused
from txcoord_client.sync import Coordinator, Participant, saga


@pytest.fixture(scope="module")
def site(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    databases = Databases()
    site = site_on(tmp_path_factory.mktemp("sync"), pg18, mariadb, databases)
    try:
        site.restart()
        yield site
    finally:
        site.stop()
        databases.drop_all()


class Shop:
    """Two participants on one server with threads."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.no: set[str] = set()
        self.later: set[str] = set()
        self.engines = (
            create_engine(site.accounts.url.replace("+asyncpg", "+psycopg")),
            create_engine(site.ledger.url.replace("+asyncmy", "+pymysql")),
        )
        stock, coupons = Participant("stock", db=self.engines[0]), Participant("coupons", db=self.engines[1])
        self.reserve = stock.tcc(self._tcc())
        self.redeem = coupons.tcc(self._tcc())
        self.pack, self.label = self._action(stock, "pack"), self._action(coupons, "label")
        self.server = grpc.server(ThreadPoolExecutor(8))
        stock.add_to(self.server, coupons)
        self.address = f"grpc://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def _said(self, body: str) -> None:
        if body in self.no:
            raise Refused("NO")
        if body in self.later:
            self.later.discard(body)
            raise Pending(retry_after=0.05)

    def _tcc(self) -> Any:
        said = self._said

        class Reserve:
            def attempt(self, db: Any, *, body: str) -> dict[str, str]:
                db.execute(text(INSERT), {"body": f"try {body}"})
                said(body)
                return {"body": body}

            def confirm(self, db: Any, hold: dict[str, str]) -> None:
                db.execute(text(INSERT), {"body": f"confirm {hold['body']}"})

            def cancel(self, db: Any, hold: dict[str, str]) -> None:
                db.execute(text(INSERT), {"body": f"cancel {hold['body']}"})

        return Reserve

    def _action(self, participant: Participant, name: str) -> Any:
        said = self._said

        def act(db: Any, *, body: str) -> dict[str, str]:
            db.execute(text(INSERT), {"body": f"action {body}"})
            if name == "label":
                said(body)
            return {"body": body}

        act.__name__ = name
        action = participant.action(act)

        @action.compensate
        def undo(db: Any, result: dict[str, str]) -> None:
            db.execute(text(INSERT), {"body": f"compensate {result['body']}"})

        return action

    def notes(self, body: str) -> tuple[list[str], ...]:
        ops = ("try", "confirm", "cancel", "action", "compensate")
        return tuple(
            [op for op in ops for _ in range(db.count(f"{op} {body}"))] for db in self.site.databases
        )

    def close(self) -> None:
        self.server.stop(0).wait()
        for engine in self.engines:
            engine.dispose()


@pytest.fixture
def shop(site: Site) -> Iterator[Shop]:
    shop = Shop(site)
    yield shop
    shop.close()


@pytest.fixture
def coord(shop: Shop) -> Iterator[Coordinator]:
    engines: dict[str, Engine] = {"accounts": shop.engines[0]}
    participants = {"stock": shop.address, "coupons": shop.address}
    with Coordinator(shop.site.address, resources=engines, participants=participants) as coord:
        yield coord


def test_confirmed(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("sync")
    shop.later.add(body)
    with coord.begin("order", gid=body) as g:
        assert g.tcc(shop.reserve, body=body) == {"body": body}
        g.tcc(shop.redeem, body=body)
    assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])


def test_threads_enlist_side_by_side(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("threads")
    with coord.begin("order") as g:
        threads = [threading.Thread(target=lambda: g.tcc(shop.reserve, body=body)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert shop.notes(body) == (["try"] * 4 + ["confirm"] * 4, [])


def test_cancelled(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("no")
    with pytest.raises(Refused) as refused, coord.begin("order") as g:
        g.tcc(shop.redeem, body=body)
        with g.xa(shop.engines[0]) as db:
            db.execute(text(INSERT), {"body": f"action {body}"})
        shop.no.add(body)
        g.tcc(shop.reserve, body=body)
    assert refused.value.reason == "NO"
    soon(lambda: shop.notes(body) == ([], ["try", "cancel"]))


def test_a_saga(shop: Shop, coord: Coordinator) -> None:
    flow = saga("ship").step(shop.pack).step(shop.label)
    body = new_gid("saga")
    run = coord.submit(flow, gid=body, data={"body": body})
    assert run.wait().state == "COMMITTED"
    assert run.results == {"pack": {"body": body}, "label": {"body": body}}
    assert shop.notes(body) == (["action"], ["action"])
    other = new_gid("saga")
    shop.no.add(other)
    run = coord.submit(flow, data={"body": other})
    with pytest.raises(Aborted):
        run.wait()
    assert shop.notes(other) == (["action", "compensate"], [])


def test_a_saga_inside_a_transaction(shop: Shop, coord: Coordinator) -> None:
    flow = saga("ship").step(shop.pack).step(shop.label)
    body = new_gid("inside")
    with coord.begin("order") as g:
        assert g.saga(flow, body=body) == {"pack": {"body": body}, "label": {"body": body}}
        g.tcc(shop.reserve, body=body)
    assert shop.notes(body) == (["try", "confirm", "action"], ["action"])
    other = new_gid("inside")
    with pytest.raises(ZeroDivisionError), coord.begin("order") as g:
        g.saga(flow, body=other)
        raise ZeroDivisionError
    soon(lambda: shop.notes(other) == (["action", "compensate"], ["action", "compensate"]))
