"""Looks at a MariaDB or MySQL database that is, or is to be, a resource."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker
from txcoord_client.protocol.mariadb import Flavour

from .checks import CannotConnect, Expectations, Finding, Prepared
from .checks_mariadb_connect import Connection, Refused, explain
from .checks_mariadb_judge import MariaDBFacts, judge, judge_log, quoted
from .mariadb_holder import sessions_since_us
from .mariadb_session import Address

_VARIABLES = (
    "binlog_format",
    "default_storage_engine",
    "group_replication_group_name",
    "idle_transaction_timeout",
    "idle_write_transaction_timeout",
    "innodb_doublewrite",
    "innodb_flush_log_at_trx_commit",
    "legacy_xa_rollback_at_disconnect",
    "log_bin",
    "read_only",
    "rpl_semi_sync_master_timeout",
    "rpl_semi_sync_source_timeout",
    "super_read_only",
    "sync_binlog",
    "wait_timeout",
    "wsrep_cluster_name",
    "wsrep_on",
    "xa_detach_on_prepare",
)
_STATUS = (
    "rpl_semi_sync_master_clients",
    "rpl_semi_sync_master_status",
    "rpl_semi_sync_source_clients",
    "rpl_semi_sync_source_status",
    "slaves_connected",
    "slaves_running",
)

_NO_RIGHT = frozenset({1044, 1045, 1142, 1143, 1227, 1370, 1401})
"""1401 is what XA RECOVER of MySQL says without XA_RECOVER_ADMIN."""
_NO_TABLE = 1146
_READ_ONLY = (1290, 1836)
"""Of a server that takes no writes; that is said by itself."""
_NO_SUCH = frozenset({1064, 1193, 1235, 1109, 1146})
"""Statements, variables and tables that this product or version has not."""


class MariaDBExaminer:
    """One connection to one database. Raises CannotConnect wherever it cannot be asked."""

    engine = "mariadb"

    def __init__(self, address: Address, name: str, timeout_s: float, *, scheme: str = "mariadb") -> None:
        self._address = address
        self._name = name
        self._timeout_s = timeout_s
        self._scheme = scheme
        self._session: Connection | None = None

    async def collect(self, *, thorough: bool = True) -> MariaDBFacts:
        """Ask everything."""
        with self._troubles():
            session = await self._connected()
            if session.flavour is None:
                return MariaDBFacts(None, session.version, {})
            settings = await _named(session, "SHOW GLOBAL VARIABLES", _VARIABLES)
            user = str(await session.value("SELECT CURRENT_USER()"))
            before_us = time.time_ns() // 1000
            now_us = int(await session.value(my.READ_NOW_US))
            facts = MariaDBFacts(
                session.flavour,
                session.version,
                settings,
                user=_account(user),
                database=self._address.database,
                offset_us=now_us - (before_us + time.time_ns() // 1000) // 2,
            )
            facts = await _ask_tables(session, facts, thorough)
            return await _ask_prepared(session, await _ask_replication(session, facts))

    def judge(self, facts: Any, expected: Expectations) -> list[Finding]:
        """What the facts mean."""
        return judge(facts, expected)

    def judge_log(self, facts: Any) -> list[Finding]:
        """Does the server keep what it confirms?"""
        return judge_log(facts)

    async def make_tables(self, identity: str) -> None:
        """Make the tables and the identity."""
        with self._troubles():
            session = await self._connected()
            for statement in [*my.ddl(), my.set_identity(identity)]:
                await session.rows(statement)

    def sql(self, identity: str) -> list[str]:
        """As ``make_tables`` would."""
        use = f"USE {quoted(self._address.database)};"
        return [use, *(f"{statement};" for statement in [*my.ddl(), my.set_identity(identity)])]

    async def grants(self, service: str) -> list[str]:
        """For the coordinator's role (that of the URL) and a service's. The server knows its own kind, and the host
        of the account; where it cannot be asked the URL's scheme and ``%`` must do."""
        flavour = Flavour.MYSQL if self._scheme.startswith("mysql") else Flavour.MARIADB
        user = _account(f"{self._address.user}@%")
        with contextlib.suppress(Refused):
            session = await self._connected()
            flavour = session.flavour or flavour
            user = _account(str(await session.value("SELECT CURRENT_USER()")))
        return grants(
            user, _account(service if "@" in service else f"{service}@%"), self._address.database, flavour
        )

    @contextlib.contextmanager
    def _troubles(self) -> Iterator[None]:
        try:
            yield
        except Refused as trouble:
            raise CannotConnect(explain(trouble, self._address, self._name)) from trouble

    async def _connected(self) -> Connection:
        if self._session is None:
            self._session = await Connection.open(self._address, self._timeout_s)
        return self._session

    async def close(self) -> None:
        """Disconnect."""
        session, self._session = self._session, None
        if session is not None:
            session.close()


# ---- asking ----


async def _refused(session: Connection, statement: str) -> int:
    """The error number of a statement that changes nothing; 0 when it was let through."""
    try:
        await session.rows(statement)
    except Refused as error:
        if error.errno in _NO_RIGHT or error.errno in _NO_SUCH:
            return error.errno or 0
        if error.errno not in _READ_ONLY:
            raise
    return 0


async def _ask_tables(session: Connection, facts: MariaDBFacts, thorough: bool) -> MariaDBFacts:
    lacking: dict[str, tuple[str, ...]] = {}
    answers = {right: await _refused(session, sql) for right, sql in my.missing_rights().items()}
    has_marker = _NO_TABLE not in answers.values()
    if has_marker:
        lacking[marker.TABLE] = tuple(right for right, errno in answers.items() if errno in _NO_RIGHT)
    errno = await _refused(session, my.read_identity())
    identity = ""
    if not errno:
        identity = str(await session.value(my.read_identity()) or "")
    # Without any right on it nobody says whether a table is there: it is asked for what can be granted.
    lacking[marker.IDENTITY_TABLE] = ("SELECT",) if errno in _NO_RIGHT else ()
    which = "" if thorough else f" AND TABLE_NAME IN ('{marker.TABLE}', '{marker.IDENTITY_TABLE}')"
    engines = await session.rows(
        "SELECT TABLE_NAME, ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()"
        f" AND TABLE_TYPE = 'BASE TABLE' AND ENGINE <> 'InnoDB'{which} ORDER BY TABLE_NAME"
    )
    keys = await session.rows(
        "SELECT INDEX_NAME, GROUP_CONCAT(COLUMN_NAME ORDER BY COLUMN_NAME) FROM information_schema.STATISTICS"
        f" WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{marker.TABLE}' AND NON_UNIQUE = 0 GROUP BY INDEX_NAME"
    )
    visible = has_marker and not lacking[marker.TABLE]
    return replace(
        facts,
        identity_table=errno != _NO_TABLE,
        identity=identity,
        has_marker=has_marker,
        marker_keyed=not visible or "branch,op,tx_id" in [str(columns).lower() for _, columns in keys],
        engines={str(table): str(engine) for table, engine in engines},
        lacking=lacking,
    )


async def _ask_replication(session: Connection, facts: MariaDBFacts) -> MariaDBFacts:
    mysql = facts.flavour is Flavour.MYSQL
    status = await _named(session, "SHOW GLOBAL STATUS", _STATUS)
    replicating, unseen = "", facts.unseen
    try:
        for row in await session.records("SHOW REPLICA STATUS" if mysql else "SHOW ALL SLAVES STATUS"):
            threads = [str(v) for k, v in row.items() if k.lower().endswith(("_io_running", "_sql_running"))]
            if any(thread != "No" for thread in threads):
                host = row.get("Source_Host") or row.get("Master_Host") or "?"
                replicating = f"{host}:{row.get('Source_Port') or row.get('Master_Port') or 3306}"
    except Refused as error:
        if error.errno not in _NO_RIGHT:
            raise
        # MariaDB tells everybody how many are running.
        if int(status.get("slaves_running", "0")):
            replicating = "another server"
        unseen = ("REPLICATION CLIENT",) if mysql else ()
    on = "ON" in (status.get("rpl_semi_sync_master_status"), status.get("rpl_semi_sync_source_status"))
    clients = status.get("rpl_semi_sync_source_clients") or status.get("rpl_semi_sync_master_clients") or "0"
    if mysql:
        sessions = await session.records("SHOW PROCESSLIST")
        replicas = sum(str(row.get("Command", "")).startswith("Binlog Dump") for row in sessions)
    else:
        replicas = int(status.get("slaves_connected", "0"))
    return replace(
        facts, replicating=replicating, semi_sync=int(clients) if on else 0, replicas=replicas, unseen=unseen
    )


async def _named(session: Connection, show: str, names: tuple[str, ...]) -> Mapping[str, str]:
    """Variables or figures by name, in lower case; those that this server has."""
    wanted = ", ".join(f"'{name}'" for name in names)
    rows = await session.rows(f"{show} WHERE Variable_name IN ({wanted})")
    return {str(name).lower(): str(value) for name, value in rows}


async def _ask_prepared(session: Connection, facts: MariaDBFacts) -> MariaDBFacts:
    flavour = facts.flavour
    assert flavour is not None
    lacking = []
    if flavour is Flavour.MARIADB and "CONNECTION ADMIN" not in await _global_rights(session, facts):
        lacking.append("CONNECTION ADMIN")
    before = await _holders(session)
    if before is None and flavour is Flavour.MARIADB:
        lacking.append("PROCESS")
    elif before is None:
        facts = replace(facts, unseen=(*facts.unseen, "PROCESS"))
    try:
        rows = await session.rows(my.XA_RECOVER[flavour])
    except Refused as error:
        if error.errno not in _NO_RIGHT:
            raise
        return replace(facts, lacking_global=(*lacking, "XA_RECOVER_ADMIN"))
    after = await _holders(session)
    ours = my.recovered(rows)
    now_us = time.time_ns() // 1000 + facts.offset_us
    # XA RECOVER has no time; the deadline in the name is later than the PREPARE.
    old = sorted((Prepared(str(x), "", now_us - x.deadline_us) for x in ours), key=lambda one: -one.age_us)
    limbo = 0
    if before is not None and after is not None:
        since_us = await sessions_since_us(session)
        limbo = min(my.limbo(rows, holders, since_us) for holders in (before, after))
    return replace(
        facts,
        lacking_global=tuple(lacking),
        prepared_ours=len(ours),
        prepared_foreign=len(rows) - len(ours),
        old=tuple(old),
        limbo=limbo,
    )


async def _holders(session: Connection) -> list[int] | None:
    """The sessions of old transactions in InnoDB, 0 for one that has none; None without the right to see them."""
    try:
        return [int(row[0]) for row in await session.rows(my.READ_HOLDERS)]
    except Refused as error:
        if error.errno in _NO_RIGHT:
            return None
        raise


async def _global_rights(session: Connection, facts: MariaDBFacts) -> frozenset[str]:
    """On the whole server, with those of the roles that are on."""
    rights: set[str] = set()
    for (line,) in await session.rows("SHOW GRANTS"):
        if match := re.match(r"GRANT (.+?) ON \*\.\* TO ", str(line)):
            rights |= {right.strip().upper() for right in match[1].split(",")}
    if "ALL PRIVILEGES" in rights or ("SUPER" in rights and my.version_tuple(facts.version) < (11, 0, 1)):
        rights.add("CONNECTION ADMIN")
    return frozenset(rights)


# ---- rights ----


def grants(user: str, service: str, database: str, flavour: Flavour) -> list[str]:
    """What a DBA has to run, once the tables are there."""
    d = quoted(database)
    out = [
        "-- the coordinator: proves, fences and prunes",
        f"GRANT SELECT, INSERT, DELETE ON {d}.{marker.TABLE} TO {user};",
        f"GRANT SELECT ON {d}.{marker.IDENTITY_TABLE} TO {user};",
    ]
    if flavour is Flavour.MARIADB:
        out += [
            "-- it ends sessions that hold a prepared branch and do not finish it, and sees what is in limbo",
            f"GRANT CONNECTION ADMIN, PROCESS ON *.* TO {user};",
            "-- it sees whether this server is a replica",
            f"GRANT SLAVE MONITOR ON *.* TO {user};",
        ]
    else:
        out += [
            "-- it lists what is prepared",
            f"GRANT XA_RECOVER_ADMIN ON *.* TO {user};",
            "-- it sees whether this server is a replica, or has replicas",
            f"GRANT REPLICATION CLIENT, PROCESS ON *.* TO {user};",
        ]
    return [
        *out,
        "-- the service: its own tables are yours to grant",
        f"GRANT SELECT, INSERT ON {d}.{marker.TABLE} TO {service};",
        f"GRANT SELECT ON {d}.{marker.IDENTITY_TABLE} TO {service};",
        "-- a participant, of tries or sagas, keeps results in its markers and deletes old ones as well:",
        f"-- GRANT UPDATE, DELETE ON {d}.{marker.TABLE} TO {service};",
    ]


def execute_grants(user: str, database: str) -> list[str]:
    """The same, for the user of best-effort SQL."""
    d, account = quoted(database), _account(f"{user}@%")
    return [
        "-- best-effort SQL: the tables that it may change are yours to grant, and no others",
        f"GRANT INSERT ON {d}.{marker.TABLE} TO {account};",
        f"GRANT SELECT ON {d}.{marker.IDENTITY_TABLE} TO {account};",
    ]


def _account(text: str) -> str:
    """``name@host``, quoted."""
    name, _, host = text.rpartition("@")

    def literal(part: str) -> str:
        return "'" + part.replace("\\", "\\\\").replace("'", "''") + "'"

    return f"{literal(name)}@{literal(host)}"
