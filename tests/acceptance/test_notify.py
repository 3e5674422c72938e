"""*Notify*, as *Behaviours* lists it: webhooks, from a coordinator process."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import base64
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import standardwebhooks
from aiohttp import web
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tests.support.acceptance import eventually, new_gid
from txcoord.testing.processes import Managed, coordinator, run_txcoord
from txcoord_client import Coordinator, Delivered, Refused, Rejected, Retry
from txcoord_client._pb import admin_pb2, admin_pb2_grpc, coordinator_pb2, coordinator_pb2_grpc
from txcoord_client._pb import common_pb2 as c
from txcoord_client.inbox import Inbox
from txcoord_client.webhooks import CloudEvent, NotVerified, Webhook

OLD, NEW = (f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))
THRICE = Retry(schedule=(0.05, 0.05))


@dataclass
class Partner:
    """An endpoint of somebody else."""

    url: str = ""
    script: dict[str, list[web.Response]] = field(default_factory=lambda: defaultdict(list))
    """By path: what is answered before 204."""
    got: dict[str, list[tuple[dict[str, str], bytes]]] = field(default_factory=lambda: defaultdict(list))

    async def take(self, request: web.Request) -> web.Response:
        self.got[request.path].append((dict(request.headers), await request.read()))
        steps = self.script[request.path]
        return steps.pop(0) if steps else web.Response(status=204)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    folder = tmp_path_factory.mktemp("notify")
    secrets = folder / "secrets"
    secrets.write_text(f"{NEW}\n{OLD}\n")
    settings = {
        "WEBHOOK_SECRETS__partner__HOSTS": "127.0.0.1",
        "WEBHOOK_SECRETS__partner__FILE": str(secrets),
        "TARGETS__DISABLE_AFTER": "1s",  # But not before five attempts have failed.
    }
    made = coordinator(folder, resources={}, settings=settings)
    run_txcoord("migrate", env=made.env, cwd=folder)
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def coord(node: Managed) -> AsyncIterator[Coordinator]:
    async with Coordinator(node.address) as coord:
        yield coord


@pytest.fixture
async def partner() -> AsyncIterator[Partner]:
    partner = Partner()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", partner.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    partner.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield partner
    await runner.cleanup()


def txcoord(node: Managed, folder: Path, *arguments: str) -> str:
    env = {**node.env, "TXCOORD_ADDRESS": node.address, "TXCOORD_ACTOR": "ann"}
    return run_txcoord(*arguments, env=env, cwd=folder)


async def parked(coord: Coordinator, gid: str) -> str:
    """Until its delivery is parked; why it is. The whole stays COMMITTED."""

    async def look() -> str:
        found = await coord.get(gid=gid)
        assert found is not None
        assert found.state == "COMMITTED"
        listed = await coord.deliveries(parked=True)
        return next((d.reason for d in listed if d.gid == gid), "")

    return str(await eventually(look, what=f"{gid} has a parked delivery"))


async def test_it_is_signed_and_the_receiver_verifies_it(coord: Coordinator, partner: Partner) -> None:
    async with coord.begin("order") as g:
        message_id = g.notify(f"{partner.url}/hook", {"order": 7}, headers={"x-shop": "berlin"})
    await eventually(lambda: partner.got["/hook"], what="it has arrived")
    headers, body = partner.got["/hook"][0]
    for secret in (OLD, NEW):
        told = Webhook(secret).verify(body, headers)
        assert (told.id, told.json()) == (message_id, {"order": 7})
        assert standardwebhooks.Webhook(secret).verify(body, headers) == {"order": 7}
    with pytest.raises(NotVerified):
        Webhook("whsec_" + base64.b64encode(b"somebody else's secret").decode()).verify(body, headers)
    names = {name.lower() for name in headers}
    assert "x-shop" in names
    assert not {n for n in names if n.startswith("txcoord-")} - {"txcoord-attempt"}


async def test_nothing_is_sent_for_what_was_aborted(coord: Coordinator, partner: Partner) -> None:
    with pytest.raises(ZeroDivisionError):
        async with coord.begin("order") as g:
            g.notify(f"{partner.url}/never", {})
            raise ZeroDivisionError
    async with coord.begin("order") as g:
        g.notify(f"{partner.url}/then", {})
    await eventually(lambda: partner.got["/then"])
    assert not partner.got["/never"]


async def test_so_many_attempts_then_it_is_parked_and_replay_by_hand_delivers(
    coord: Coordinator, partner: Partner, node: Managed, tmp_path: Path
) -> None:
    gid = new_gid("parks")
    partner.script["/down"] = [web.Response(status=500, text="no") for _ in range(3)]
    async with coord.begin("order", gid=gid) as g:
        g.notify(f"{partner.url}/down", {"order": 1}, retry=THRICE)
    assert "HTTP_500" in await parked(coord, gid)
    assert [h["txcoord-attempt"] for h, _ in partner.got["/down"]] == ["1", "2", "3"]
    ids = {h["webhook-id"] for h, _ in partner.got["/down"]}
    assert len(ids) == 1
    (tmp_path / "mended").write_text('{"order":"one"}')
    await asyncio.to_thread(
        txcoord,
        node,
        tmp_path,
        "tx",
        "retry",
        gid,
        "--payload",
        "mended",
        "--reason",
        "their schema",
        "--yes",
    )
    await eventually(lambda: len(partner.got["/down"]) == 4, what="it was sent again")
    headers, body = partner.got["/down"][3]
    assert body == b'{"order":"one"}'
    assert Webhook(NEW).verify(body, headers).id in ids


async def test_what_is_no_success(coord: Coordinator, partner: Partner) -> None:
    elsewhere = web.Response(status=302, headers={"Location": f"{partner.url}/elsewhere"})
    partner.script["/moved"] = [elsewhere, *(web.Response(status=302) for _ in range(2))]
    partner.script["/gone"] = [web.Response(status=410)]
    gids = {path: new_gid("no") for path in ("/moved", "/gone")}
    for path, gid in gids.items():
        async with coord.begin("order", gid=gid) as g:
            g.notify(partner.url + path, {}, retry=THRICE)
    assert "HTTP_302" in await parked(coord, gids["/moved"])
    assert "GONE" in await parked(coord, gids["/gone"])
    assert (len(partner.got["/moved"]), len(partner.got["/gone"])) == (3, 1)
    assert not partner.got["/elsewhere"]


async def test_retry_after_is_kept_to(coord: Coordinator, partner: Partner) -> None:
    partner.script["/busy"] = [web.Response(status=429, headers={"Retry-After": "1"})]
    loop = asyncio.get_running_loop()
    async with coord.begin("order") as g:
        g.notify(f"{partner.url}/busy", {}, retry=THRICE)
    await eventually(lambda: partner.got["/busy"])
    began = loop.time()
    await eventually(lambda: len(partner.got["/busy"]) == 2)
    assert loop.time() - began > 0.8


async def test_a_target_at_which_nothing_arrives_is_disabled_and_resumed(
    coord: Coordinator, partner: Partner, node: Managed, tmp_path: Path
) -> None:
    partner.script["/never"] = [web.Response(status=500) for _ in range(1_000)]

    async def say(*arguments: str) -> str:
        return await asyncio.to_thread(txcoord, node, tmp_path, *arguments)

    async def tell() -> str:
        async with coord.begin("order", gid=(gid := new_gid("never"))) as g:
            g.notify(f"{partner.url}/never", {}, retry=THRICE)
        return gid

    async def disabled() -> bool:
        await tell()
        return f"{partner.url}  DISABLED" in await say("target", "list")

    await eventually(disabled, within=60, what="it is disabled")
    before = len(partner.got["/never"])
    gid = await tell()
    assert "TARGET_DISABLED: nothing has arrived for" in await parked(coord, gid)
    assert len(partner.got["/never"]) == before
    await say("target", "resume", partner.url, "--reason", "mended")
    partner.script["/never"] = []
    await say("tx", "retry", gid, "--reason", "mended", "--yes")
    await eventually(lambda: len(partner.got["/never"]) > before, what="it is sent again")


async def test_a_cloud_event(coord: Coordinator, partner: Partner) -> None:
    ids = []
    async with coord.begin("order") as g:
        for structured in (False, True):
            event = CloudEvent("shop.order.paid", subject="7", structured=structured)
            ids.append(g.notify(f"{partner.url}/event{structured}", {"order": 7}, event=event))
    for path, message_id, kind in zip(
        ("/eventFalse", "/eventTrue"), ids, ("application/json", "application/cloudevents+json"), strict=True
    ):
        await eventually(lambda path=path: partner.got[path])
        headers, body = partner.got[path][0]
        assert Webhook(NEW).verify(body, headers).id == message_id
        assert headers["Content-Type"] == kind
        read = from_http_event(HTTPMessage(headers, body))
        assert (read.get_id(), read.get_type(), read.get_subject()) == (message_id, "shop.order.paid", "7")
        assert (read.get_source(), read.get_data()) == ("txcoord:default", {"order": 7})


@pytest.mark.parametrize(
    "address", ["http://169.254.169.254/latest", "http://10.0.0.1/hook", "http://[fd00::1]/"]
)
async def test_private_and_metadata_addresses_are_refused(coord: Coordinator, address: str) -> None:
    with pytest.raises(Rejected, match=r"TARGET_NOT_ALLOWED|private|never called"):
        async with coord.begin("order") as g:
            g.notify(address, {})


async def test_what_became_of_it_and_what_was_missed(coord: Coordinator, partner: Partner) -> None:
    partner.script["/away"] = [web.Response(status=503) for _ in range(3)]
    begun = []
    for path in ("/here", "/away"):
        async with coord.begin("order", gid=new_gid("list")) as g:
            begun.append(g.notify(partner.url + path, {"path": path}, retry=THRICE))
    await eventually(lambda: len(partner.got["/away"]) == 3)

    async def settled() -> dict[str, Delivered]:
        listed = await coord.deliveries(partner.url, since=timedelta(minutes=5), bodies=True)
        found = {d.message_id: d for d in listed}
        return found if [d.state for d in listed] == ["done", "parked"] else {}

    found = await eventually(settled, what="one is delivered, one parked")
    here, away = (found[message_id] for message_id in begun)
    assert (here.reason, away.attempts) == ("", 3)
    assert "HTTP_503" in away.reason
    assert away.body == b'{"path":"/away"}'
    first = (await coord.deliveries(partner.url, limit=1))[0]
    rest = await coord.deliveries(partner.url, after=first.token)
    assert [d.message_id for d in (first, *rest)] == begun
    assert (await coord.deliveries("http://nobody.example"), first.body) == ([], b"")


@pytest.mark.parametrize("kind", ["message", "notify"])
async def test_orders_about_one_and_lists_of_them(
    coord: Coordinator, partner: Partner, node: Managed, kind: str
) -> None:
    said, name = admin_pb2.Audit(actor="ann", reason="their new firewall"), new_gid(kind)
    dry = admin_pb2.Audit(actor="ann", reason="what would be?", dry_run=True)
    partner.script["/x"] = [web.Response(status=500, text="no") for _ in range(3)]
    gids = [new_gid(kind) for _ in range(3)]
    for gid in gids:
        async with coord.begin(name, gid=gid) as g:
            getattr(g, kind)(f"{partner.url}/x", {"gid": gid}, retry=Retry(schedule=(3600,)))
    await eventually(lambda: len(partner.got["/x"]) == 3, what="each was tried once")
    async with grpc.aio.insecure_channel(node.address) as channel:
        admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        asked: Any = coordinator_pb2_grpc.CoordinatorServiceStub(channel)

        async def order(what: str, gid: str, audit: Any = said) -> tuple[str, int]:
            request = getattr(admin_pb2, f"{what}Request")(
                audit=audit, selector=admin_pb2.Selector(gid=gid, branches=["1"])
            )
            [effect] = (await getattr(admin, what)(request)).effects
            return effect.effect, effect.state

        async def found(filter_: str, size: int = 2) -> list[str]:
            """By pages."""
            out: list[str] = []
            token = ""
            while True:
                request = coordinator_pb2.ListRequest(
                    filter=f'name = "{name}" AND {filter_}', page_size=size, page_token=token
                )
                answer = await asked.List(request)
                assert len(answer.transactions) <= size
                out += [t.outcome.gid for t in answer.transactions]
                token = answer.next_page_token
                if not token:
                    return out

        async def waits() -> bool:
            return await found("reason = HTTP_500") == gids[::-1]

        await eventually(waits, what="each waits for its next attempt")
        assert await found("parked") == []
        assert await order("Retry", gids[0], dry) == ("retried", c.BRANCH_STATE_FINISHING)
        assert [await order("Park", gid) for gid in gids] == [("parked", c.BRANCH_STATE_PARKED)] * 3
        other = "notify" if kind == "message" else "message"
        for filter_, wanted in {
            "parked": gids[::-1],
            f'parked AND kind = {kind} AND resource = "{partner.url}"': gids[::-1],
            f"kind = {other}": [],
            "reason = HTTP_500 AND state = COMMITTED AND age < 1h": gids[::-1],
            "age > 1h": [],
            f'gid = "{gids[1]}"': [gids[1]],
        }.items():
            assert await found(filter_) == wanted, filter_
        for what in ("Skip", "Resolve", "Retry"):
            assert (await order(what, gids[0], dry))[0] != "refused"
        assert len(partner.got["/x"]) == 3
        assert await order("Skip", gids[0]) == ("skipped", c.BRANCH_STATE_SKIPPED)
        assert await order("Resolve", gids[1]) == ("resolved", c.BRANCH_STATE_RESOLVED)
        assert await order("Retry", gids[2]) == ("retried", c.BRANCH_STATE_FINISHING)
        await eventually(lambda: len(partner.got["/x"]) == 4, what="it is sent again")
        assert b"".join(body for _, body in partner.got["/x"][3:]).decode() == f'{{"gid":"{gids[2]}"}}'
        for gid in gids:
            outcome = await coord.get(gid=gid)
            assert outcome is not None
            assert outcome.state == "COMMITTED"

        async def over() -> bool:
            return await found("parked") == []

        await eventually(over, what="none is parked any more")
        assert await found("heuristic") == []
        for gid, actions in zip(
            gids, (["skip", "park"], ["resolve", "park"], ["retry", "park"]), strict=True
        ):
            trail = (await admin.ListAudit(admin_pb2.ListAuditRequest(filter=f'tx_id = "{gid}"'))).entries
            assert [e.action for e in trail] == actions
            assert {(e.actor, e.reason, e.branch) for e in trail} == {("ann", "their new firewall", "1")}


async def test_a_handler_with_an_inbox_acts_once(
    coord: Coordinator, partner: Partner, tmp_path: Path
) -> None:
    """The answer to what it has done is lost; and a no is no failure."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/receiver.db")
    inbox, hook, seen = Inbox("hooks", engine), Webhook(NEW), []
    await inbox.make_table()
    async with engine.begin() as conn:
        await conn.execute(text("CREATE TABLE note (body integer NOT NULL)"))

    @inbox
    async def paid(db: AsyncConnection, order: int) -> None:
        await db.execute(text("INSERT INTO note VALUES (:order)"), {"order": order})
        if order == 8:
            raise Refused("NO_SUCH_ORDER")

    async def take(request: web.Request) -> web.Response:
        told = hook.verify(await request.read(), request.headers)
        took = await paid(told.id, **told.json())
        seen.append((told.json()["order"], took.first, took.status))
        return web.Response(status=took.status if len(seen) > 1 else 500)

    app = web.Application()
    app.router.add_post("/inbox", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url, gid = f"http://127.0.0.1:{runner.addresses[0][1]}/inbox", new_gid("inbox")
    try:
        async with coord.begin("order", wait="delivered") as g:
            g.notify(url, {"order": 7}, retry=THRICE)
        async with coord.begin("order", gid=gid) as g:
            g.notify(url, {"order": 8}, retry=THRICE)
        assert "409" in (why := await parked(coord, gid)) or "REFUSED" in why
    finally:
        await runner.cleanup()
    async with engine.connect() as conn:
        assert list((await conn.execute(text("SELECT body FROM note"))).scalars()) == [7]
    await engine.dispose()
    assert seen == [(7, True, 204), (7, False, 204), (8, True, 409)]
