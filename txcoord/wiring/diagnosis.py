"""What is wrong with a resource, in plain words, and what mends it. Needs no running coordinator."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from txcoord_client.protocol import reasons

from ..adapters.xa.checks import (
    ERROR,
    CannotConnect,
    Examiner,
    Expectations,
    Facts,
    Finding,
    error,
    ok,
    warning,
)
from ..config import ResourceSettings, Settings, engine_of, microseconds, redacted
from ..ports import Log
from . import executing
from .examiners import examiner
from .resources import mismatch, whose_identity

LOST = (
    "the marker table was gone; it was made again, empty. The proof of what was committed before is lost: "
    "of a branch whose COMMIT was not answered nobody can tell any more"
)


@dataclass(slots=True)
class Diagnosis:
    """All findings about one resource, or about the log, or about the coordinator."""

    name: str
    url: str
    """Without passwords."""
    identity: str = ""
    version: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Is nothing wrong (any more)? Warnings are no wrong."""
        return all(f.severity != ERROR or f.fixed for f in self.findings)


@dataclass(frozen=True, slots=True)
class LogSeen:
    """What the log has said of itself."""

    log: Log
    log_ids: tuple[str, ...]
    offset_us: int
    """Its clock minus this machine's."""


async def look_at_log(log_: Log, log_ids: Sequence[str]) -> LogSeen:
    """Ask the log's clock. Raises LogUnavailable."""
    before_us = _here_us()
    now_us = await log_.now_us()
    return LogSeen(log_, tuple(log_ids), now_us - (before_us + _here_us()) // 2)


def expectations(name: str, settings: Settings, log_ids: Sequence[str] = ()) -> Expectations:
    """What the judge has to know."""
    return Expectations(
        name,
        tuple(log_ids),
        open_us=microseconds(settings.deadline.default),
        executes=executing.role_of(settings.resources[name]),
    )


async def diagnose(
    name: str,
    settings: Settings,
    seen: LogSeen | None,
    *,
    fix: bool = False,
    replace_identity: bool = False,
) -> Diagnosis:
    """Look at one resource; with ``fix`` make its tables and identity, and remember it in the log.

    ``seen`` None: the log cannot be had, so the identity cannot be compared or remembered.
    """
    resource = settings.resources[name]
    found = Diagnosis(name, redacted(resource.url.get_secret_value()))
    eyes = examiner(name, resource)
    try:
        facts = await eyes.collect()
        expected = expectations(name, settings, seen.log_ids if seen else ())
        findings = eyes.judge(facts, expected)
        made: list[Finding] = []
        if fix and not any(f.refused for f in findings):
            facts, made = await _mend(eyes, facts)
            findings = eyes.judge(facts, expected)
            if made and not made[0].fixed:  # It says why they are still missing.
                findings = [f for f in findings if f.reason != made[0].reason]
    except CannotConnect as trouble:
        found.findings.append(trouble.finding)
        return found
    finally:
        await eyes.close()
    found.version, found.identity = facts.version, facts.identity
    found.findings = [*findings, *made]
    if facts.has_marker and not any(f.refused for f in findings):
        found.findings += await executing.look(name, resource, facts.identity)
    if found.identity and seen is not None and not any(f.refused for f in findings):
        found.findings.append(
            await _remembered(found, seen.log, fix, replace_identity, list(settings.resources))
        )
    if seen is not None:
        found.findings += clocks(facts.offset_us - seen.offset_us, settings)
    return found


async def _mend(eyes: Examiner, before: Facts) -> tuple[Facts, list[Finding]]:
    """Make what is missing. Also where an identity is there already: the marker table may still be missing."""
    if before.identity and before.has_marker:
        return before, []
    try:
        await eyes.make_tables(before.identity or uuid.uuid4().hex)
    except CannotConnect as trouble:
        finding = trouble.finding
        if finding.reason == reasons.NOT_PERMITTED:
            finding = error(
                reasons.RESOURCE_NOT_PREPARED,
                f"the tables cannot be made: {finding.fact}",
                finding.means,
                *finding.remedy,
            )
        return before, [finding]
    after = await eyes.collect()
    said = LOST if before.identity else f"tables and identity {after.identity} were made"
    return after, [Finding(reasons.RESOURCE_NOT_PREPARED, ERROR, said, fixed=True)]


async def _remembered(
    found: Diagnosis, log_: Log, fix: bool, replace_identity: bool, names: Iterable[str]
) -> Finding:
    remembered = await log_.resource_identity(found.name)
    whose = ""
    if remembered != found.identity:
        whose = await whose_identity(log_, found.name, found.identity, names)
    if remembered is None and fix and not whose:
        remembered = await log_.remember_resource(found.name, found.identity)
        if remembered == found.identity:
            return ok("identity", "the log remembers its identity now")
    if remembered is None and not whose:
        return ok("identity", "the log has not seen it yet, and remembers it at the next start")
    if remembered == found.identity:
        return ok("identity", "it is the database that the log remembers")
    if replace_identity and not whose:
        await log_.remember_resource(found.name, found.identity, replace=True)
        said = f"the log remembers {found.identity} now, instead of {remembered}"
        return Finding(reasons.RESOURCE_MISMATCH, ERROR, said, fixed=True)
    return Finding(
        reasons.RESOURCE_MISMATCH,
        ERROR,
        mismatch(found.name, found.identity, remembered, whose),
        refused=True,
    )


def clocks(ahead_us: int, settings: Settings, what: str = "its clock") -> list[Finding]:
    """How far a clock is ahead of the log's, and what follows from it."""
    tolerance_us = microseconds(settings.node.clock_tolerance)
    if abs(ahead_us) <= tolerance_us:
        return []
    way = "ahead of" if ahead_us > 0 else "behind"
    fact = f"{what} is {abs(ahead_us) / 1_000_000:.1f} s {way} the log's"
    ntp = ["# on both machines: is the clock kept by NTP?", "timedatectl status"]
    patience_us = microseconds(settings.deadline.default) + microseconds(settings.recovery.grace)
    if ahead_us > patience_us:
        means = (
            "it takes every transaction of the default deadline for one that is over, and refuses its marker"
        )
        return [error(reasons.CLOCK_OFF, fact, means, *ntp)]
    means = (
        "transactions near their deadline are refused too early"
        if ahead_us > 0
        else "transactions are still let in when their deadline is over"
    )
    return [warning(reasons.CLOCK_OFF, fact, means, *ntp)]


def twins(found: Sequence[Diagnosis]) -> None:
    """One identity under two names: one database twice, or a copy."""
    seen: dict[str, str] = {}
    for one in found:
        if one.identity in seen:
            one.findings.append(
                error(
                    reasons.RESOURCE_MISMATCH,
                    f"it has the identity of {seen[one.identity]!r}: one database under two names, or a copy of it",
                    "the scanner of one name would judge the branches of the other",
                    "-- if it is a copy:",
                    "-- DELETE FROM txcoord_identity;",
                    f"# then: txcoord resource check {one.name} --replace-identity",
                    refused=True,
                )
            )
        elif one.identity:
            seen[one.identity] = one.name


# ---- for whoever may not let txcoord do it ----


def sql_of(name: str, resource: ResourceSettings) -> list[str]:
    """What ``--fix`` would run there."""
    head = f"-- {name}: {redacted(resource.url.get_secret_value())}"
    return [head, *examiner(name, resource).sql(uuid.uuid4().hex)]


async def grants_of(name: str, resource: ResourceSettings, service: str) -> list[str]:
    """What the coordinator's and the service's role need there."""
    eyes = examiner(name, resource)
    try:
        lines = await eyes.grants(service)
    finally:
        await eyes.close()
    if resource.execute_url is not None:
        url = urlsplit(resource.execute_url.get_secret_value())
        lines += _execute_grants(engine_of(url.geturl()), unquote(url.username or ""), unquote(url.path[1:]))
    return [f"-- {name}: {redacted(resource.url.get_secret_value())}", *lines]


def _execute_grants(engine: str, user: str, database: str) -> list[str]:
    # Here: their drivers are loaded only where they are needed.
    if engine == "postgresql":
        from ..adapters.xa.checks_postgresql import execute_grants as grants
    else:
        from ..adapters.xa.checks_mariadb import execute_grants as grants
    return grants(user, database)


def _here_us() -> int:
    return time.time_ns() // 1000
