"""What is wrong with a resource, in plain words, and what mends it. Needs no running coordinator."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

import asyncpg

from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol import reasons

from ..adapters.xa.postgresql import PostgresFinisher
from ..config import ResourceSettings, redacted
from ..ports import Log, ResourceTrouble
from .resources import IN_RECOVERY, mismatch, whose_identity


@dataclass(slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    severity: str
    """``ok``, ``warning`` or ``error``."""
    message: str
    remedy: list[str] = field(default_factory=list)
    """Commands or SQL that mend it."""
    fixed: bool = False


@dataclass(slots=True)
class Diagnosis:
    """All findings about one resource."""

    name: str
    url: str
    """Without passwords."""
    identity: str = ""
    version: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Is nothing wrong (any more)?"""
        return all(f.severity != "error" or f.fixed for f in self.findings)

    def add(self, check: str, severity: str, message: str, *remedy: str, fixed: bool = False) -> None:
        """One more finding."""
        self.findings.append(Finding(check, severity, message, list(remedy), fixed))


async def diagnose(
    name: str,
    settings: ResourceSettings,
    finisher: PostgresFinisher,
    log_: Log | None,
    *,
    fix: bool = False,
    replace_identity: bool = False,
    names: Iterable[str] = (),
) -> Diagnosis:
    """Look at one resource; with ``fix`` make its tables and identity, and remember it in the log.

    ``log_`` None: the log cannot be had, so the identity cannot be compared or remembered. ``names`` are all
    resources that the settings know.
    """
    found = Diagnosis(name, redacted(settings.url.get_secret_value()))
    try:
        server = await finisher.settings()
    except ResourceTrouble as trouble:
        _unreachable(found, trouble, settings)
        return found
    found.version = server["server_version"]
    found.add("connection", "ok", f"PostgreSQL {found.version} answers")
    if server["in_recovery"] == "true":
        found.add(
            IN_RECOVERY,
            "error",
            "this server is a replica (in recovery); prepared transactions are on its primary",
            "put the primary's URL into the settings",
        )
        return found
    _server(found, server)
    await _tables(found, finisher, fix)
    if found.identity and log_ is not None:
        await _remembered(found, log_, fix, replace_identity, names)
    await _rights(found, settings)
    return found


def _unreachable(found: Diagnosis, trouble: ResourceTrouble, settings: ResourceSettings) -> None:
    if trouble.reason == "RESOURCE_CREDENTIALS":
        found.add(
            trouble.reason,
            "error",
            trouble.message,
            "put user, password and database of the URL right, or make them on the server",
        )
        return
    found.add(
        trouble.reason,
        "error",
        f"it does not answer: {trouble.message}",
        f"is the server up, and can this machine reach it? psql '{_psql(settings)}'",
    )


def _psql(settings: ResourceSettings) -> str:
    scheme, _, rest = redacted(settings.url.get_secret_value()).partition("://")
    return f"{scheme.partition('+')[0]}://{rest.replace(':***', '')}"


def _server(found: Diagnosis, server: dict[str, str]) -> None:
    most = int(server["max_prepared_transactions"])
    if most == 0:
        found.add(
            reasons.PREPARE_DISABLED,
            "error",
            "max_prepared_transactions is 0 (the default), so nothing can be prepared",
            "ALTER SYSTEM SET max_prepared_transactions = 200;",
            "then restart the server (a reload is not enough)",
        )
    elif most < 50:
        found.add(
            reasons.PREPARE_FULL,
            "warning",
            f"max_prepared_transactions is {most}: as many branches can be open at once, of all databases together",
            "ALTER SYSTEM SET max_prepared_transactions = 200;",
            "then restart the server",
        )
    else:
        found.add("max_prepared_transactions", "ok", f"up to {most} prepared transactions at once")
    for name in ("fsync", "full_page_writes"):
        if server.get(name) == "off":
            found.add(
                name,
                "warning",
                f"{name} is off: a crash of the machine can lose what was prepared or committed",
                f"ALTER SYSTEM SET {name} = on;",
                "SELECT pg_reload_conf();",
            )


async def _tables(found: Diagnosis, finisher: PostgresFinisher, fix: bool) -> None:
    try:
        found.identity = await finisher.identity()
    except ResourceTrouble as trouble:
        if trouble.reason != reasons.RESOURCE_NOT_PREPARED:
            found.add(trouble.reason, "error", trouble.message)
            return
        if not fix:
            found.add(
                trouble.reason,
                "error",
                "the database has no txcoord tables yet",
                f"txcoord resource check {found.name} --fix",
                *(f"{statement};" for statement in [*pg.ddl(), pg.set_identity(uuid.uuid4().hex)]),
            )
            return
    if fix:
        # Also where an identity is there already: the marker table may still be missing.
        known = found.identity
        lost = bool(known) and await finisher.missing_rights() is None
        try:
            found.identity = await finisher.prepare_database(known or uuid.uuid4().hex)
        except ResourceTrouble as trouble:
            found.add(
                reasons.RESOURCE_NOT_PREPARED,
                "error",
                f"the tables cannot be made: {trouble.message}",
                "run as a role that may: GRANT CREATE ON SCHEMA public TO <the coordinator's role>;",
            )
            return
        if not known:
            found.add(
                reasons.RESOURCE_NOT_PREPARED,
                "error",
                f"tables and identity {found.identity} were made",
                fixed=True,
            )
            return
        if lost:
            found.add(
                reasons.RESOURCE_NOT_PREPARED,
                "error",
                "the marker table was gone; it was made again, empty. The proof of what was committed before is lost: "
                "of a branch whose COMMIT PREPARED was not answered nobody can tell any more",
                fixed=True,
            )
    await _marker(found, finisher)


async def _marker(found: Diagnosis, finisher: PostgresFinisher) -> None:
    lacking = await finisher.missing_rights()
    if lacking is None:
        found.add(
            reasons.RESOURCE_NOT_PREPARED,
            "error",
            f"there is an identity ({found.identity}), but no table txcoord_marker: every transaction would fail",
            "if it was renamed, name it back: it proves what was committed",
            f"else: txcoord resource check {found.name} --fix",
        )
    elif lacking:
        found.add(
            "NOT_PERMITTED",
            "error",
            f"this role may not {', '.join(lacking)} on txcoord_marker",
            f"GRANT {', '.join(lacking)} ON txcoord_marker TO <the coordinator's role>;",
        )
    else:
        found.add("tables", "ok", f"txcoord tables are there; identity {found.identity}")


async def _remembered(
    found: Diagnosis, log_: Log, fix: bool, replace_identity: bool, names: Iterable[str]
) -> None:
    remembered = await log_.resource_identity(found.name)
    whose = ""
    if remembered != found.identity:
        whose = await whose_identity(log_, found.identity, names)
    if remembered is None and fix and not whose:
        remembered = await log_.remember_resource(found.name, found.identity)
        if remembered == found.identity:
            found.add("identity", "ok", "the log remembers its identity now")
            return
    if remembered is None and not whose:
        found.add("identity", "ok", "the log has not seen it yet, and remembers it at the next start")
    elif remembered == found.identity:
        found.add("identity", "ok", "it is the database that the log remembers")
    elif replace_identity and not whose:
        await log_.remember_resource(found.name, found.identity, replace=True)
        found.add(
            reasons.RESOURCE_MISMATCH,
            "error",
            f"the log remembers {found.identity} now, instead of {remembered}",
            fixed=True,
        )
    else:
        found.add(reasons.RESOURCE_MISMATCH, "error", mismatch(found.name, found.identity, remembered, whose))


async def _rights(found: Diagnosis, settings: ResourceSettings) -> None:
    """Can the coordinator finish what the services' roles prepare?"""
    scheme, _, rest = settings.url.get_secret_value().partition("://")
    dsn = f"{scheme.partition('+')[0]}://{rest}"
    try:
        conn = await asyncpg.connect(dsn, timeout=settings.timeout.total_seconds())
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return
    try:
        role = await conn.fetchval("SELECT current_user")
        owners = await conn.fetch(
            "SELECT DISTINCT owner::text FROM pg_prepared_xacts WHERE database = current_database()"
            " AND left(gid, 5) = 'txc1.' AND NOT pg_has_role(current_user, owner, 'MEMBER')"
        )
        left = await conn.fetchval(
            "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database() AND left(gid, 5) = 'txc1.'"
        )
    except asyncpg.PostgresError:
        return
    finally:
        await conn.close()
    for (owner,) in owners:
        found.add(
            "NOT_PERMITTED",
            "error",
            f"role {owner!r} has prepared branches here that {role!r} may not finish",
            f'GRANT "{owner}" TO "{role}";',
        )
    if left:
        found.add("prepared", "ok", f"{left} prepared branches of txcoord at this moment")
