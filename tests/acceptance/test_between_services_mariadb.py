"""A called service whose database is MariaDB or MySQL: on MariaDB the session that prepared is kept after the reply has
left, and finishes its branch when the caller has decided."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from tests.acceptance.conftest import new_databases
from tests.support.acceptance import INSERT, Site, client_of, eventually, new_gid
from tests.support.acceptance_http import Between, asgi_app, serving_asgi, serving_wsgi
from tests.support.acceptance_mariadb import AnyServer, MariaDb
from tests.support.databases import Databases
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Aborted
from txcoord_client.sync import Coordinator as SyncCoordinator


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def site(
    request: pytest.FixtureRequest, pg18: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    server: AnyServer = request.getfixturevalue(request.param)
    databases = Databases()
    [accounts] = new_databases(databases, pg18)
    ledger = MariaDb("ledger", server, databases(server, "mysql+asyncmy"))
    ledger.make_table()
    site = Site(tmp_path_factory.mktemp("between"), accounts, ledger, valves=False)
    try:
        site.start()
        yield site
    finally:
        site.stop()
        databases.drop_all()


def maria(site: Site) -> MariaDb:
    assert isinstance(site.ledger, MariaDb)
    return site.ledger


@pytest.fixture(params=["asgi", "wsgi"])
async def calls(request: pytest.FixtureRequest, site: Site) -> Any:
    """``await calls(url)`` by a caller; and what the service does, by name."""
    with ExitStack() as stack:
        async with client_of(site) as caller, client_of(site) as callee:
            transport = caller.coord.httpx_transport(propagate_to="127.0.0.1")
            async with httpx.AsyncClient(transport=transport) as http:
                if request.param == "asgi":

                    async def handler(order: dict[str, Any]) -> Any:
                        async with callee.coord.xa(callee.ledger) as db:
                            await db.execute(text(INSERT), {"body": order["body"]})
                        return order.get("status", 200), "said"

                    async with serving_asgi(callee.coord.asgi(asgi_app(handler))) as url:
                        yield caller, http, url, callee.ledger.sync_engine
                else:
                    engine = create_engine(site.ledger.url.replace("+asyncmy", "+pymysql"))
                    coord = SyncCoordinator(site.address, resources={"ledger": engine})
                    stack.callback(engine.dispose)
                    stack.callback(coord.close)

                    def app(environ: Any, start_response: Any) -> Any:
                        order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                        with coord.xa(engine) as db:
                            db.execute(text(INSERT), {"body": order["body"]})
                        start_response(f"{order.get('status', 200)} X", [("Content-Type", "text/plain")])
                        return [b"said"]

                    url = stack.enter_context(serving_wsgi(coord.wsgi(app)))
                    yield caller, http, url, engine


async def ended(site: Site, tx_id: str, engine: Any) -> None:
    """Nothing is left prepared or in limbo, and no connection is kept."""
    await eventually(lambda: not site.prepared(tx_id), within=40)
    await eventually(lambda: maria(site).limbo() == 0)
    await eventually(lambda: engine.pool.checkedout() == 0)


async def test_it_is_committed_with_the_whole_by_its_own_session(site: Site, calls: Any) -> None:
    caller, http, url, engine = calls
    body = new_gid()
    kills = maria(site).status("Com_kill")
    async with caller.coord.begin("order") as g:
        await caller.write(g, caller.accounts, body)
        for _ in range(2):
            assert (await http.post(url, json={"body": body})).status_code == 200
        assert len(site.ledger.prepared(g.tx_id)) == 2, "prepared when the replies had left"
        assert engine.pool.checkedout() == (2 if maria(site).holds else 0)
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert site.counts(body) == (1, 2)
    await ended(site, g.tx_id, engine)
    assert maria(site).status("Com_kill") == kills, "nobody had to be killed"


@pytest.mark.parametrize("how", ["the caller raises", "the service says no", "the reply is lost"])
async def test_it_is_undone_with_the_whole(site: Site, calls: Any, how: str) -> None:
    caller, http, url, engine = calls
    body = new_gid()
    async with Between(int(url.rpartition(":")[2]), lambda *_: None) as dropping:
        with pytest.raises((Aborted, ZeroDivisionError)):
            async with caller.coord.begin("order", timeout=4) as g:
                await caller.write(g, caller.accounts, body)
                if how == "the reply is lost":
                    with pytest.raises(httpx.RemoteProtocolError):
                        await http.post(dropping.url, json={"body": body})
                else:
                    no = how == "the service says no"
                    reply = await http.post(url, json={"body": body, "status": 409 if no else 200})
                    assert (reply.status_code, bool(site.ledger.prepared(g.tx_id))) == (
                        409 if no else 200,
                        not no,
                    )
                if how == "the caller raises":
                    raise ZeroDivisionError
    await ended(site, g.tx_id, engine)
    assert site.counts(body) == (0, 0)
