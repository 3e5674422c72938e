"""Resources as a node runs them: known by their identity before anything is done on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from txcoord_client.protocol import reasons

from ..adapters.xa.checks import ERROR, OK, CannotConnect, Examiner, Expectations, Finding
from ..observe import logs
from ..ports import (
    Clock,
    Finished,
    Finisher,
    FinishResult,
    Log,
    LogUnavailable,
    PreparedBranch,
    Probed,
    ResourceStatus,
    ResourceTrouble,
)
from .errors import ExitCode, StartError

if TYPE_CHECKING:
    from ..adapters.xa.mariadb import MariaFinisher
    from ..adapters.xa.postgresql import PostgresFinisher

    AnyFinisher = PostgresFinisher | MariaFinisher

log = logs.get("txcoord.resources")

LookAt = Callable[[str], tuple[Examiner, Expectations]]
"""What looks at the resource of that name, not connected yet, and what it has to know."""

_NO_IDENTITY = (reasons.RESOURCE_NOT_PREPARED, reasons.NOT_PERMITTED)
_NOT_LOOKED_AT = "not looked at yet"
_RETRY_S = 2.0
_LOOK_AGAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a database has shown."""

    identity: str = ""
    version: str = ""
    problem: str = ""
    trouble: ResourceTrouble | None = None
    risks: tuple[Finding, ...] = ()
    """What is wrong besides, or may go wrong."""


class ManagedResource:
    """A finisher that does nothing before its database's identity has been compared with the log's memory.

    A URL that leads to the wrong database would let the scanner judge, and phase two "finish", what is not there.
    """

    def __init__(self, finisher: AnyFinisher, look_at: LookAt) -> None:
        self.name = finisher.name
        self.status = ResourceStatus(finisher.name, finisher.engine, problem=_NOT_LOOKED_AT)
        self.trouble: ResourceTrouble | None = ResourceTrouble(
            finisher.name, reasons.RESOURCE_UNREACHABLE, _NOT_LOOKED_AT
        )
        """Why nothing is done on it."""
        self.risks: tuple[Finding, ...] = ()
        self._finisher = finisher
        self._look_at = look_at

    # ---- ports.Finisher ----

    @property
    def engine(self) -> str:
        """What it was when it was reached last."""
        return self._finisher.engine

    @property
    def lists_server(self) -> bool:
        """Are the branches of other databases on the server listed too?"""
        return self._finisher.lists_server

    async def identity(self) -> str:
        """The identity row of the database."""
        return await self._finisher.identity()

    async def finish(self, xid: str, commit: bool) -> FinishResult:
        """COMMIT or ROLLBACK PREPARED, once it is known to be the right database."""
        if self.trouble is not None:
            return FinishResult(Finished.RETRY, f"{self.trouble.reason}: {self.trouble.message}")
        return await self._finisher.finish(xid, commit)

    async def list_prepared(self, log_ids: Sequence[str]) -> list[PreparedBranch]:
        """Prepared transactions of these logs."""
        return await self._known().list_prepared(log_ids)

    async def has_ended(self, xid: str, commit: bool) -> bool:
        """Has its own session finished it?"""
        return await self._known().has_ended(xid, commit)

    async def owns(self, xid: str) -> bool:
        """Is the prepared branch in this database?"""
        return await self._known().owns(xid)

    async def in_limbo(self) -> int:
        """How many prepared branches nobody can name any more."""
        return await self._known().in_limbo()

    async def probe_one_phase(self, tx_id: str, not_after_us: int) -> Probed:
        """Tombstone the one-phase key."""
        return await self._known().probe_one_phase(tx_id, not_after_us)

    async def prune_markers(self, not_after_us: int, limit: int) -> int:
        """Delete a small batch of old markers."""
        return await self._known().prune_markers(not_after_us, limit)

    @property
    def expected_identity(self) -> str:
        """That of the right database, once this process has seen it; empty before."""
        return self._finisher.expected_identity or ""

    def by_hand(self, xid: str, commit: bool) -> str:
        """What a person runs there."""
        return self._finisher.by_hand(xid, commit)

    async def close(self) -> None:
        """Close all connections."""
        await self._finisher.close()

    def _known(self) -> Finisher:
        if self.trouble is not None:
            # The same object again and again: without what it gathered on its way the last time.
            raise self.trouble.with_traceback(None)
        return self._finisher

    # ---- getting to know it ----

    async def inspect(self) -> Seen:
        """Look at the database; changes nothing here."""
        eyes, expected = self._look_at(self.name)
        try:
            facts = await eyes.collect(thorough=self.status.problem == _NOT_LOOKED_AT)
        except CannotConnect as cannot:
            return Seen(trouble=self._trouble(cannot.finding))
        finally:
            await eyes.close()
        findings = [f for f in eyes.judge(facts, expected) if f.severity != OK]
        refused = [f for f in findings if f.refused]
        if not refused and not facts.identity:
            refused = [f for f in findings if f.reason in _NO_IDENTITY]
        if refused:
            return Seen(version=facts.version, trouble=self._trouble(refused[0]))
        try:
            await self._finisher.identity()  # What finishes branches has to get in too; it learns its engine.
        except ResourceTrouble as trouble:
            return Seen(version=facts.version, trouble=trouble)
        unfit = [f for f in findings if f.reason == reasons.PREPARE_DISABLED]
        risks = tuple(f for f in findings if f not in unfit)
        return Seen(facts.identity, facts.version, str(unfit[0]) if unfit else "", risks=risks)

    def _trouble(self, finding: Finding) -> ResourceTrouble:
        return ResourceTrouble(self.name, finding.reason, str(finding).removeprefix(f"{finding.reason}: "))

    async def judge(self, seen: Seen, log_: Log, others: Mapping[str, ManagedResource]) -> None:
        """Is it the database that it was? What is wrong is in ``trouble`` and ``status`` afterwards."""
        known = self._finisher.expected_identity
        trouble, problem = seen.trouble, seen.problem
        if trouble is None:
            trouble = self._twin(seen.identity, others)
        if trouble is None:
            remembered = await log_.resource_identity(self.name)
            if seen.identity != remembered:
                whose = await whose_identity(log_, self.name, seen.identity, others)
                if remembered is None and not whose:
                    remembered = await log_.remember_resource(self.name, seen.identity)
                if seen.identity != remembered:
                    text = mismatch(self.name, seen.identity, remembered, whose)
                    trouble = ResourceTrouble(self.name, reasons.RESOURCE_MISMATCH, text)
        if trouble is None:
            self._finisher.expected_identity = seen.identity
        if trouble is not None:
            problem = f"{trouble.reason}: {trouble.message}"
        if trouble is not None and known and trouble.reason == reasons.RESOURCE_UNREACHABLE:
            # It was the right database, and each new connection is compared: phase two may go on trying.
            trouble = None
        self.trouble = trouble
        self.status = ResourceStatus(
            self.name, self.engine, seen.identity or known or "", seen.version or self.status.version, problem
        )

    def _twin(self, found: str, others: Mapping[str, ManagedResource]) -> ResourceTrouble | None:
        for other in others.values():
            if other is not self and other.trouble is None and other.status.identity == found:
                return ResourceTrouble(
                    self.name,
                    reasons.RESOURCE_MISMATCH,
                    f"it has the identity {found} of resource {other.name!r}: both URLs lead to one database, or "
                    "one is a copy of the other. A copy gets its own identity by `DELETE FROM txcoord_identity` and "
                    f"`txcoord resource check {self.name} --replace-identity`",
                )
        return None


async def whose_identity(log_: Log, name: str, identity: str, names: Iterable[str]) -> str:
    """The other name for which the log remembers this identity; empty for none of them. (Under ``name`` itself another
    node may have written it just now.)"""
    for other in names:
        if other != name and await log_.resource_identity(other) == identity:
            return other
    return ""


def mismatch(name: str, found: str, remembered: str | None, whose: str) -> str:
    """What to say, and how to mend it, when a name leads to another database than before."""
    text = (
        f"its URL leads to the database with identity {found}, but the log remembers "
        f"{remembered or 'none'} for {name!r}. "
    )
    if whose:
        return (
            text
            + f"That database is {whose!r}: the URLs of {name!r} and {whose!r} look swapped; put them right"
        )
    return text + (
        "Is it another server? Put the URL right. If the database was replaced on purpose, and nothing of the old "
        f"one is in doubt: `txcoord resource check {name} --replace-identity`"
    )


class Resources:
    """All resources of a node, looked at again and again in the background."""

    def __init__(self, finishers: Sequence[AnyFinisher], log_: Log, clock: Clock, look_at: LookAt) -> None:
        self.by_name = {finisher.name: ManagedResource(finisher, look_at) for finisher in finishers}
        self._log = log_
        self._clock = clock

    def statuses(self) -> list[ResourceStatus]:
        """What Hello and ListResources say."""
        return [resource.status for resource in self.by_name.values()]

    async def expected_identity(self, name: str) -> str:
        """That which the database of a resource must have, also while it is away; empty: nobody has ever seen it."""
        if known := self.by_name[name].expected_identity:
            return known
        try:
            return await self._log.resource_identity(name) or ""
        except LogUnavailable:
            return ""

    async def look_first(self) -> None:
        """Look at all, side by side. Raises StartError where a URL leads to the wrong database."""
        resources = list(self.by_name.values())
        # Side by side, so that many unreachable ones cost one time-out; judged one after the other, so that
        # each is compared with those before it.
        seen = await asyncio.gather(*(resource.inspect() for resource in resources))
        for resource, one in zip(resources, seen, strict=True):
            await resource.judge(one, self._log, self.by_name)
            self._warn(resource, one.risks)
            trouble = resource.trouble
            if trouble is not None and trouble.reason == reasons.RESOURCE_MISMATCH:
                raise StartError(
                    ExitCode.CONFIG, trouble.reason, f"resource {resource.name!r}: {trouble.message}"
                )
            self._say(resource, before="")

    async def watch(self, resource: ManagedResource) -> None:
        """Look again: soon at what is in trouble, now and then at the others."""
        while True:
            await self._clock.sleep(_RETRY_S if resource.status.problem else _LOOK_AGAIN_S)
            before = resource.status.problem
            try:
                seen = await resource.inspect()
                await resource.judge(seen, self._log, self.by_name)
            except LogUnavailable as error:
                log.warning("resource.not_compared", resource=resource.name, reason=str(error))
                continue
            self._say(resource, before)
            if seen.trouble is None:
                self._warn(resource, seen.risks)

    def _warn(self, resource: ManagedResource, risks: Sequence[Finding]) -> None:
        """Each once, until it has been gone. Figures change; the reason and the remedy are what it is about."""
        known = {(f.reason, *f.remedy) for f in resource.risks}
        for f in risks:
            if (f.reason, *f.remedy) not in known:
                say = log.error if f.severity == ERROR else log.warning
                say("resource.finding", resource=resource.name, reason=f.reason, finding=str(f))
        resource.risks = tuple(risks)

    def _say(self, resource: ManagedResource, before: str) -> None:
        problem = resource.status.problem
        if problem and problem != before:
            log.warning("resource.trouble", resource=resource.name, problem=problem)
        elif before and not problem:
            log.info("resource.ready", resource=resource.name, identity=resource.status.identity)

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(resource.close() for resource in self.by_name.values()))
