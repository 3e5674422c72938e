"""What a Coordinator has in one process and event loop: the wire, its tasks, who may take which connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Hashable
from typing import Any, TypeVar

from . import _sources
from ._admission import Admission
from ._pb import common_pb2 as c
from ._pb import coordinator_pb2 as pb
from ._wire import Wire
from ._xa.branch import Branch
from ._xa.held import Held, Source
from .errors import ResourceMismatch, UnknownResource
from .protocol import postgresql as pg
from .protocol import reasons

log = logging.getLogger("txcoord.client")
T = TypeVar("T")
_CLOSE_S = 5.0


class Runtime:
    """One event loop's part of a Coordinator."""

    def __init__(
        self,
        address: str,
        namespace: str,
        resources: _sources.Resources,
        *,
        version: str,
        call_timeout: float,
    ) -> None:
        self.namespace = namespace
        self.wire = Wire(address, namespace, version=version)
        self.admission = Admission()
        self.call_timeout = call_timeout
        self.closed = False
        """Is it closed, or being closed?"""
        self._resources = resources
        self._tasks: set[asyncio.Task[Any]] = set()
        self._known: dict[str, pb.ResourceInfo] = {}
        self._checked: dict[int, tuple[object, str]] = {}
        """Engines and pools (kept, so that their ids stay theirs) and the resource that each was found to be."""
        self._hello: pb.HelloResponse | None = None

    # ---- hello ----

    async def connect(self, until: float, *, fresh: bool = False) -> pb.HelloResponse:
        """Know the log's id, clock and limits."""
        hello = await self.wire.hello(until, fresh=fresh)
        if hello is not self._hello:
            self._hello = hello
            self._known = {r.name: r for r in hello.resources}
        return hello

    async def connect_by_default(self, *, fresh: bool = False) -> None:
        """As :meth:`connect`, within the time of one call."""
        if self._hello is None or fresh:
            await self.connect(asyncio.get_running_loop().time() + self.call_timeout, fresh=fresh)

    @property
    def log_id(self) -> str:
        """Part of every xid."""
        assert self._hello is not None
        return self._hello.log_id

    @property
    def limits(self) -> pb.Limits:
        """What the coordinator allows."""
        assert self._hello is not None
        return self._hello.limits

    @property
    def grace_us(self) -> int:
        """How long after the deadline a marker may still be written (*Windows*, H)."""
        assert self._hello is not None
        return self._hello.limits.grace_us

    # ---- tasks ----

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task that this Coordinator owns."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def shielded(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Wait for work that goes on when the waiting is cancelled."""
        task = self.spawn(work, name)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_retrieve)
            raise

    async def close(self) -> None:
        """Let what is under way end, then leave."""
        self.closed = True
        loop = asyncio.get_running_loop()
        until = loop.time() + _CLOSE_S
        # An end may leave a report behind: another task.
        while self._tasks and loop.time() < until:
            await asyncio.wait(self._tasks, timeout=until - loop.time())
        late = list(self._tasks)
        for task in late:
            log.warning("%s was still under way when the Coordinator was closed", task.get_name())
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await self.wire.close()

    # ---- branches ----

    def source(self, target: Any, resource: str) -> Source:
        """Where a target's connections come from. Raises UnknownResource."""
        source = self._resources.source(target, resource)
        if source.resource not in self._known:
            known = ", ".join(sorted(self._known)) or "none"
            raise UnknownResource(
                f"the coordinator has no resource {source.resource!r} (it has: {known}); "
                f"set TXCOORD_RESOURCES__{source.resource.upper()}__URL there, or use one of its names here",
                facts={"resource": source.resource},
            )
        return source

    async def open_branch(self, branch: Branch, source: Source, holder: Hashable, until: float) -> None:
        """Wait for room in the pool, get a connection, check it, begin."""
        if source.pool is not None:
            await self.admission.enter(holder, source.pool, source.resource, source.pool_size, until)
            branch.admitted = True
        try:
            await branch.open(self._check_identity, until)
        except BaseException:
            self._leave(branch, holder)
            raise

    async def release_branch(self, branch: Branch, holder: Hashable, committed: bool) -> None:
        """Give its connection back."""
        try:
            await branch.release(committed)
        finally:
            self._leave(branch, holder)

    async def drop_branch(self, branch: Branch, holder: Hashable) -> None:
        """Undo a branch that nobody will end."""
        await branch.rollback(asyncio.get_running_loop().time() + 2.0)
        await self.release_branch(branch, holder, False)

    def _leave(self, branch: Branch, holder: Hashable) -> None:
        if branch.admitted and branch.pool is not None:
            branch.admitted = False
            self.admission.leave(holder, branch.pool)

    async def _check_identity(self, held: Held, source: Source) -> None:
        """Service and coordinator must mean the same database by a name; asked once for each engine."""
        owner = source.identity_of
        if owner is not None and self._checked.get(id(owner), (None, ""))[1] == source.resource:
            return
        info = self._known.get(source.resource) or pb.ResourceInfo(name=source.resource)
        if not info.identity:
            # The coordinator had not reached it when it said hello.
            await self.connect_by_default(fresh=True)
            info = self._known.get(source.resource, info)
        found = await self._identity(held, source)
        if info.identity and found != info.identity:
            raise ResourceMismatch(
                f"resource {source.resource!r}: this service is connected to the database {found}, the coordinator "
                f"to {info.identity}. One of the two URLs is wrong",
                facts={"resource": source.resource, "here": found, "coordinator": info.identity},
            )
        if owner is not None and info.identity:
            self._checked[id(owner)] = (owner, source.resource)

    async def _identity(self, held: Held, source: Source) -> str:
        try:
            found = await held.fetch_value(pg.read_identity())
        except Exception as error:
            state = getattr(error, "sqlstate", "")
            if state == "42501":
                raise ResourceMismatch(
                    f"resource {source.resource!r}: {error}. The service's role needs GRANT SELECT ON txcoord_identity "
                    "and GRANT INSERT ON txcoord_marker",
                    reason=reasons.RESOURCE_NOT_PREPARED,
                    facts={"resource": source.resource},
                ) from error
            if state != "42P01":
                raise
            found = None
        if not found:
            raise ResourceMismatch(
                f"resource {source.resource!r}: the database has no txcoord tables; run "
                f"'txcoord resource check {source.resource} --fix'",
                reason=reasons.RESOURCE_NOT_PREPARED,
                facts={"resource": source.resource},
            )
        return str(found)

    # ---- requests ----

    async def settle(
        self,
        tx_id: str,
        gid: str,
        deadline_us: int,
        resources: tuple[str, ...],
        *,
        begun: bool,
        until: float,
        reason: str = "SETTLED",
    ) -> c.Outcome:
        """Ask for abort, to learn the outcome: whatever was committed stays so."""
        request = pb.RollbackRequest(
            tx_id=tx_id,
            gid=gid,
            deadline_us=deadline_us,
            resources=resources,
            force_log=True,
            begun=begun,
            wait=c.WAIT_LEVEL_DECIDED,
            reason=reason,
        )
        response: pb.RollbackResponse = await self.wire.call("rollback", request, until, tx_id=tx_id, gid=gid)
        return response.outcome


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
