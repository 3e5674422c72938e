"""A process that sends one message with a local transaction, and dies at a drawn point: SIGKILL, by its own hand.

It is forked from a process that has loaded all it needs and used none of it: that one reads a job a line, and says how
each has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from txcoord_client import Coordinator, Participant, TxcoordError
from txcoord_client.protocol import mariadb, marker, postgresql


class Way(StrEnum):
    """How it is sent, and who is asked what became of its local transaction."""

    LOCAL = "local"
    ATTACH = "attach"
    LOCAL_ANSWERED = "local, answered"
    ATTACH_ANSWERED = "attach, answered"
    HTTP = "http"
    HTTP_ANSWERED = "http, answered"

    @property
    def answered(self) -> bool:
        """Is its service asked, over gRPC or over HTTP, and not its database?"""
        return self.value.endswith("answered")


class Point(StrEnum):
    """When it dies."""

    PREPARE_LOST = "prepare sent, reply lost"
    BEFORE_COMMIT = "before the local commit"
    BEFORE_SUBMIT = "between local commit and submit"
    SUBMIT_LOST = "submit sent, reply lost"
    AFTER_SUBMIT = "after submit"
    ANY = "at any moment"
    NEVER = "never"


@dataclass(frozen=True)
class Job:
    """One run."""

    number: int
    body: str
    way: Way
    database: str
    point: Point
    wait_s: float
    """``ANY``, and where a reply is lost: so long after its work, or the request, has begun."""
    rolls_back: bool
    address: str = ""
    http: str = ""
    urls: Mapping[str, str] | None = None
    warehouse: str = ""
    answerers: tuple[str, str] = ("", "")
    """Over gRPC, and over HTTP."""
    timeout_s: float = 10.0

    @classmethod
    def read(cls, line: bytes) -> Job:
        """From a line."""
        found = json.loads(line)
        return cls(**found | {"way": Way(found["way"]), "point": Point(found["point"])})

    def line(self) -> bytes:
        """As a line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def service(self) -> str:
        """The participant that has its database."""
        return f"{self.database}-service"


class GaveUp(Exception):
    """Its business says no, or the coordinator does."""


def die() -> None:
    """Now."""
    os.kill(os.getpid(), signal.SIGKILL)


class Sender:
    """One life."""

    def __init__(self, job: Job) -> None:
        self.job = job
        assert job.urls is not None
        self.engine = create_async_engine(job.urls[job.database], pool_size=2)

    async def run(self) -> None:
        """Do it."""
        # What became of it is for others to find out; a late commit is refused by the database.
        with contextlib.suppress(TxcoordError, GaveUp, IntegrityError, OSError, http.client.HTTPException):
            await (self._over_http() if self.job.way.startswith("http") else self._by_sdk())

    def _begins(self) -> None:
        if self.job.point is Point.ANY:
            timer = threading.Timer(self.job.wait_s, die)
            timer.daemon = True
            timer.start()

    async def _work(self, db: Any) -> None:
        await db.execute(text("INSERT INTO work (body) VALUES (:body)"), {"body": self.job.body})

    # ---- by the SDK ----

    async def _by_sdk(self) -> None:
        job = self.job
        answerer = Participant(job.service, db=self.engine)
        async with Coordinator(
            job.address,
            resources={job.database: self.engine},
            participants={"warehouse": job.warehouse, job.service: job.answerers[0]},
            timeout=job.timeout_s,
            call_timeout=60,
        ) as coord:
            runtime = coord._runtime()
            await runtime.connect_by_default()
            self._pointed(runtime.wire)
            by: dict[str, Any] = {"answered_by": answerer} if job.way.answered else {}
            self._begins()
            if job.way.startswith("local"):
                async with coord.local(self.engine, **by) as tx:
                    await self._work(tx.db)
                    self._tell(tx)
                    if job.rolls_back:
                        raise GaveUp
            else:
                async with AsyncSession(self.engine) as session:
                    await self._work(session)
                    async with coord.attach(session, **by) as attached:
                        self._tell(attached)
                    await (session.rollback() if job.rolls_back else session.commit())
        await self.engine.dispose()

    def _tell(self, tx: Any) -> None:
        tx.message("warehouse", {"body": self.job.body}, operation="warehouse.told")

    def _pointed(self, wire: Any) -> None:
        real = wire._send

        async def send(name: str, request: Any, left: float) -> Any:
            prepares = name in ("enlist", "prepare_message")
            return await self._at(prepares, lambda: real(name, request, left))

        wire._send = send

    async def _at(self, prepares: bool, ask: Callable[[], Awaitable[Any]]) -> Any:
        """One of its requests: it prepares the message, or says how it has ended."""
        point = self.job.point
        if not prepares and point is Point.BEFORE_SUBMIT:
            die()
        if point is (Point.PREPARE_LOST if prepares else Point.SUBMIT_LOST):
            asked = asyncio.ensure_future(ask())
            await asyncio.sleep(self.job.wait_s)
            die()
            await asked
        out = await ask()
        if point is (Point.BEFORE_COMMIT if prepares else Point.AFTER_SUBMIT):
            die()
        return out

    # ---- over HTTP, without the SDK ----

    async def _over_http(self) -> None:
        job = self.job
        check = {"target": job.answerers[1], "participant": job.service}
        part = {
            "target": job.warehouse,
            "operation": "warehouse.told",
            "payloadJson": {"body": job.body},
        }
        prepare = {
            "gid": job.body,
            "deadlineUs": str(await self._now_us() + round(job.timeout_s * 1e6)),
            "check": check if job.way.answered else {"resource": job.database},
            "branches": [{"id": "1", "kind": "KIND_MESSAGE", "delivery": part}],
        }
        self._begins()
        async with self.engine.connect() as db:
            await self._work(db)
            told = await self._at(True, lambda: self._post("/v1/messages", prepare))
            await db.exec_driver_sql(self._marker(told["outcome"]["txId"]))
            await (db.rollback() if job.rolls_back else db.commit())
        end = f"/v1/transactions/{job.body}/rollback" if job.rolls_back else f"/v1/messages/{job.body}/submit"
        await self._at(False, lambda: self._post(end, {}))
        await self.engine.dispose()

    async def _now_us(self) -> int:
        return int((await asyncio.to_thread(self._ask, "GET", "/v1/hello", None))["logTimeUs"])

    async def _post(self, path: str, body: Any) -> Any:
        return await asyncio.to_thread(self._ask, "POST", path, body)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        """Again, where the coordinator is away."""
        until = time.monotonic() + 60
        while True:
            try:
                return self._ask_once(method, path, body)
            except (OSError, http.client.HTTPException):
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def _ask_once(self, method: str, path: str, body: Any) -> Any:
        connection = http.client.HTTPConnection(self.job.http, timeout=10)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            said = json.loads(reply.read())
        if reply.status >= 500:
            raise OSError(f"{reply.status}: {said}")
        if reply.status >= 300:
            raise GaveUp(f"{reply.status}: {said}")
        return said

    def _marker(self, tx_id: str) -> str:
        insert = postgresql.insert_marker if self.job.database == "accounts" else mariadb.insert_marker
        return insert(tx_id, marker.ONE_BRANCH, marker.ONE, 2**62)


def main() -> None:
    """Read jobs, fork for each, and say how they have ended."""
    left: dict[int, int] = {}
    buffer = b""
    reading = True
    while reading or left:
        ready, _, _ = select.select([0] if reading else [], [], [], 0.01)
        if ready:
            data = os.read(0, 65_536)
            reading = bool(data)
            buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            job = Job.read(line)
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    os.close(0)
                    asyncio.run(Sender(job).run())
                    code = 0
                finally:
                    os._exit(code)
            left[pid] = job.number
        while left:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            os.write(1, f"{left.pop(pid)} {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
