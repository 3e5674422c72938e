"""The HTTP server and clients that are wrong, slow, large, from elsewhere, or there while the node leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.acceptance import eventually, new_gid
from tests.support.http_api import api_of, http_node
from tests.support.logs import Held, lose_replies
from txcoord.api.grpc.mapping import Limits
from txcoord.api.http.server import HttpServer, HttpSettings
from txcoord.wiring import Node

TX = "/v1/transactions"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with http_node(tmp_path) as node:
        yield node


@asynccontextmanager
async def listening(node: Node, host: str = "127.0.0.1", **settings: Any) -> AsyncIterator[int]:
    """One more server of that node, with settings of its own."""
    assert node._server is not None
    server = HttpServer(node._server.operations, HttpSettings(**settings), now_us=node.clock.now_us)
    port = await server.start(host, 0)
    try:
        yield port
    finally:
        await server.stop(0)


class Raw:
    """A connection, and what comes back on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, text: str | bytes) -> None:
        self.writer.write(text.encode() if isinstance(text, str) else text)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, json.loads(body)

    async def closed(self) -> bytes:
        """What comes until the other side closes."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


@asynccontextmanager
async def raw(port: int) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


def post(body: str, *headers: str, path: str = TX, length: int | None = None) -> str:
    size = len(body.encode()) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {size}", *headers]
    if not any(line.startswith("Content-Type") for line in headers):
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", body])


# ---- wrong ----


WRONG: dict[str, tuple[str, str, dict[str, str], bytes, int, str]] = {
    "path": ("GET", "/v2/x", {}, b"", 404, "BAD_HTTP"),
    "slash": ("GET", f"{TX}/", {}, b"", 404, "BAD_HTTP"),
    "method": ("DELETE", f"{TX}/a", {}, b"", 405, "BAD_HTTP"),
    "method of a plain page": ("POST", "/livez", {}, b"", 405, "BAD_HTTP"),
    "no content type": ("POST", f"{TX}/a/commit", {}, b"", 415, "BAD_HTTP"),
    "a form": ("POST", TX, {"Content-Type": "application/x-www-form-urlencoded"}, b"gid=a", 415, "BAD_HTTP"),
    "text": ("POST", TX, {"Content-Type": "text/plain"}, b"{}", 415, "BAD_HTTP"),
    "a charset": ("POST", TX, {"Content-Type": "application/json; charset=utf-16"}, b"{}", 415, "BAD_HTTP"),
    "compressed": (
        "POST",
        TX,
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        b"",
        415,
        "BAD_HTTP",
    ),
    "no JSON": ("POST", TX, {"Content-Type": "application/json"}, b"{", 400, "BAD_REQUEST"),
    "a field": ("POST", TX, {"Content-Type": "application/json"}, b'{"gidd": ""}', 400, "BAD_REQUEST"),
    "a gid": ("POST", TX, {"Content-Type": "application/json"}, b'{"gid": "a b"}', 400, "BAD_GID"),
    "a gid in the path": ("GET", f"{TX}/a%2Fb", {}, b"", 400, "BAD_GID"),
    "a namespace": ("GET", f"{TX}?namespace=a/b", {}, b"", 400, "BAD_NAMESPACE"),
    "a parameter": ("GET", f"{TX}/a/wait?levl=x", {}, b"", 400, "BAD_REQUEST"),
    "a level": ("GET", f"{TX}/a/wait?level=x", {}, b"", 400, "BAD_REQUEST"),
    "nobody": ("GET", f"{TX}/nobody", {}, b"", 404, "NOT_FOUND"),
    "another site": ("GET", "/v1/hello", {"Host": "evil.example"}, b"", 421, "BAD_HTTP"),
    "a kind": (
        "POST",
        "/v1/plans",
        {"Content-Type": "application/json"},
        b'{"gid": "p", "branches": [{"id": "1", "kind": "KIND_XA"}]}',
        501,
        "NOT_SUPPORTED",
    ),
}


async def test_what_is_wrong_is_a_problem(node: Node) -> None:
    async with httpx.AsyncClient(base_url=node.http_url, trust_env=False) as http:
        for name, (method, path, headers, body, status, reason) in WRONG.items():
            answer = await http.request(method, path, headers=headers, content=body)
            problem = answer.json()
            assert (answer.status_code, problem["reason"]) == (status, reason), f"{name}: {answer.text}"
            assert answer.headers["content-type"] == "application/problem+json", name
            assert problem["status"] == status
            assert problem["definite"] is True
            assert ("allow" in answer.headers) == (status == 405)
        # Nobody is let in from a page of another site.
        answer = await http.options(TX, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]
        answer = await http.head("/livez")
        assert (answer.status_code, answer.content) == (200, b"")


async def test_what_is_no_http(node: Node) -> None:
    for text in ("GARBAGE\r\n\r\n", f"GET / HTTP/1.1\r\nX: {'x' * 10_000}\r\n\r\n", post("{}", length=-1)):
        async with raw(node.http_port) as connection:
            connection.send(text)
            status, headers, problem = await connection.answer()
            assert (status, headers["content-type"]) == (400, "application/problem+json")
            assert problem["reason"] == "BAD_HTTP"
            assert await connection.closed() == b""


async def test_hosts_of_this_machine_and_of_others(node: Node) -> None:
    for host in ("localhost", "localhost:1", "127.0.0.1:80", "127.9.9.9", "[::1]:7071", "LOCALHOST."):
        async with raw(node.http_port) as connection:
            connection.send(f"GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n")
            assert (await connection.answer())[0] == 200, host
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "[::2]",
        "10.0.0.1:7071",
        "localhost.evil.example",
    ):
        async with raw(node.http_port) as connection:
            connection.send(f"GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n")
            assert (await connection.answer())[0] == 421, host
    async with listening(node, "0.0.0.0") as port, raw(port) as connection:
        connection.send("GET /livez HTTP/1.1\r\nHost: coordinator.example\r\n\r\n")
        assert (await connection.answer())[0] == 200


async def status_of(port: int, host: str) -> int:
    async with raw(port) as connection:
        connection.send(f"GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n")
        return (await connection.answer())[0]


async def test_hosts_that_are_set(tmp_path: Path) -> None:
    """A page of another site can have its name lead to an address of this network, but it cannot change its name."""
    ours = ("txcoord:7071", "TXCOORD", "a.b.internal.", "localhost", "[::1]:1")
    others = ("evil.example", "txcoord.evil.example", "internal", "evilinternal", "10.0.0.1.evil.example")
    settings = {"http_hosts": "txcoord, *.internal", "insecure_listen": True}
    async with http_node(tmp_path, **settings, http_address="0.0.0.0:0") as node:
        for host in (*ours, "10.0.0.1:7071", "[fd00::7]"):  # Such as probes, which have no names for nodes.
            assert await status_of(node.http_port, host) == 200, host
        for host in others:
            assert await status_of(node.http_port, host) == 421, host
        async with listening(node, hosts=("txcoord", "*.internal")) as port:
            for host in ours:  # A proxy on the same machine may keep the name.
                assert await status_of(port, host) == 200, host
            for host in (*others, "10.0.0.1:7071"):
                assert await status_of(port, host) == 421, host


# ---- large ----


async def test_bodies_have_a_limit(node: Node) -> None:
    async with listening(node, limits=Limits(message=1000)) as port:
        async with raw(port) as connection:
            connection.send(post("", length=1001))  # Refused before any of it has come.
            status, _, problem = await connection.answer()
            assert (status, problem["reason"]) == (413, "TOO_LARGE")
        async with raw(port) as connection:
            chunks = f"{1001:x}\r\n{'x' * 1001}\r\n0\r\n\r\n"
            head = f"POST {TX} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.send(f"{head}Transfer-Encoding: chunked\r\n\r\n{chunks}")
            assert (await connection.answer())[0] == 413
        async with raw(port) as connection:
            gid = new_gid()
            connection.send(post("", "Expect: 100-continue", length=len(f'{{"gid": "{gid}"}}')))
            assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            connection.send(f'{{"gid": "{gid}"}}')
            assert (await connection.answer())[0] == 201


async def test_connections_have_a_limit(node: Node) -> None:
    async with listening(node, connections=2) as port, raw(port) as first:
        async with raw(port) as second:
            for connection in (first, second):
                connection.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await connection.answer())[0] == 200
            async with raw(port) as third:
                status, headers, problem = await third.answer()
                assert (status, problem["reason"], problem["definite"]) == (503, "OVERLOADED", True)
                assert (headers["content-type"], headers["retry-after"]) == ("application/problem+json", "1")
                assert await third.closed() == b""
            first.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await first.answer())[0] == 200

        async def there_is_room() -> bool:
            return await status_of(port, "localhost") == 200

        await eventually(there_is_room)


def padded(size: int) -> str:
    begin = f'{{"gid": "{new_gid()}"}}'
    return begin + " " * (size - len(begin))


async def test_large_bodies_have_a_limit_together(node: Node) -> None:
    async with listening(node, bodies=300_000) as port, raw(port) as large, raw(port) as small:

        async def is_refused() -> bool:
            async with raw(port) as other:
                other.send(post(padded(150_000)))
                status, _, problem = await other.answer()
                return (status, problem.get("reason")) == (503, "OVERLOADED")

        large.send(post(padded(200_000), length=200_001))
        await eventually(is_refused, what="the first one holds its bytes")
        small.send(post(padded(50_000)))
        assert (await small.answer())[0] == 201, "a small one is always taken"
        large.send(" ")
        assert (await large.answer())[0] == 201
        small.send(post(padded(250_000)))
        assert (await small.answer())[0] == 201, "nothing is held any more"


# ---- slow ----


async def test_slow_clients_are_cut_off(node: Node) -> None:
    async with listening(node, head_s=0.2) as port, raw(port) as silent, raw(port) as slow:
        slow.send("GET /livez HTTP/1.1\r\nHost: local")
        for connection in (silent, slow):
            assert await connection.closed() == b""
    async with listening(node, body_s=0.2) as port, raw(port) as slow:
        slow.send(post("{", length=10))
        status, headers, problem = await slow.answer()
        assert (status, problem["reason"], headers["connection"]) == (408, "BAD_HTTP", "close")
        assert await slow.closed() == b""
    async with listening(node, idle_s=0.2) as port, raw(port) as idle:
        idle.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await idle.answer())[0] == 200
        idle.send("GET /livez HTTP/1.1\r\nHo")
        assert await idle.closed() == b""


async def test_who_never_reads_his_answer_is_cut_off(node: Node) -> None:
    assert node._server is not None
    server = HttpServer(node._server.operations, HttpSettings(send_s=0.2), now_us=node.clock.now_us)
    port = await server.start("127.0.0.1", 0)
    server.front._openapi = b'"' + b"x" * 30_000_000 + b'"'
    async with raw(port) as connection:
        connection.writer.transport.pause_reading()
        connection.send("GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await eventually(lambda: server._connections is not None and server._connections.requests_count)
        await eventually(lambda: server._connections is not None and not server._connections._known)
    await server.stop(0)


async def test_a_waiting_client_is_not_slow(node: Node) -> None:
    gid = new_gid()
    async with raw(node.http_port) as connection:
        connection.send(post(f'{{"gid": "{gid}"}}'))
        assert (await connection.answer())[0] == 201
    async with listening(node, idle_s=0.1, body_s=0.1, send_s=0.1) as port, raw(port) as connection:
        connection.send(f"GET {TX}/{gid}/wait?timeout=500ms HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await connection.answer())[0] == 202


async def test_requests_behind_each_other(node: Node) -> None:
    gid = new_gid()
    async with raw(node.http_port) as connection:
        connection.send(post(f'{{"gid": "{gid}"}}') + post("{}", path=f"{TX}/{gid}/commit"))
        assert [(await connection.answer())[0] for _ in range(2)] == [201, 200]


# ---- leaving ----


async def test_a_node_that_leaves_answers_what_is_open_and_takes_nothing_new(tmp_path: Path) -> None:
    async with http_node(tmp_path, node={"drain_timeout": "20s"}) as node, api_of(node) as api:
        gid, waited = new_gid(), new_gid()
        for name in (gid, waited):
            await api.post(TX, {"gid": name}, expect=201)
        held = Held(node.log)
        commit = asyncio.ensure_future(api.call("POST", f"{TX}/{gid}/commit", {}))
        await held.taken.wait()
        waiting = asyncio.ensure_future(api.call("GET", f"{TX}/{waited}/wait?timeout=60s"))
        http = node._http
        assert http is not None
        await eventually(lambda: len(http._open) == 2)
        stopping = asyncio.ensure_future(node.stop())
        await eventually(lambda: http.front.draining)
        ready = await api.call("GET", "/readyz")
        assert (ready.status_code, ready.json()["why"]) == (503, "this node is leaving")
        refused = await api.call("POST", TX, {"gid": new_gid()})
        assert (refused.status_code, refused.json()["reason"]) == (503, "SHUTTING_DOWN")
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
        # Who only waits should ask elsewhere.
        answer = await waiting
        assert (answer.status_code, answer.headers["connection"]) == (202, "close")
        assert not commit.done()
        held.let_go()
        answer = await commit
        assert (answer.status_code, answer.json()["outcome"]["state"]) == (200, "STATE_COMMITTED")
        await stopping
        with pytest.raises(httpx.ConnectError):
            await api.get("/livez")


async def test_what_is_still_open_when_the_time_is_over_is_cut_off(tmp_path: Path) -> None:
    async with http_node(tmp_path) as node, api_of(node) as api:
        gid = new_gid()
        await api.post(TX, {"gid": gid}, expect=201)
        assert node._http is not None
        http, held = node._http, Held(node.log)
        commit = asyncio.ensure_future(api.call("POST", f"{TX}/{gid}/commit", {}))
        await held.taken.wait()
        await http.stop(0.05)
        answer = await commit
        assert (answer.status_code, answer.json()["reason"], answer.json()["definite"]) == (
            503,
            "SHUTTING_DOWN",
            False,
        )
        held.let_go()


async def test_not_ready_while_the_log_is_away(node: Node) -> None:
    assert node._http is not None
    node._http.ready(False)
    async with api_of(node) as api:
        assert (await api.get("/readyz", expect=503))["why"] == "the log does not answer"
        assert (await api.get("/livez")) == {"status": "ok"}


async def test_a_log_that_goes_away_says_nothing_of_the_outcome(node: Node) -> None:
    come_back = lose_replies(node.log, 0, then_away=True)
    body = {"spec": {"name": "pay"}}
    key = {"Idempotency-Key": new_gid()}
    async with api_of(node) as api:
        answer = await api.call("POST", TX, body, headers=key)
        problem = answer.json()
        assert (answer.status_code, problem["reason"], problem["definite"]) == (503, "LOG_UNAVAILABLE", False)
        assert answer.headers["retry-after"] == "1"
        come_back()
        assert (await api.call("POST", TX, body, headers=key)).status_code == 201
