"""TCC and sagas with participants behind Flask and Django, on gunicorn, with the synchronous SDK: on PostgreSQL and on
MariaDB. The coordinator has their addresses, and a token for them, in its settings."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import ROOT, Site, new_gid
from tests.support.acceptance_sync import soon
from tests.support.databases import Databases
from tests.support.participants_wsgi import participant
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, free_port
from txcoord_client import Aborted, OutcomeUnknown, Refused, Unavailable
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client.protocol import over_http
from txcoord_client.sync import Coordinator, ParticipantAt, saga

TOKEN = "between-us"


class Shop:
    """Both participants of one framework, in a process of their own."""

    def __init__(self, framework: str, site: Site, url: str) -> None:
        self.site = site
        self.url = url
        stock, coupons = f"{framework}-stock", f"{framework}-coupons"
        self.names = (stock, coupons)
        # As a caller has them: without their databases.
        one: Any = participant(stock, "")
        two: Any = participant(coupons, "")
        self.reserve, self.redeem = one.reserve, two.reserve
        self.flow = saga("ship").step(one.pack, name="pack").step(two.pack, name="label")

    def coordinator(self, token: str = TOKEN, **options: Any) -> Coordinator:
        at = ParticipantAt(self.url, token=token, by_name=True)
        return Coordinator(self.site.address, participants=dict.fromkeys(self.names, at), **options)

    def notes(self, body: str) -> tuple[list[str], ...]:
        ops = ("try", "confirm", "cancel", "action", "compensate")
        return tuple(
            [op for op in ops for _ in range(db.count(f"{op} {body}"))] for db in self.site.databases
        )


@pytest.fixture(scope="module")
def shops(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Shop]]:
    databases = Databases()
    folder = tmp_path_factory.mktemp("wsgi")
    (folder / "token").write_text(TOKEN)
    urls = {framework: f"http://127.0.0.1:{free_port()}" for framework in ("flask", "django")}
    settings = {"TARGETS__ALLOW": ""}
    for framework, url in urls.items():
        for name in ("stock", "coupons"):
            settings[f"PARTICIPANTS__{framework}-{name}__ADDRESSES"] = url
            settings[f"PARTICIPANTS__{framework}-{name}__TOKEN_FILE"] = str(folder / "token")
    site = site_on(folder, pg18, mariadb, databases, settings=settings)
    servers = [_gunicorn(framework, url, site, folder) for framework, url in urls.items()]
    try:
        site.restart()
        for server in servers:
            server.start(wait_s=0)
        for url in urls.values():
            soon(lambda url=url: _answers(url), within=40)
        yield {framework: Shop(framework, site, url) for framework, url in urls.items()}
    finally:
        for server in servers:
            server.stop()
        site.stop()
        databases.drop_all()


def _gunicorn(framework: str, url: str, site: Site, folder: Path) -> Managed:
    module = f"tests.support.participants_wsgi:{framework}_app()"
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-k",
        "gthread",
        "--threads",
        "8",
        "-b",
        url.partition("//")[2],
        module,
    ]
    env = {
        "STOCK_URL": site.accounts.url.replace("+asyncpg", "+psycopg"),
        "COUPONS_URL": site.ledger.url.replace("+asyncmy", "+pymysql"),
        "TOKEN": TOKEN,
    }
    log = folder / f"{framework}.log"
    return Managed(framework, command, log=log, env=env, address=url.partition("//")[2], cwd=ROOT)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url + over_http.PATH).status_code == 405
    return False


@pytest.fixture(params=["flask", "django"])
def shop(request: pytest.FixtureRequest, shops: dict[str, Shop]) -> Shop:
    found = shops[request.param]
    if not found.site.coordinator.running:
        found.site.restart()
    return found


def test_confirmed_cancelled_and_never_tried(shop: Shop) -> None:
    body, no, none = new_gid("wsgi") + "-later", new_gid("wsgi") + "-no", new_gid("wsgi")
    with shop.coordinator() as coord:
        with coord.begin("order", gid=body) as g:
            assert g.tcc(shop.reserve, body=body) == {"body": body}
            g.tcc(shop.redeem, body=body)
        assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])
        with pytest.raises(Refused) as refused, coord.begin("order") as g:
            g.tcc(shop.reserve, body=no[:-3])
            g.tcc(shop.redeem, body=no)
        assert (refused.value.reason, refused.value.message) == ("NO", "not this one")
        soon(lambda: shop.notes(no[:-3]) == (["try", "cancel"], []))
        with pytest.raises(ZeroDivisionError), coord.begin("order") as g:
            # Enlisted, and its try lost on its way.
            part = c.ActionPart(target=shop.names[0], operation=f"{shop.names[0]}.Reserve", payload=b"{}")
            g._enlister.enlist(c.Branch(id="7", kind=c.KIND_TCC, action=part))
            g._remote["7"] = c.Branch(id="7", kind=c.KIND_TCC)
            raise ZeroDivisionError
        soon(lambda: str(coord.get(tx_id=g.tx_id).state) == "ABORTED")  # type: ignore[union-attr]
        assert shop.notes(none) == ([], [])


def test_sagas_need_no_address_here(shop: Shop) -> None:
    body, no = new_gid("wsgi") + "-later", new_gid("wsgi") + "-no"
    with Coordinator(shop.site.address) as coord:
        run = coord.submit(shop.flow, gid=body, data={"body": body})
        assert run.wait().state == "COMMITTED"
        assert run.results == {"pack": {"body": body}, "label": {"body": body}}
        run = coord.submit(shop.flow, data={"body": no})
        with pytest.raises(Aborted):
            run.wait()
        assert shop.notes(no) == (["action", "compensate"], [])


@pytest.mark.timeout(120)
def test_coordinator_killed_between_decision_and_confirm(shops: dict[str, Shop]) -> None:
    shop = shops["flask"]
    shop.site.restart("commit.after_write=kill")
    body = new_gid("wsgi")
    with (
        shop.coordinator(call_timeout=2.0) as coord,
        contextlib.suppress(Unavailable, OutcomeUnknown, Aborted),
        coord.begin("order", timeout=3.0) as g,
    ):
        g.tcc(shop.reserve, body=body)
        g.tcc(shop.redeem, body=body)
    soon(lambda: not shop.site.coordinator.running)
    shop.site.restart()
    soon(lambda: shop.notes(body) == (["try", "confirm"], ["try", "confirm"]))


def test_strangers(shop: Shop) -> None:
    """Who has no token changes nothing, and who gives an address that is not allowed is told so."""
    body = new_gid("wsgi")
    with shop.coordinator(token="") as coord:
        with pytest.raises(Unavailable, match="UNAUTHENTICATED"), coord.begin("order") as g:
            g.tcc(shop.reserve, body=body, call_timeout=0.3)
        with Coordinator(shop.site.address, participants={shop.names[0]: "http://localhost:1"}) as other:
            with pytest.raises(Exception, match="TXCOORD_TARGETS__ALLOW") as error, other.begin("order") as g:
                g.tcc(shop.reserve, body=body)
            assert error.value.reason == "TARGET_NOT_ALLOWED"  # type: ignore[attr-defined]
    asked = pb.ExecuteRequest(contexts=[pb.ActionContext(tx_id="0" * 32)])
    asked.actions.add(branch="1", op=c.BRANCH_OP_CONFIRM, operation=f"{shop.names[0]}.Reserve")
    for authorization in ("", "Bearer between-them", f"Basic {TOKEN}"):
        headers = {"content-type": over_http.REQUEST_TYPE, "authorization": authorization}
        reply = httpx.post(shop.url + over_http.PATH, content=asked.SerializeToString(), headers=headers)
        [frame] = over_http.Frames().feed(reply.content)
        assert pb.ExecuteResponse.FromString(frame).answers[0].reason == "UNAUTHENTICATED"
    assert httpx.post(shop.url + over_http.PATH, json={}).status_code == 415
    assert shop.notes(body) == ([], [])
