"""What was seen of a PostgreSQL database, and what it means. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from txcoord_client.protocol import marker, reasons
from txcoord_client.protocol import postgresql as pg

from . import checks
from .checks import Expectations, Finding, Prepared, error, ok, warning

OLDEST = 150000
"""The oldest version that is tested, as ``server_version_num`` has it."""

_FEW = 50


@dataclass(frozen=True, slots=True)
class PostgresFacts:
    """What was seen."""

    settings: Mapping[str, str]
    started_with: frozenset[str] = frozenset()
    """Settings of the server's command line: no statement changes them."""
    role: str = "txcoord"
    database: str = "postgres"
    offset_us: int = 0
    """Its clock minus this machine's."""
    in_recovery: bool = False
    announced_pid: int = 0
    """The process that the connection was said to lead to, and the one that answers: a pooler makes them differ."""
    backend_pid: int = 0
    identity_table: bool = True
    identity: str = ""
    has_marker: bool = True
    marker_logged: bool = True
    marker_keyed: bool = True
    lacking: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    standbys: int = 0
    slots: tuple[str, ...] = ()
    """Of logical replication, in this database."""
    two_phase_slots: tuple[str, ...] = ()
    """Those that send what is prepared already."""
    sessions: int = 0
    prepared: int = 0
    """In the whole cluster."""
    prepared_ours: int = 0
    """In this database."""
    old: tuple[Prepared, ...] = ()
    oldest_xid_age: int = 0
    owners: tuple[str, ...] = ()
    """Roles with prepared branches here that this role may not finish."""
    writers: tuple[str, ...] = ()
    """Roles that may write markers, and whose branches this role may not finish."""

    @property
    def version(self) -> str:
        """As the server tells it."""
        return self.settings.get("server_version", "?")

    @property
    def product(self) -> str:
        """As people call it."""
        return f"PostgreSQL {self.version.split(' ')[0]}"


def judge(facts: PostgresFacts, expected: Expectations) -> list[Finding]:
    """What the facts mean. Pure."""
    out = [ok("connection", f"{facts.product} answers")]
    version = int(facts.settings.get("server_version_num", OLDEST))
    if version < OLDEST:
        return [*out, _old(facts)]
    out += _pooler(facts, expected)
    if facts.in_recovery:
        return [*out, _replica(expected)]
    out += _prepare(facts)
    out += _durability(facts, checks.BRANCHES)
    out += _replication(facts, checks.BRANCHES)
    out += _marker(facts, expected)
    out += _finishing(facts, expected)
    out += _sessions(facts, expected)
    return out


def _old(facts: PostgresFacts) -> Finding:
    return error(
        reasons.VERSION_UNSUPPORTED,
        f"this is {facts.product}; txcoord needs PostgreSQL {OLDEST // 10000} or newer",
        "how it answers a lost PREPARE or COMMIT PREPARED was never measured",
        f"# upgrade the server to PostgreSQL {OLDEST // 10000} or newer",
        refused=True,
    )


def judge_log(facts: PostgresFacts) -> list[Finding]:
    """What they mean where the log is on that server. Pure. It sets synchronous_commit itself."""
    settings = {**facts.settings, "synchronous_commit": "on"}
    seen = replace(facts, settings=settings, slots=(), two_phase_slots=())
    return [*_durability(seen, checks.DECISIONS), *_replication(seen, checks.DECISIONS)]


def _replica(expected: Expectations) -> Finding:
    return error(
        reasons.RESOURCE_IN_RECOVERY,
        "this server is a replica (in recovery)",
        "it is read-only, and prepared transactions are on its primary",
        f"export {expected.url_variable}='postgresql://USER:PASSWORD@PRIMARY:5432/DATABASE'",
        "# where a fail-over may move the primary, name all: ...@HOST1,HOST2/DATABASE?target_session_attrs=read-write",
        refused=True,
    )


def _pooler(facts: PostgresFacts, expected: Expectations) -> list[Finding]:
    if facts.announced_pid == facts.backend_pid:
        return []
    return [
        warning(
            reasons.POOLER_BETWEEN,
            f"a pooler (such as PgBouncer) stands between: process {facts.announced_pid} was announced, "
            f"{facts.backend_pid} answers",
            "in transaction mode SET ROLE and RESET ROLE of the coordinator may reach different sessions: a branch "
            "stays prepared, or a service gets a connection with another role",
            "# give the coordinator the address of the server itself:",
            f"export {expected.url_variable}='postgresql://USER:PASSWORD@SERVER:5432/{facts.database}'",
            "# services may use the pooler: a branch is one transaction on one connection",
        )
    ]


def _prepare(facts: PostgresFacts) -> list[Finding]:
    most = int(facts.settings["max_prepared_transactions"])
    enough = max(200, facts.sessions)
    raise_it = _set(facts, "max_prepared_transactions", str(enough), restart=True)
    if facts.standbys:
        raise_it.insert(0, "-- on each standby first, or it stops following:")
    if most == 0:
        return [
            error(
                reasons.PREPARE_DISABLED,
                "max_prepared_transactions is 0 (the default)",
                "nothing can be prepared here: each transaction with a branch on this database is aborted",
                *raise_it,
            )
        ]
    if facts.prepared * 10 >= most * 9:
        return [
            error(
                reasons.PREPARE_FULL,
                f"{facts.prepared} of at most {most} prepared transactions are there now, in all databases together",
                "further branches fail at PREPARE, and their transactions are aborted",
                "-- what is prepared, and since when:",
                "SELECT gid, database, owner, prepared FROM pg_prepared_xacts ORDER BY prepared;",
                *raise_it,
            )
        ]
    if most < _FEW or most < facts.sessions:
        return [
            warning(
                reasons.PREPARE_FEW,
                f"max_prepared_transactions is {most}, of all databases of this server together"
                + (f"; {facts.sessions} sessions are connected now" if most < facts.sessions else ""),
                "when more branches are prepared at a time than that, the transactions of the others are aborted "
                "(PREPARE_FULL). Give it as many as all pools of all services together have connections",
                *raise_it,
            )
        ]
    return [
        ok("max_prepared_transactions", f"up to {most} prepared transactions at once, {facts.prepared} now")
    ]


def _durability(facts: PostgresFacts, lost: str) -> list[Finding]:
    out = []
    if facts.settings.get("fsync") == "off":
        out.append(
            error(
                reasons.DURABILITY,
                "fsync is off",
                f"when the machine crashes, {lost}; the database itself may be corrupt",
                *_set(facts, "fsync", "on"),
                "-- then flush by hand what was not: CHECKPOINT; and, in a shell on that machine: sync",
            )
        )
    if facts.settings.get("full_page_writes") == "off":
        out.append(
            warning(
                reasons.DURABILITY,
                "full_page_writes is off",
                f"when the machine crashes in the middle of a page, that page is corrupt, and {lost}. Only a file "
                "system that never tears pages (ZFS) makes it safe",
                *_set(facts, "full_page_writes", "on"),
            )
        )
    if facts.settings.get("synchronous_commit") == "off":
        out.append(
            warning(
                reasons.DURABILITY,
                f"synchronous_commit is off for the role {facts.role}",
                "local commits are confirmed before they are flushed: a crash loses them. What is prepared, and "
                "one-phase commits of txcoord, are flushed all the same",
                f"ALTER ROLE {_quoted(facts.role)} IN DATABASE {_quoted(facts.database)} SET synchronous_commit = on;",
                "-- or for all:",
                *_set(facts, "synchronous_commit", "on"),
            )
        )
    return out


def _replication(facts: PostgresFacts, lost: str) -> list[Finding]:
    out = []
    named = facts.settings.get("synchronous_standby_names")
    waits = facts.settings.get("synchronous_commit") not in ("off", "local")
    if facts.standbys and not (named and waits):
        asynchronous = "1 standby" if facts.standbys == 1 else f"{facts.standbys} standbys"
        why = (
            f"synchronous_commit is {facts.settings['synchronous_commit']}"
            if named
            else "synchronous_standby_names is empty"
        )
        out.append(
            warning(
                reasons.ASYNCHRONOUS_STANDBYS,
                f"{asynchronous} of this primary may lag behind it: {why}",
                f"after a fail-over {lost}, and nobody is told",
                *([] if named else _set(facts, "synchronous_standby_names", "'ANY 1 (*)'")),
                *([] if waits else _set(facts, "synchronous_commit", "on")),
            )
        )
    if facts.slots:
        out.append(
            ok(
                "logical_replication",
                f"logical replication from here ({', '.join(facts.slots)}): what is prepared is sent when it is "
                "committed, and until then WAL is kept for it",
            )
        )
    if facts.two_phase_slots:
        out.append(
            ok(
                "logical_replication",
                f"logical replication with two_phase from here ({', '.join(facts.two_phase_slots)}): subscribers "
                "prepare as well, so each needs max_prepared_transactions, and keeps locks while this server does",
            )
        )
    return out


def _marker(facts: PostgresFacts, expected: Expectations) -> list[Finding]:
    role = _quoted(facts.role)
    lacking = dict(facts.lacking)
    out = []
    if lacking.pop(f"schema {pg.DEFAULT_SCHEMA}", None):
        out.append(
            error(
                reasons.NOT_PERMITTED,
                f"this role may not use the schema {pg.DEFAULT_SCHEMA}",
                "the coordinator can neither prove nor fence what is committed here",
                f"GRANT USAGE ON SCHEMA {pg.DEFAULT_SCHEMA} TO {role};",
            )
        )
    else:
        out += checks.tables(
            expected,
            identity_table=facts.identity_table,
            identity=facts.identity,
            has_marker=facts.has_marker,
            lacking=lacking,
            grant=lambda rights, table: f"GRANT {rights} ON {table} TO {role};",
        )
    if not facts.marker_logged:
        out.append(
            error(
                reasons.MARKER_UNSAFE,
                f"{marker.TABLE} is an UNLOGGED table",
                "a crash empties it, and with it the proof of what was committed",
                f"ALTER TABLE {marker.TABLE} SET LOGGED;",
                refused=True,
            )
        )
    if not facts.marker_keyed:
        out.append(
            error(
                reasons.MARKER_UNSAFE,
                f"{marker.TABLE} has no unique key (tx_id, branch, op)",
                "nothing keeps late work from being done after it was given up, or twice",
                f"ALTER TABLE {marker.TABLE} ADD PRIMARY KEY (tx_id, branch, op);",
                refused=True,
            )
        )
    return out


def _finishing(facts: PostgresFacts, expected: Expectations) -> list[Finding]:
    out = [
        error(
            reasons.NOT_PERMITTED,
            f"role {owner!r} {what}, which {facts.role!r} may not finish",
            "when the service dies, its branches stay prepared and keep their locks",
            f"GRANT {_quoted(owner)} TO {_quoted(facts.role)};",
        )
        for what, owners in (
            ("has prepared branches here", facts.owners),
            (
                f"may write to {marker.TABLE}, so it prepares branches",
                # What runs best-effort SQL writes markers, and prepares nothing.
                tuple(writer for writer in facts.writers if writer != expected.executes),
            ),
        )
        for owner in owners
    ]
    if facts.prepared_ours:
        out.append(ok("prepared", f"{facts.prepared_ours} prepared branches of txcoord at this moment"))
    return out


def _sessions(facts: PostgresFacts, expected: Expectations) -> list[Finding]:
    out = checks.old_prepared(
        expected,
        [one for one in facts.old if one.age_us > expected.old_us],
        lambda one: "ROLLBACK PREPARED '" + one.name.replace("'", "''") + "';",
        "they keep their locks, and no VACUUM removes what they may still see "
        f"(the oldest is {facts.oldest_xid_age} transactions old; at 2 billion the server stops)",
    )
    limit_ms = int(facts.settings.get("idle_in_transaction_session_timeout", "0"))
    if 0 < limit_ms * 1000 < expected.open_us:
        out.append(
            warning(
                reasons.IDLE_TIMEOUT,
                f"idle_in_transaction_session_timeout is {limit_ms} ms for {facts.role!r}",
                "a branch is idle while other services work: it is cut off, and its transaction aborted, before its "
                f"deadline ({expected.open_us // 1_000_000} s by default)",
                f"ALTER DATABASE {_quoted(facts.database)} SET idle_in_transaction_session_timeout = 0;",
                "-- or longer than the longest deadline; txcoord bounds branches by their deadline itself",
            )
        )
    if facts.settings.get("default_transaction_read_only") == "on":
        out.append(
            error(
                reasons.RESOURCE_READ_ONLY,
                "default_transaction_read_only is on",
                "no marker can be written, so no branch can be committed",
                f"ALTER ROLE {_quoted(facts.role)} IN DATABASE {_quoted(facts.database)}"
                " SET default_transaction_read_only = off;",
            )
        )
    return out


def _set(facts: PostgresFacts, name: str, value: str, *, restart: bool = False) -> list[str]:
    if name in facts.started_with:
        return [
            f"# {name} is in the command line of the server; start it with: postgres -c {name}={value} ..."
        ]
    last = "-- then restart the server (a reload is not enough)" if restart else "SELECT pg_reload_conf();"
    return [f"ALTER SYSTEM SET {name} = {value};", last]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
