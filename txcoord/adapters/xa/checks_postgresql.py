"""Looks at a PostgreSQL database that is, or is to be, a resource."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import asyncpg

from txcoord_client.protocol import marker
from txcoord_client.protocol import postgresql as pg

from .checks import Expectations, Finding, Prepared
from .checks_postgresql_connect import Door, connect
from .checks_postgresql_judge import PostgresFacts, judge, judge_log

_SETTINGS = (
    "default_transaction_read_only",
    "fsync",
    "full_page_writes",
    "idle_in_transaction_session_timeout",
    "max_connections",
    "max_prepared_transactions",
    "server_version",
    "server_version_num",
    "synchronous_commit",
    "synchronous_standby_names",
    "wal_level",
)


class PostgresExaminer:
    """One connection to one database. Raises CannotConnect wherever it cannot be asked."""

    engine = "postgresql"

    def __init__(self, door: Door, name: str, timeout_s: float) -> None:
        self._door = door
        self._name = name
        self._timeout_s = timeout_s
        self._conn: asyncpg.Connection | None = None

    async def collect(self, *, thorough: bool = True) -> PostgresFacts:
        """Ask everything."""
        with self._door.troubles(self._name):
            conn = await self._connected()
            rows = await conn.fetch(
                "SELECT name, setting, source FROM pg_settings WHERE name = ANY($1)", list(_SETTINGS)
            )
            settings = {r[0]: r[1] for r in rows}
            started_with = frozenset(r[0] for r in rows if r[2] == "command line")
            about = await conn.fetchrow(
                "SELECT current_user::text AS role, current_database()::text AS database,"
                " pg_backend_pid() AS backend_pid, pg_is_in_recovery() AS in_recovery"
            )
            before_us = time.time_ns() // 1000
            now_us = await conn.fetchval(f"SELECT {pg.NOW_US}")
            offset_us = now_us - (before_us + time.time_ns() // 1000) // 2
            facts = PostgresFacts(
                settings,
                started_with=started_with,
                announced_pid=conn.get_server_pid(),
                offset_us=offset_us,
                **dict(about or {}),
            )
            facts = await _ask_tables(conn, facts)
            if facts.in_recovery:
                return facts
            return await _ask_rights(conn, await _ask_activity(conn, facts))

    def judge(self, facts: Any, expected: Expectations) -> list[Finding]:
        """What the facts mean."""
        return judge(facts, expected)

    def judge_log(self, facts: Any) -> list[Finding]:
        """Does the server keep what it confirms?"""
        return judge_log(facts)

    async def make_tables(self, identity: str) -> None:
        """Make the tables and the identity."""
        with self._door.troubles(self._name):
            conn = await self._connected()
            for statement in [*pg.ddl(), pg.set_identity(identity)]:
                await conn.execute(statement)

    def sql(self, identity: str) -> list[str]:
        """As ``make_tables`` would."""
        return [f"{statement};" for statement in [*pg.ddl(), pg.set_identity(identity)]]

    async def grants(self, service: str) -> list[str]:
        """For the coordinator's role (that of the URL) and a service's."""
        return grants(self._door.user, service, self._door.database)

    async def _connected(self) -> asyncpg.Connection:
        if self._conn is None:
            self._conn = await connect(self._door, self._timeout_s)
        return self._conn

    async def close(self) -> None:
        """Disconnect."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.terminate()


# ---- asking ----


async def _ask_tables(conn: asyncpg.Connection, facts: PostgresFacts) -> PostgresFacts:
    tables = {
        r["relname"]: r
        for r in await conn.fetch(
            "SELECT c.relname::text AS relname, c.relpersistence = 'p' AS logged, EXISTS (SELECT 1 FROM pg_index i"
            " WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL AND ("
            "  SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute a"
            "  WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey)) = ARRAY['branch', 'op', 'tx_id']) AS keyed"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 AND c.relname = ANY ($2)",
            pg.DEFAULT_SCHEMA,
            [marker.TABLE, marker.IDENTITY_TABLE],
        )
    }
    wanted = {marker.TABLE: ("SELECT", "INSERT", "DELETE"), marker.IDENTITY_TABLE: ("SELECT",)}
    usage = await conn.fetchval("SELECT has_schema_privilege($1, 'USAGE')", pg.DEFAULT_SCHEMA)
    lacking: dict[str, tuple[str, ...]] = {}
    for table in tables:
        name = f"{_quoted(pg.DEFAULT_SCHEMA)}.{_quoted(table)}"
        has = [
            await conn.fetchval("SELECT has_table_privilege($1, $2)", name, right) for right in wanted[table]
        ]
        lacking[table] = tuple(r for r, h in zip(wanted[table], has, strict=True) if not h)
    identity = None
    if usage and marker.IDENTITY_TABLE in tables and not lacking[marker.IDENTITY_TABLE]:
        identity = await conn.fetchval(pg.read_identity())
    of_marker = tables.get(marker.TABLE)
    return replace(
        facts,
        identity_table=marker.IDENTITY_TABLE in tables,
        identity=identity or "",
        has_marker=of_marker is not None,
        marker_logged=of_marker is None or of_marker["logged"],
        marker_keyed=of_marker is None or of_marker["keyed"],
        lacking=lacking if usage else {**lacking, f"schema {pg.DEFAULT_SCHEMA}": ("USAGE",)},
    )


async def _ask_activity(conn: asyncpg.Connection, facts: PostgresFacts) -> PostgresFacts:
    # A base backup is a sender, too, and so is a subscriber of logical replication. Without pg_monitor the state is
    # NULL, but the row is there.
    standbys = await conn.fetchval(
        "SELECT count(*) FROM pg_stat_replication WHERE state IS DISTINCT FROM 'backup' AND pid NOT IN"
        " (SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL)"
    )
    slots = await conn.fetch(
        "SELECT slot_name::text, two_phase FROM pg_replication_slots"
        " WHERE slot_type = 'logical' AND database = current_database() ORDER BY 1"
    )
    prepared = await conn.fetch(
        "SELECT gid, owner::text, left(gid, 5) = 'txc1.' AS ours, database = current_database() AS here,"
        " (extract(epoch FROM clock_timestamp() - prepared) * 1000000)::bigint AS age_us, age(transaction) AS xid_age"
        " FROM pg_prepared_xacts ORDER BY prepared"
    )
    here = [r for r in prepared if r["here"]]
    return replace(
        facts,
        standbys=standbys,
        slots=tuple(r[0] for r in slots if not r[1]),
        two_phase_slots=tuple(r[0] for r in slots if r[1]),
        sessions=await conn.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        ),
        prepared=len(prepared),
        prepared_ours=sum(r["ours"] for r in here),
        old=tuple(Prepared(r["gid"], r["owner"], r["age_us"], r["ours"]) for r in here),
        oldest_xid_age=max((r["xid_age"] for r in here), default=0),
    )


async def _ask_rights(conn: asyncpg.Connection, facts: PostgresFacts) -> PostgresFacts:
    # Finishing needs SET ROLE, which is a right of its own since 16.
    may = "SET" if int(facts.settings["server_version_num"]) >= 160000 else "MEMBER"
    owners = await conn.fetch(
        "SELECT DISTINCT owner::text FROM pg_prepared_xacts WHERE database = current_database()"
        f" AND left(gid, 5) = 'txc1.' AND NOT pg_has_role(current_user, owner, '{may}') ORDER BY 1"
    )
    writers = await conn.fetch(
        "SELECT DISTINCT r.rolname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,"
        " aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee"
        " WHERE n.nspname = $1 AND c.relname = $2 AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner"
        f" AND r.rolcanlogin AND NOT pg_has_role(current_user, r.oid, '{may}')"
        # A member of our own role, as the coordinator's is of the service's, cannot have us for a member.
        " AND (r.rolsuper OR NOT pg_has_role(r.oid, current_user, 'MEMBER')) ORDER BY 1",
        pg.DEFAULT_SCHEMA,
        marker.TABLE,
    )
    seen = tuple(r[0] for r in owners)
    return replace(facts, owners=seen, writers=tuple(r[0] for r in writers if r[0] not in seen))


# ---- rights ----


def grants(role: str, service: str, database: str) -> list[str]:
    """What a DBA has to run, once the tables are there."""
    s = pg.DEFAULT_SCHEMA
    return [
        f"-- the coordinator: proves, fences and prunes; finishes what {service} prepared",
        f"GRANT CONNECT ON DATABASE {_quoted(database)} TO {_quoted(role)}, {_quoted(service)};",
        f"GRANT USAGE ON SCHEMA {s} TO {_quoted(role)}, {_quoted(service)};",
        f"GRANT SELECT, INSERT, DELETE ON {s}.{marker.TABLE} TO {_quoted(role)};",
        f"GRANT SELECT ON {s}.{marker.IDENTITY_TABLE} TO {_quoted(role)};",
        *(
            []
            if role == service
            else [
                f"GRANT {_quoted(service)} TO {_quoted(role)};",
                f"-- PostgreSQL 16 and newer: {_quoted(role)} need not read the tables of {_quoted(service)}:",
                f"-- GRANT {_quoted(service)} TO {_quoted(role)} WITH INHERIT FALSE, SET TRUE;",
            ]
        ),
        "-- the service: its own tables are yours to grant",
        f"GRANT SELECT, INSERT ON {s}.{marker.TABLE} TO {_quoted(service)};",
        f"GRANT SELECT ON {s}.{marker.IDENTITY_TABLE} TO {_quoted(service)};",
        "-- a participant, of tries or sagas, keeps results in its markers and deletes old ones as well:",
        f"-- GRANT UPDATE, DELETE ON {s}.{marker.TABLE} TO {_quoted(service)};",
    ]


def execute_grants(user: str, database: str) -> list[str]:
    """The same, for the role of best-effort SQL."""
    s = pg.DEFAULT_SCHEMA
    return [
        "-- best-effort SQL: the tables that it may change are yours to grant, and no others",
        f"GRANT CONNECT ON DATABASE {_quoted(database)} TO {_quoted(user)};",
        f"GRANT USAGE ON SCHEMA {s} TO {_quoted(user)};",
        f"GRANT INSERT ON {s}.{marker.TABLE} TO {_quoted(user)};",
        f"GRANT SELECT ON {s}.{marker.IDENTITY_TABLE} TO {_quoted(user)};",
    ]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
