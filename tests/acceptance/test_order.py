"""Messages of one key leave one after the other, in the order in which their transactions were committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from typer.testing import CliRunner

from tests.support.acceptance import QUICK, Db, eventually
from tests.support.databases import Databases
from tests.support.http_api import http_node
from txcoord.cli import app
from txcoord.core.events import Operate
from txcoord.core.model import Audit
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, run_txcoord
from txcoord.wiring import Node
from txcoord_client import Aborted, Coordinator, Rejected, Retry, TxcoordError

OFTEN = Retry(first=0.02, factor=1, cap=0.02)


@dataclass
class Receiver:
    """Takes messages in, and says how many were there at the same time."""

    url: str = ""
    came: list[str] = field(default_factory=list)
    """In the order in which they were taken, repeats too."""
    fails: dict[str, int] = field(default_factory=dict)
    refuses: set[str] = field(default_factory=set)
    at_once: dict[str, int] = field(default_factory=dict)
    most: int = 0
    hung: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        key, name = body["key"], body["name"]
        self.at_once[key] = self.at_once.get(key, 0) + 1
        self.most = max(self.most, self.at_once[key])
        try:
            await asyncio.sleep(0)
            if name in self.refuses:
                return web.Response(status=409)
            if self.fails.get(name, 0):
                self.fails[name] -= 1
                return web.Response(status=500)
            self.came.append(name)
            return web.Response()
        finally:
            self.at_once[key] -= 1

    def of(self, prefix: str) -> list[str]:
        """The first of each."""
        return list(dict.fromkeys(name for name in self.came if name.startswith(prefix)))


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{tail:.*}", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    receiver.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/told"  # type: ignore[attr-defined]
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with http_node(tmp_path) as node:
        yield node


async def send(coord: Coordinator, receiver: Receiver, name: str, key: str | None, **more: object) -> str:
    async with coord.begin("order") as g:
        body = {"name": name, "key": key or ""}
        g.message(receiver.url, body, retry=OFTEN, **({"order_key": key} if key else {}), **more)  # type: ignore[arg-type]
    return g.tx_id


async def test_one_after_the_other_whatever_fails(node: Node, receiver: Receiver) -> None:
    async with Coordinator(node.address) as coord:
        receiver.fails = {"a0": 3, "a7": 2, "b1": 1}
        for n in range(20):
            await asyncio.gather(send(coord, receiver, f"a{n}", "a"), send(coord, receiver, f"b{n}", "b"))
        async with coord.begin("order") as g:
            for n in range(20, 30):
                g.message(receiver.url, {"name": f"a{n}", "key": "a"}, order_key="a")
        await eventually(
            lambda: (len(receiver.of("a")), len(receiver.of("b"))) == (30, 20), what="all came", within=60
        )
    assert receiver.of("a") == [f"a{n}" for n in range(30)]
    assert receiver.of("b") == [f"b{n}" for n in range(20)]
    assert receiver.most == 1


async def test_a_parked_head_holds_its_key_only_until_it_is_skipped(
    node: Node, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.refuses.add("a0")
    async with Coordinator(node.address) as coord:
        head = await send(coord, receiver, "a0", "a")
        later = [await send(coord, receiver, f"a{n}", "a") for n in (1, 2)]
        await send(coord, receiver, "b0", "b")
        await send(coord, receiver, "x0", None)

        async def waits() -> bool:
            rows = await node.log.read([head, *later])
            reasons = [rows[tx_id].branches[0].reason for tx_id in (head, *later)]
            return reasons[0].startswith("REFUSED") and all(r.startswith("ORDER_WAITS") for r in reasons[1:])

        await eventually(waits, what="the head is parked and the others wait", within=60)
        await eventually(lambda: {"b0", "x0"} <= set(receiver.came), what="others are not held", within=60)
        assert not receiver.of("a")
        (shown,) = [d for d in await coord.deliveries(receiver.url.rpartition("/")[0]) if d.tx_id == later[0]]
        assert shown.reason == f"ORDER_WAITS: {head}.1 of the same key comes first"
        monkeypatch.setenv("TXCOORD_ADDRESS", node.address)
        for args in (["tx", "show", head], ["parked", "show"]):
            said = await asyncio.to_thread(CliRunner().invoke, app, args)
            assert "order key 'a'" in said.output, said.output
        await operate(node, head, "skip")
        await eventually(lambda: receiver.of("a") == ["a1", "a2"], what="the next ones go", within=60)


async def operate(node: Node, tx_id: str, action: str, **more: bool) -> None:
    audit = Audit("ann", "it is not needed", action, node.clock.now_us(), "1")
    await node.coordinator.operate(tx_id, Operate(action, "1", audit, **more))


async def test_one_that_is_to_come_later_is_waited_for_only_then(node: Node, receiver: Receiver) -> None:
    async with Coordinator(node.address) as coord:
        await send(coord, receiver, "a1", "a", delay=1.5)
        await send(coord, receiver, "a0", "a")
        await eventually(lambda: receiver.of("a") == ["a0"], what="the other one came", within=60)
        await eventually(lambda: receiver.of("a") == ["a0", "a1"], what="it came", within=60)


async def test_an_operator_sends_one_before_its_time_and_it_takes_its_place(
    node: Node, receiver: Receiver
) -> None:
    receiver.refuses.add("a0")
    async with Coordinator(node.address) as coord:
        head = await send(coord, receiver, "a0", "a")
        early = await send(coord, receiver, "a1", "a", delay=3600)
        await send(coord, receiver, "a2", "a")
        await operate(node, early, "retry", early=True)

        async def waits() -> bool:
            return (await node.log.read([early]))[early].branches[0].reason.startswith("ORDER_WAITS")

        await eventually(waits, what="its time is no more what it waits for", within=60)
        assert not receiver.came
        await operate(node, head, "skip")
        await eventually(lambda: receiver.of("a") == ["a1", "a2"], what="each in its place", within=60)


async def test_what_is_refused_before_anything_is_written(node: Node, receiver: Receiver) -> None:
    async with Coordinator(node.address) as coord:
        with pytest.raises((Rejected, Aborted), match="at most 200"):
            await send(coord, receiver, "a0", "k" * 201)
        await send(coord, receiver, "a1", "k" * 200)
        await eventually(lambda: receiver.came == ["a1"], what="it came", within=60)


@pytest.mark.timeout(180)
async def test_two_coordinators_are_killed_and_each_key_stays_in_the_order_of_its_commits(
    pg18: PostgresServer, new_database: Databases, tmp_path: Path, receiver: Receiver
) -> None:
    """A row of the sender's own database says the order: each transaction counts it up, and sends the number.

    One of them finds no more turns, and with two keys sends no more than twice that; the other one sends no more than
    so many. That is far less than there is to send, and so both die, whoever of them carries out what.
    """
    db, log_url = Db("accounts", pg18, new_database(pg18)), new_database(pg18)
    db.sql("CREATE TABLE counter (key text PRIMARY KEY, n integer NOT NULL)")
    db.sql("INSERT INTO counter VALUES ('a', 0), ('b', 0)")
    settings = {**QUICK, "RECOVERY__LEASE": "1s", "TARGETS__ALLOW": "loopback"}
    nodes: list[Managed] = []
    for name, dies in (("n1", "order.after_turn=kill@9"), ("n2", "call.after=kill@14")):
        made = coordinator(
            tmp_path, resources={"accounts": db.url}, log_url=log_url, settings=settings, name=name
        )
        made.env["TXCOORD_FAILPOINTS"] = dies
        nodes.append(made)
    env = nodes[0].env
    await asyncio.to_thread(run_txcoord, "migrate", env=env, cwd=tmp_path)
    await asyncio.to_thread(run_txcoord, "resource", "check", "--fix", env=env, cwd=tmp_path)
    engine = create_async_engine(db.url)

    async def sends(coord: Coordinator, key: str, times: int) -> None:
        while times:
            try:
                async with coord.local(engine, timeout=2) as tx:
                    count = text("UPDATE counter SET n = n + 1 WHERE key = :key RETURNING n")
                    n = (await tx.db.execute(count, {"key": key})).scalar_one()
                    body = {"name": f"{key}{n}", "key": key}
                    tx.message(receiver.url, body, order_key=key, retry=OFTEN)
                times -= 1
            except TxcoordError:  # It was committed, or not: the row says so.
                await asyncio.sleep(0.1)

    try:
        for node in nodes:
            node.start()
        where = [node.address for node in nodes]
        async with (
            Coordinator(where, resources={"accounts": engine}) as one,
            Coordinator(where[::-1], resources={"accounts": engine}) as other,
        ):
            work = [sends(coord, key, 10) for coord in (one, other) for key in "ab" for _ in range(2)]
            under_way = asyncio.gather(*work)
            for node in nodes:
                await eventually(
                    lambda node=node: node.exit_code == -9, what=f"{node.name} was killed", within=60
                )
            for node in nodes:
                node.env["TXCOORD_FAILPOINTS"] = ""
                node.start()
            await under_way
        rows = dict(line.split("|") for line in db.sql("SELECT key, n FROM counter").splitlines())
        for key in "ab":
            await eventually(
                lambda key=key: len(receiver.of(key)) == int(rows[key]), what="all came", within=90
            )
    finally:
        await engine.dispose()
        for node in nodes:
            node.stop()
    assert int(rows["a"]) + int(rows["b"]) >= 80
    for key in "ab":
        assert receiver.of(key) == [f"{key}{n}" for n in range(1, int(rows[key]) + 1)]
