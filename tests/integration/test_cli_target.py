"""`txcoord target` against a coordinator process, with a participant that comes and goes."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest

from tests.integration.cli_support import Desk, Service, until
from txcoord.testing.processes import coordinator, run_txcoord
from txcoord_client._pb import admin_pb2, admin_pb2_grpc
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb


@dataclass
class Shop:
    """A participant over HTTP, that answers 503 while it is down, and the desk of an operator."""

    desk: Desk
    service: Service
    admin: Any
    url: str = ""
    down: bool = False
    seen: list[tuple[float, str]] = field(default_factory=list)
    """When, and which transaction."""

    def commit(self) -> str:
        """A transaction whose confirm is the coordinator's to call. Its tx id."""
        work = self.service.new(timeout_s=600)
        branch = c.Branch(id="1", kind=c.KIND_TCC)
        branch.action.target, branch.action.payload = self.url, b"{}"
        for name in ("operation", "commit_operation", "abort_operation"):
            setattr(branch.action, name, "/stock")
        stub, who = self.service.stub, {"tx_id": work.tx_id, "deadline_us": work.deadline_us}
        stub.Enlist(pb.EnlistRequest(branches=[branch], spec=work.spec, **who), timeout=20)
        vote = c.Branch(id="1", kind=c.KIND_TCC, vote=c.VOTE_PREPARED)
        commit = pb.CommitRequest(
            branches=[vote], wait=c.WAIT_LEVEL_DECIDED, spec=work.spec, begun=True, **who
        )
        assert stub.Commit(commit, timeout=20).outcome.state in (c.STATE_COMMITTING, c.STATE_COMMITTED)
        return work.tx_id

    def state(self, tx_id: str) -> int:
        found = self.service.stub.Get(pb.GetRequest(tx_id=tx_id), timeout=20)
        return int(found.transaction.outcome.state)

    def calls(self, tx_id: str) -> int:
        return sum(one == tx_id for _, one in list(self.seen))

    def target(self) -> admin_pb2.Target:
        answer = self.admin.ListTargets(admin_pb2.ListTargetsRequest(), timeout=20)
        [found] = [t for t in answer.targets if t.name == self.url]
        return found  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    node = coordinator(folder, resources={}, settings={"BACKOFF__FIRST": "200ms"})
    run_txcoord("migrate", env=node.env, cwd=folder)
    node.start()
    channel = grpc.insecure_channel(node.address)
    desk = Desk(folder, {"TXCOORD_ADDRESS": node.address, "TXCOORD_ACTOR": "ada@desk"})
    shop = Shop(desk, Service(node.address), admin_pb2_grpc.AdminServiceStub(channel))

    class Stock(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            shop.seen.append((time.monotonic(), self.headers["txcoord-tx-id"]))
            self.send_response(503 if shop.down else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Stock)
    server.daemon_threads = True
    shop.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield shop
    channel.close()
    shop.service.channel.close()
    node.stop()
    server.shutdown()
    thread.join()
    server.server_close()


def test_paused_is_not_failing(shop: Shop) -> None:
    until(lambda: shop.calls(shop.commit()) or shop.seen, "a call while all is well")
    until(lambda: shop.target().calls_per_s, "its rate is known")
    assert shop.target().p99_us > 0
    assert ", p99 " in shop.desk.run("target", "list").stdout
    said = shop.desk.run("target", "pause", shop.url, "--reason", "new disks").stdout
    assert said.startswith(
        f"{shop.url}: PAUSED (paused until it is resumed by ada@desk: new disks), no limits"
    )
    tx_id = shop.commit()
    shown = until(
        lambda: (
            s
            if "TARGET_PAUSED: by ada@desk: new disks" in (s := shop.desk.run("tx", "show", tx_id).stdout)
            else ""
        ),
        "tx show says why",
    )
    assert shown
    until(lambda: shop.target().backlog, "a backlog")
    [target] = shop.desk.json("target", "list")
    assert (target["name"], target["state"], target["backlog"]) == (shop.url, "paused", 1)
    assert target["message"] == "paused until it is resumed by ada@desk: new disks"
    [line] = [line for line in shop.desk.run("target", "list").stdout.splitlines() if shop.url in line]
    assert re.search(r"PAUSED \d+ \w+ +0 +1 +0 +in ", line)
    assert [t["name"] for t in shop.desk.json("target", "list", "state = PAUSED AND backlog")] == [shop.url]
    assert not shop.desk.json("target", "list", f'parked AND name = "{shop.url}"')
    assert "BAD_REQUEST" in shop.desk.run("target", "list", "state = ODD", code=6).stderr
    assert not shop.calls(tx_id)
    shop.desk.run("target", "resume", shop.url, "--reason", "done")
    until(lambda: shop.calls(tx_id), "it goes on")
    assert shop.calls(tx_id) == 1
    found = shop.desk.json("audit", "list", "--target", shop.url, "--actor", "ada@desk", "--since", "1h")
    assert [(e["action"], e["reason"]) for e in found[:2]] == [
        ("target.resume", "done"),
        ("target.pause", "new disks"),
    ]
    shown = shop.desk.run("audit", "list", "--target", shop.url, "--limit", "1")
    assert "target.resume" in shown.stdout
    assert "more: --page " in shown.stderr
    assert "target.pause" in shop.desk.run("audit", "list", "--all", "--limit", "1").stdout
    assert not shop.desk.json("audit", "list", "--action", "target.pause", "--tx", tx_id)
    assert "BAD_REQUEST" in shop.desk.run("audit", "list", "colour = red", code=6).stderr


def test_one_that_is_down_is_probed_and_then_all_goes_on(shop: Shop) -> None:
    shop.down = True
    txs = [shop.commit() for _ in range(30)]
    until(lambda: shop.target().state == admin_pb2.TARGET_STATE_PROBING, "the breaker is open")
    assert "DOWN, probed" in shop.desk.run("target", "list").stdout
    opened = time.monotonic()
    until(lambda: sum(at > opened for at, _ in list(shop.seen)) >= 3, "it is probed")
    probes = [at for at, _ in list(shop.seen) if at > opened]
    assert len(probes) <= probes[-1] - opened + 3
    shop.down = False
    until(lambda: shop.target().state == admin_pb2.TARGET_STATE_HEALTHY, "it is found to be back")
    until(lambda: not shop.target().backlog, "all have gone on")
    for tx_id in txs:
        until(lambda tx_id=tx_id: shop.state(tx_id) == c.STATE_COMMITTED, "each has ended")


def test_limits_and_what_is_refused(shop: Shop) -> None:
    say = ("--reason", "x")
    would = shop.desk.run("target", "limit", shop.url, "--rate", "2.5", "--dry-run", *say).stdout
    assert would == f"{shop.url}: would be healthy, 2.5/s\n"
    assert shop.target().limits.rate_per_s == 0
    [limited] = shop.desk.json("target", "limit", shop.url, "--rate", "2.5", "--at-once", "3", *say)
    assert (limited["rate_per_s"], limited["at_once"]) == (2.5, 3)
    assert "2.5/s, 3 at once" in shop.desk.run("target", "list").stdout
    began = time.monotonic()
    txs = [shop.commit() for _ in range(6)]
    until(lambda: all(map(shop.calls, txs)), "all are called")
    assert time.monotonic() - began >= 5 / 2.5 - 0.5
    shop.desk.run("target", "limit", shop.url, *say)
    assert shop.target().limits == admin_pb2.TargetLimits()
    assert "UNKNOWN_PARTICIPANT" in shop.desk.run("target", "pause", "no target", *say, code=6).stderr
    nobody = shop.desk.run("target", "pause", "grpc://nobody:1", *say, code=6).stderr
    assert f"no such target: 'grpc://nobody:1'; known to this coordinator are {shop.url}" in nobody
    told = shop.desk.run("target", "pause", "grpc://nobody:1", "--for", "1d", "--force", *say).stdout
    assert re.search(r"PAUSED \(paused until 20\d\d-.*Z by ada@desk: x\)", told)
    shop.desk.run("target", "resume", "grpc://nobody:1", *say)
    assert "BAD_REQUEST" in shop.desk.run("target", "pause", shop.url, "--reason", " ", code=6).stderr
    assert "--for" in shop.desk.run("target", "pause", shop.url, "--for", "soon", *say, code=2).stderr


def test_one_that_has_moved(shop: Shop) -> None:
    say, old = ("--reason", "moved"), "http://127.0.0.1:9"
    url, shop.url = shop.url, old
    try:
        tx_id = shop.commit()
        until(lambda: shop.target().backlog, "it waits: nobody is there")
        for to, why in (
            (old, "BAD_REQUEST"),
            ("grpc://127.0.0.1:9", "BAD_REQUEST"),
            ("http://10.0.0.1", "TARGET_NOT_ALLOWED"),
            ("nobody", "UNKNOWN_PARTICIPANT"),
        ):
            assert why in shop.desk.run("target", "alias", old, to, *say, code=6).stderr
        said = shop.desk.run("target", "alias", old, url, *say).stdout
        assert f"its calls go to {url}" in said
        assert (
            "goes no further"
            in shop.desk.run("target", "alias", url, "http://127.0.0.1:8", *say, code=6).stderr
        )
        until(lambda: shop.calls(tx_id), "it is called there")
        [shown] = shop.desk.json("target", "list", f'name = "{old}"')
        assert shown["alias_of"] == url
        shop.desk.run("target", "alias", old, *say)
        assert not shop.target().alias_of
        found = shop.desk.json("audit", "list", "--target", old)
        assert [e["detail"]["after"]["alias_of"] for e in found] == ["", url]
    finally:
        shop.url = url
