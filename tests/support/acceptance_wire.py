"""The wire itself: raw stubs, transactions made by hand, and what a refusal says."""

from __future__ import annotations

import secrets
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.support.acceptance import Db, Site
from tests.support.databases import database_of
from txcoord.testing.postgres import PostgresServer
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._pb import coordinator_pb2_grpc as rpc
from txcoord_client.protocol import identifiers
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol.xid import Xid

S = 1_000_000


@dataclass
class Refusal:
    """What came instead of an answer."""

    code: str = ""
    reason: str = ""
    message: str = ""
    definite: bool = False
    facts: dict[str, str] = field(default_factory=dict)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Read as any client of gRPC would: from the google.rpc.Status."""
    out = Refusal(error.code().name, message=error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                assert info.domain == "txcoord"
                out.reason = info.reason
                out.facts = dict(info.metadata)
                out.definite = info.metadata["definite"] == "true"
    return out


@contextmanager
def refused(code: str, reason: str, match: str = "") -> Iterator[Refusal]:
    """The call inside is refused, with this code and reason."""
    out = Refusal()
    with pytest.raises(grpc.aio.AioRpcError, match=match or None) as caught:
        yield out
    out.__dict__.update(refusal_of(caught.value).__dict__)
    assert (out.code, out.reason) == (code, reason), out


class Wire:
    """A coordinator, by its unary calls."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.stub: Any = rpc.CoordinatorServiceStub(self.channel)
        self.hello = pb.HelloResponse()

    async def call(self, method: str, request: Any, timeout: float = 10.0) -> Any:
        return await getattr(self.stub, method)(request, timeout=timeout)

    def tx(self, gid: str = "", seconds: float = 30.0, **more: Any) -> RawTx:
        """A transaction with ids of its own."""
        now_us = time.time_ns() // 1000
        return RawTx(
            self, identifiers.new_tx_id(now_us, secrets.randbits), gid, now_us + round(seconds * S), **more
        )

    async def get(self, **what: Any) -> Any:
        """The transaction of a gid or tx id."""
        return (await self.call("Get", pb.GetRequest(**what))).transaction


@asynccontextmanager
async def wire_to(address: str) -> AsyncIterator[Wire]:
    wire = Wire(address)
    wire.hello = await wire.call("Hello", pb.HelloRequest(client="acceptance"))
    try:
        yield wire
    finally:
        await wire.channel.close()


@dataclass
class RawTx:
    """A transaction made by hand."""

    wire: Wire
    tx_id: str
    gid: str
    deadline_us: int
    name: str = "raw"
    labels: dict[str, str] = field(default_factory=dict)
    begun: bool = False

    # ---- what it is ----

    def xid(self, number: str, log_id: str = "") -> str:
        return str(Xid(log_id or self.wire.hello.log_id, self.deadline_us, self.tx_id, number))

    def branch(self, number: str, resource: str, vote: int = c.VOTE_PREPARED, **more: Any) -> c.Branch:
        out = c.Branch(id=number, kind=c.KIND_XA, vote=vote, **more)  # type: ignore[arg-type]
        out.xa.resource, out.xa.xid = resource, self.xid(number)
        return out

    def prepare(self, db: Db, number: str, body: str) -> c.Branch:
        """Work in a database, prepared as the SDK does it. The branch, with its vote."""
        not_after_us = self.deadline_us + self.wire.hello.limits.grace_us
        db.sql(
            f"BEGIN; {pg.START_GUARD}; INSERT INTO note VALUES ('{body}');"
            f" {pg.prepare(self.tx_id, number, self.xid(number), not_after_us)};"
        )
        return self.branch(number, db.name)

    @property
    def spec(self) -> c.TransactionSpec:
        return c.TransactionSpec(name=self.name, labels=self.labels)

    @property
    def _who(self) -> dict[str, Any]:
        return {"tx_id": self.tx_id, "gid": self.gid, "deadline_us": self.deadline_us}

    # ---- what is asked ----

    async def begin(self, **more: Any) -> c.Outcome:
        request = pb.BeginRequest(**{**self._who, "spec": self.spec, **more})
        response = await self.wire.call("Begin", request)
        self.begun = True
        outcome: c.Outcome = response.outcome
        return outcome

    async def enlist(self, *branches: c.Branch, **more: Any) -> c.Outcome:
        request = pb.EnlistRequest(
            **{**self._who, "branches": branches, "begun": self.begun, "spec": self.spec, **more}
        )
        response = await self.wire.call("Enlist", request)
        self.begun = True
        outcome: c.Outcome = response.outcome
        return outcome

    async def commit(
        self, *branches: c.Branch, wait: int = c.WAIT_LEVEL_COMMITTED, timeout: float = 10.0, **more: Any
    ) -> c.Outcome:
        request = pb.CommitRequest(
            **{**self._who, "branches": branches, "begun": self.begun, "wait": wait, **more}
        )
        if not self.begun:
            request.spec.CopyFrom(self.spec)
        outcome: c.Outcome = (await self.wire.call("Commit", request, timeout)).outcome
        return outcome

    async def rollback(
        self, *branches: c.Branch, wait: int = c.WAIT_LEVEL_COMMITTED, timeout: float = 10.0, **more: Any
    ) -> c.Outcome:
        request = pb.RollbackRequest(
            **{
                **self._who,
                "branches": branches,
                "begun": self.begun,
                "wait": wait,
                "initiator": True,
                "reason": "CHANGED_MY_MIND",
                **more,
            }
        )
        outcome: c.Outcome = (await self.wire.call("Rollback", request, timeout)).outcome
        return outcome

    async def get(self) -> Any:
        return await self.wire.get(tx_id=self.tx_id)

    async def reached(self, level: int, wait_s: float = 10.0) -> c.Outcome:
        """Wait until it is at that level."""
        request = pb.WaitRequest(
            items=[pb.WaitItem(tx_id=self.tx_id, level=level)],  # type: ignore[arg-type]
            wait_us=round(wait_s * S),
        )
        response = await self.wire.call("Wait", request, wait_s + 2)
        assert response.results, f"{self.tx_id} did not get to {c.WaitLevel.Name(level)}"  # type: ignore[arg-type]
        outcome: c.Outcome = response.results[0].outcome
        return outcome


def told(outcome: c.Outcome) -> tuple[str, str, str]:
    """State, decider and reason, in words."""
    return (
        c.State.Name(outcome.state).removeprefix("STATE_"),
        c.DecidedBy.Name(outcome.decided_by).removeprefix("DECIDED_BY_").lower(),
        outcome.reason,
    )


async def answer_to_commit(tx: RawTx, *branches: c.Branch) -> tuple[str, str, str]:
    """State, decider and reason that whoever asks for commit is told, as an answer or as a refusal."""
    try:
        return told(await tx.commit(*branches))
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        assert refusal.definite, refusal
        outcome = await tx.reached(c.WAIT_LEVEL_COMMITTED)  # a refusal waits for nothing
        assert refusal.reason == outcome.reason, refusal
        return told(outcome)


async def round_trips(wire: Wire) -> None:
    """The coordinator has had time for everything that was asked before."""
    for _ in range(20):
        await wire.call("Hello", pb.HelloRequest())


@contextmanager
def log_held(site: Site) -> Iterator[None]:
    """Nobody can write to the log meanwhile."""
    url = site.coordinator.env["TXCOORD_LOG__URL"]
    with ExitStack() as stack:
        if url.startswith("sqlite"):
            other = sqlite3.connect(url.partition(":///")[2], isolation_level=None)
            stack.callback(other.close)
            other.execute("BEGIN IMMEDIATE")
        else:
            stack.enter_context(_locked(site.accounts.server, database_of(url), "txcoord_tx"))
        yield


@contextmanager
def _locked(server: PostgresServer, database: str, table: str) -> Iterator[None]:
    command = [
        server._psql(), "-qAtX", "-h", "127.0.0.1", "-p", str(server.port), "-U", "postgres", "-d", database
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as psql:
        assert psql.stdin is not None
        assert psql.stdout is not None
        psql.stdin.write(f"BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE; SELECT 'locked';\n")
        psql.stdin.flush()
        assert psql.stdout.readline().strip() == "locked"
        yield
        psql.stdin.close()
