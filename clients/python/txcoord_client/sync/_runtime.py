# Made from txcoord_client/_runtime.py by scripts/sync; to change it, change that.
"""What a Coordinator has in one process and event loop: the wire, its tasks, who may take which connection."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

from .._pb import common_pb2 as c
from .._pb import coordinator_pb2 as pb
from .._places import ParticipantAt
from .._scope import opening_a_branch
from .._xa.drivers import errno_of, sqlstate_of
from ..access import Access
from ..errors import Rejected, ResourceMismatch, UnknownResource
from ..protocol import mariadb, reasons
from ..protocol.replies import Reply
from . import _aio, _sources
from ._admission import Admission
from ._participants import Participants
from ._wire import Wire
from ._xa.branch import Branch
from ._xa.dialect import Dialect
from ._xa.held import Held, Source
from ._xa.mariadb import MariaDB, MySQL
from ._xa.postgresql import PostgreSQL

log = logging.getLogger("txcoord.client")
_CLOSE_S = 5.0
_DIALECTS: dict[str, Dialect] = {"postgresql": PostgreSQL(), "mariadb": MariaDB(), "mysql": MySQL()}
"""By the engine that the coordinator tells."""


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
        participants: Mapping[str, ParticipantAt],
        access: Access,
    ) -> None:
        self.participants = Participants(participants)
        self.namespace = namespace
        self.wire = Wire(address, namespace, version=version, call_timeout=call_timeout, access=access)
        self.admission = Admission()
        self.call_timeout = call_timeout
        self.closed = False
        """Is it closed, or being closed?"""
        self._resources = resources
        self.tasks = _aio.Tasks()
        self._known: dict[str, pb.ResourceInfo] = {}
        self._checked: dict[int, tuple[object, str, str]] = {}
        """Engines and pools (kept, so that their ids stay theirs), what resource each is, and its schema."""
        self._hello: pb.HelloResponse | None = None

    # ---- hello ----

    def connect(self, until: float, *, fresh: bool = False) -> pb.HelloResponse:
        """Know the log's id, clock and limits."""
        hello = self.wire.hello(until, fresh=fresh)
        if hello is not self._hello:
            self._hello = hello
            self._known = {r.name: r for r in hello.resources}
        return hello

    def connect_by_default(self, *, fresh: bool = False) -> None:
        """As :meth:`connect`, within the time of one call."""
        if self._hello is None or fresh:
            self.connect(_aio.now() + self.call_timeout, fresh=fresh)

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

    @property
    def under_way(self) -> int:
        """How many ends and reports are on their way."""
        return len(self.tasks) + self.wire.under_way

    def close(self) -> None:
        """Let what is under way end, then leave."""
        self.closed = True
        until = _aio.now() + _CLOSE_S
        late = [*self.tasks.drain(_CLOSE_S), *self.wire.drain(max(until - _aio.now(), 0.1))]
        for name in late:
            log.warning("%s was still under way when the Coordinator was closed", name)
        self.participants.close()
        self.wire.close()

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

    def dialect(self, source: Source) -> Dialect:
        """How branches are made on a source. Raises Rejected where its driver speaks to another kind of database
        than the coordinator's resource of that name is."""
        engine = self._known[source.resource].engine
        dialect = _DIALECTS.get(engine)
        family = "postgresql" if engine == "postgresql" else "mysql"
        if dialect is None or family != source.family:
            raise Rejected(
                f"resource {source.resource!r} is {engine} at the coordinator, but this engine speaks to "
                f"{source.family}",
                reason=reasons.NOT_SUPPORTED,
                facts={"resource": source.resource},
            )
        return dialect

    def open_branch(self, branch: Branch, source: Source, holder: Hashable, until: float) -> None:
        """Wait for room in the pool, get a connection, check it, begin."""
        if source.pool is not None:
            # A session that is kept to the end is missing longer: half of the pool is for those.
            size = (source.pool_size + 1) // 2 if branch.holds else source.pool_size
            self.admission.enter(holder, source.pool, source.resource, size, until)
            branch.admitted = True
        try:
            with opening_a_branch():
                branch.open(self._check_identity, until)
        except BaseException:
            self._leave(branch, holder)
            raise

    def release_branch(self, branch: Branch, holder: Hashable, committed: bool) -> None:
        """Give its connection back."""
        try:
            branch.release(committed)
        finally:
            self._leave(branch, holder)

    def drop_branch(self, branch: Branch, holder: Hashable) -> None:
        """Undo a branch that nobody will end."""
        branch.rollback(_aio.now() + 2.0)
        self.release_branch(branch, holder, False)

    def _leave(self, branch: Branch, holder: Hashable) -> None:
        if branch.admitted and branch.pool is not None:
            branch.admitted = False
            self.admission.leave(holder, branch.pool)

    def _check_identity(self, held: Held, source: Source, dialect: Dialect) -> None:
        """Service and coordinator must mean the same database by a name; asked once for each engine."""
        owner = source.identity_of
        known = self._checked.get(id(owner)) if owner is not None else None
        if known is not None and known[1] == source.resource:
            held.schema = known[2]
            return
        info = self._known.get(source.resource) or pb.ResourceInfo(name=source.resource)
        if not info.identity:
            # The coordinator had not reached it when it said hello.
            self.connect_by_default(fresh=True)
            info = self._known.get(source.resource, info)
        found, held.schema = self._identity(held, source, dialect)
        if info.identity and found != info.identity:
            raise ResourceMismatch(
                f"resource {source.resource!r}: this service is connected to the database {found}, the coordinator "
                f"to {info.identity}. One of the two URLs is wrong",
                facts={"resource": source.resource, "here": found, "coordinator": info.identity},
            )
        if owner is not None and info.identity:
            self._checked[id(owner)] = (owner, source.resource, held.schema)

    def _identity(self, held: Held, source: Source, dialect: Dialect) -> tuple[str, str]:
        """The identity, and the schema where the dialect tells it."""
        try:
            found = held.fetch_alone(dialect.identity)
        except Exception as error:
            if _refused(error):
                raise ResourceMismatch(
                    f"resource {source.resource!r}: {error}. The service's role needs GRANT SELECT ON txcoord_identity "
                    "and GRANT INSERT ON txcoord_marker",
                    reason=reasons.RESOURCE_NOT_PREPARED,
                    facts={"resource": source.resource},
                ) from error
            if not _no_table(error):
                raise
            found = None
        if found is None:
            raise ResourceMismatch(
                f"resource {source.resource!r}: the database has no txcoord tables; run "
                f"'txcoord resource check {source.resource} --fix'",
                reason=reasons.RESOURCE_NOT_PREPARED,
                facts={"resource": source.resource},
            )
        return str(found[0]), str(found[1]) if len(found) > 1 else ""

    # ---- requests ----

    def settle(
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
        response: pb.RollbackResponse = self.wire.call("rollback", request, until, tx_id=tx_id, gid=gid)
        return response.outcome


def _refused(error: BaseException) -> bool:
    """Does the role lack rights?"""
    return sqlstate_of(error) == "42501" or mariadb.meaning(errno_of(error)) is Reply.REFUSED


def _no_table(error: BaseException) -> bool:
    return sqlstate_of(error) == "42P01" or mariadb.meaning(errno_of(error)) is Reply.NO_TABLE
