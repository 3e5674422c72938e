"""Helpers of the tests that run the command line as a user does: in a process, in a folder of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.support.databases import database_of
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import TXCOORD, run
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._pb import coordinator_pb2_grpc as rpc
from txcoord_client.protocol import identifiers
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol.xid import Xid

SECOND = 1_000_000


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings of whoever runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("TXCOORD_")}
    return {**kept, **extra}


@dataclass
class Desk:
    """A folder and an environment in which commands are run."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``txcoord``; its exit code must be ``code``. No command may ever show a traceback."""
        command = [*TXCOORD, *arguments]
        code_, out, err = run(command, env=clean_environment({**self.env, **env}), cwd=self.folder)
        done = subprocess.CompletedProcess(command, code_, out, err)
        said = f"txcoord {' '.join(arguments)} -> {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == code, said
        assert "Traceback" not in said, said
        return done

    def json(self, *arguments: str, code: int = 0, **env: str) -> list[Any]:
        """Run it with ``--json`` and read every line."""
        return [
            json.loads(line) for line in self.run(*arguments, "--json", code=code, **env).stdout.splitlines()
        ]


def resource(name: str, url: str) -> dict[str, str]:
    """The setting of a resource."""
    return {f"TXCOORD_RESOURCES__{name}__URL": url}


def until(true: Callable[[], Any], what: str, patience_s: float = 30.0, every_s: float = 0.05) -> Any:
    """Ask until it is so; answers what was asked."""
    ends = time.monotonic() + patience_s
    while time.monotonic() < ends:
        answer = true()
        if answer:
            return answer
        time.sleep(every_s)
    raise AssertionError(f"still not: {what}")


class Service:
    """What a service with the SDK would do, by hand: prepare branches, ask for commit."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.stub: Any = rpc.CoordinatorServiceStub(self.channel)
        hello = self.stub.Hello(pb.HelloRequest(), timeout=10, wait_for_ready=True)
        self.log_id, self.log_time_us = hello.log_id, hello.log_time_us

    def new(self, *, timeout_s: float = 30.0) -> Work:
        """A transaction of which nobody knows yet."""
        now_us = self.stub.Hello(pb.HelloRequest(), timeout=10).log_time_us
        return Work(self, identifiers.new_tx_id(now_us, secrets.randbits), now_us + int(timeout_s * SECOND))


class Work:
    """One transaction."""

    def __init__(self, service: Service, tx_id: str, deadline_us: int) -> None:
        self.service, self.tx_id, self.deadline_us = service, tx_id, deadline_us
        self.branches: list[c.Branch] = []
        self.gid = ""
        self.spec = c.TransactionSpec(name="payment")

    def begin(self, gid: str) -> None:
        """Announce it under a name of its own."""
        self.gid = gid
        request = pb.BeginRequest(tx_id=self.tx_id, gid=gid, deadline_us=self.deadline_us, spec=self.spec)
        self.service.stub.Begin(request, timeout=20)

    def prepare(self, name: str, server: PostgresServer, url: str) -> str:
        """Do something in that database and prepare it; its xid."""
        number = str(len(self.branches) + 1)
        xid = str(Xid(self.service.log_id, self.deadline_us, self.tx_id, number))
        until_us = self.deadline_us + 5 * SECOND
        server.sql(
            f"BEGIN; {pg.START_GUARD}; {pg.prepare(self.tx_id, number, xid, until_us)};", database_of(url)
        )
        branch = c.Branch(id=number, kind=c.KIND_XA, vote=c.VOTE_PREPARED)
        branch.xa.resource, branch.xa.xid = name, xid
        self.branches.append(branch)
        return xid

    def commit(self, level: c.WaitLevel = c.WAIT_LEVEL_COMMITTED) -> c.Outcome:
        """Ask for commit."""
        request = pb.CommitRequest(
            tx_id=self.tx_id,
            gid=self.gid,
            deadline_us=self.deadline_us,
            branches=self.branches,
            wait=level,
            spec=self.spec,
        )
        return self.service.stub.Commit(request, timeout=20).outcome  # type: ignore[no-any-return]
