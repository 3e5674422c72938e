"""What was seen of a MariaDB or MySQL database, and what it means. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from txcoord_client.protocol import marker, reasons
from txcoord_client.protocol.mariadb import Flavour, version_tuple

from . import checks
from .checks import Expectations, Finding, Prepared, error, ok, warning

OLDEST = {Flavour.MARIADB: (10, 6), Flavour.MYSQL: (8, 0, 30)}
_WHY_SO_NEW = {
    Flavour.MARIADB: "before 10.5 a prepared branch is rolled back when its session ends; 10.5 was never tested",
    Flavour.MYSQL: "older ones are not safe when they crash between XA PREPARE and XA COMMIT with the binary log on",
}
_NAMES = {Flavour.MARIADB: "MariaDB", Flavour.MYSQL: "MySQL"}
_LONG_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class MariaDBFacts:
    """What was seen."""

    flavour: Flavour | None
    """None: it speaks the protocol, and is neither."""
    version: str
    settings: Mapping[str, str]
    """Global variables, in lower case."""
    user: str = "'txcoord'@'%'"
    """As it was matched, quoted as statements need it."""
    database: str = "orders"
    offset_us: int = 0
    """Its clock minus this machine's."""
    identity_table: bool = True
    identity: str = ""
    has_marker: bool = True
    marker_keyed: bool = True
    engines: Mapping[str, str] = field(default_factory=dict)
    """By table, those that this role can see and that are not of InnoDB."""
    lacking: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By table of txcoord."""
    lacking_global: tuple[str, ...] = ()
    """Of those that finishing needs."""
    replicating: str = ""
    """Host of the primary that it follows; empty when it follows none."""
    replicas: int = 0
    """That follow it."""
    unseen: tuple[str, ...] = ()
    """Rights without which something cannot be seen that this check looks for."""
    semi_sync: int = 0
    """How many of them confirm, while semi-synchronous replication is on."""
    prepared_ours: int = 0
    prepared_foreign: int = 0
    """In the whole server; what is not of txcoord."""
    old: tuple[Prepared, ...] = ()
    limbo: int = 0
    """Transactions that are prepared in InnoDB, and unknown to XA RECOVER."""

    @property
    def product(self) -> str:
        """As people call it."""
        if self.flavour is None:
            return f"a server that calls itself {self.version}"
        return f"{_NAMES[self.flavour]} {'.'.join(map(str, version_tuple(self.version)))}"

    def on(self, name: str) -> bool:
        """Is that variable on?"""
        return self.settings.get(name, "").upper() in ("ON", "1", "YES", "TRUE")

    def number(self, name: str) -> int:
        """That variable; 0 where there is none."""
        try:
            return int(float(self.settings.get(name, "0")))
        except ValueError:
            return 0


def judge(facts: MariaDBFacts, expected: Expectations) -> list[Finding]:
    """What the facts mean. Pure."""
    out = [ok("connection", f"{facts.product} answers")]
    if unfit := [*_product(facts), *_clusters(facts), *_replica(facts, expected)]:
        return out + unfit  # It is the wrong server: nothing else has to be mended on it.
    out += _xa(facts)
    out += _durability(facts, checks.BRANCHES)
    out += _replication(facts, checks.BRANCHES)
    out += _tables(facts, expected)
    out += _rights(facts)
    out += _prepared(facts, expected)
    out += _timeouts(facts, expected)
    return out


def judge_log(facts: MariaDBFacts) -> list[Finding]:
    """What they mean where the log is on that server. Pure."""
    seen = replace(facts, flavour=facts.flavour or Flavour.MARIADB)
    out = [*_clusters(seen), *_durability(seen, checks.DECISIONS)]
    return out + [
        f for f in _replication(seen, checks.DECISIONS) if f.reason == reasons.ASYNCHRONOUS_STANDBYS
    ]


# ---- what is refused ----


def _product(facts: MariaDBFacts) -> list[Finding]:
    if facts.flavour is None:
        return [
            error(
                reasons.VERSION_UNSUPPORTED,
                f"{facts.product} is neither MariaDB nor MySQL",
                "it speaks their protocol, but what its XA really does was never measured",
                "# use MariaDB 10.6 or newer, MySQL 8.0.30 or newer, or PostgreSQL",
                refused=True,
            )
        ]
    oldest = OLDEST[facts.flavour]
    if version_tuple(facts.version) >= oldest:
        return []
    wanted = f"{_NAMES[facts.flavour]} {'.'.join(map(str, oldest))}"
    return [
        error(
            reasons.VERSION_UNSUPPORTED,
            f"this is {facts.product}; txcoord needs {wanted} or newer",
            _WHY_SO_NEW[facts.flavour],
            f"# upgrade the server to {wanted} or newer",
            refused=True,
        )
    ]


def _clusters(facts: MariaDBFacts) -> list[Finding]:
    out = []
    if facts.on("wsrep_on"):
        cluster = facts.settings.get("wsrep_cluster_name", "?")
        out.append(
            error(
                reasons.GALERA,
                f"this server is a node of the Galera cluster {cluster!r} (wsrep_on is ON)",
                "Galera does not support XA: the server refuses to prepare (error 1235), so each transaction with a "
                "branch on this database is aborted",
                "# use a MariaDB primary without Galera (wsrep_on = OFF), with semi-synchronous replicas if need be",
                refused=True,
            )
        )
    if group := facts.settings.get("group_replication_group_name"):
        out.append(
            error(
                reasons.GROUP_REPLICATION,
                f"this server belongs to the replication group {group}",
                "what a member that takes over knows of prepared branches was never tested",
                "# use a MySQL primary outside of a group, with semi-synchronous replicas if need be",
                refused=True,
            )
        )
    return out


def _replica(facts: MariaDBFacts, expected: Expectations) -> list[Finding]:
    if facts.replicating:
        return [
            error(
                reasons.RESOURCE_IN_RECOVERY,
                f"this server is a replica of {facts.replicating}",
                "what is prepared and committed belongs on its primary; what is written here can be lost or collide",
                f"export {expected.url_variable}='mariadb://USER:PASSWORD@{facts.replicating}/{facts.database}'",
                "-- if it was promoted and is to be the primary from now on:",
                f"-- STOP {_replica_word(facts)}; RESET {_replica_word(facts)} ALL; SET GLOBAL read_only = OFF;",
                refused=True,
            )
        ]
    if facts.settings.get("read_only", "OFF").upper() not in ("OFF", "0") or facts.on("super_read_only"):
        return [
            error(
                reasons.RESOURCE_READ_ONLY,
                "read_only is ON",
                "no marker can be written, so no branch can be committed; as a rule such a server is a replica",
                "-- only if it is the primary:",
                "-- SET GLOBAL read_only = OFF;",
                "# else name the primary: "
                f"export {expected.url_variable}='mariadb://USER:PASSWORD@PRIMARY/{facts.database}'",
                refused=True,
            )
        ]
    return []


def _replica_word(facts: MariaDBFacts) -> str:
    return "REPLICA" if facts.flavour is Flavour.MYSQL else "SLAVE"


def _xa(facts: MariaDBFacts) -> list[Finding]:
    out = []
    if facts.on("legacy_xa_rollback_at_disconnect"):
        out.append(
            error(
                reasons.XA_ROLLBACK_AT_DISCONNECT,
                "legacy_xa_rollback_at_disconnect is ON",
                "a prepared branch is rolled back when its service dies, also after commit was decided",
                "SET GLOBAL legacy_xa_rollback_at_disconnect = OFF;",
                *_in_file("legacy_xa_rollback_at_disconnect = OFF"),
                refused=True,
            )
        )
    if facts.flavour is Flavour.MYSQL and not facts.on("xa_detach_on_prepare"):
        out.append(
            error(
                reasons.XA_DETACH_OFF,
                "xa_detach_on_prepare is OFF",
                "only the session that prepared a branch may finish it, so nobody can when its service hangs",
                "SET GLOBAL xa_detach_on_prepare = ON;",
                *_in_file("xa_detach_on_prepare = ON"),
                refused=True,
            )
        )
    return out


def _in_file(line: str) -> tuple[str, ...]:
    return ("# and in the server's file, below [mysqld], so that it stays after a restart:", line)


# ---- durability and replication ----


def _durability(facts: MariaDBFacts, lost: str) -> list[Finding]:
    out = []
    flush = facts.settings.get("innodb_flush_log_at_trx_commit", "1")
    # 3 is MariaDB's, and flushes as often as 1 and more.
    if flush not in ("1", "3"):
        when = "the machine crashes" if flush == "2" else "the server or its machine crashes"
        out.append(
            error(
                reasons.DURABILITY,
                f"innodb_flush_log_at_trx_commit is {flush}",
                f"when {when}, up to a second of what was confirmed is lost: {lost}",
                "SET GLOBAL innodb_flush_log_at_trx_commit = 1;",
                *_in_file("innodb_flush_log_at_trx_commit = 1"),
            )
        )
    if facts.on("log_bin") and facts.settings.get("sync_binlog") != "1":
        out.append(
            error(
                reasons.DURABILITY,
                f"the binary log is on, and sync_binlog is {facts.settings.get('sync_binlog')}",
                "after a crash of the machine InnoDB follows the binary log, and rolls back what that has lost: "
                f"{lost}",
                "SET GLOBAL sync_binlog = 1;",
                *_in_file("sync_binlog = 1"),
            )
        )
    if facts.settings.get("innodb_doublewrite", "ON").upper() in ("OFF", "0", "DETECT_ONLY"):
        out.append(
            warning(
                reasons.DURABILITY,
                f"innodb_doublewrite is {facts.settings['innodb_doublewrite']}",
                f"when the machine crashes in the middle of a page, that page is corrupt, and {lost}. Only a file "
                "system that never tears pages (ZFS) makes it safe",
                *_in_file("innodb_doublewrite = ON"),
                "# then restart the server",
            )
        )
    return out


def _replication(facts: MariaDBFacts, lost: str) -> list[Finding]:
    out = []
    if facts.on("log_bin") and facts.settings.get("binlog_format", "").upper() == "STATEMENT":
        out.append(
            error(
                reasons.BINLOG_FORMAT,
                "the binary log is on, and binlog_format is STATEMENT",
                "branches overlap, and replicas that run their statements again come to other rows: after a fail-over "
                "the data is not what was committed",
                "SET GLOBAL binlog_format = 'ROW';",
                *_in_file("binlog_format = ROW"),
            )
        )
    if facts.replicas:
        out += _lag(facts, lost)
        if facts.flavour is Flavour.MARIADB:
            out.append(
                warning(
                    reasons.REPLICA_APPLIES_PREPARED,
                    f"{_replicas(facts)} of MariaDB follow this server",
                    "a replica applies a branch when it is prepared (MDEV-32020): its locks can hang there when the "
                    "replica restarts, and one that was set up from a dump misses branches that were prepared then",
                    "# set replicas up from a physical backup (mariadb-backup), while nothing is prepared:",
                    "XA RECOVER;",
                )
            )
    return out


def _lag(facts: MariaDBFacts, lost: str) -> list[Finding]:
    old, new = ("master", "source")
    timeout = facts.number(f"rpl_semi_sync_{old}_timeout") or facts.number(f"rpl_semi_sync_{new}_timeout")
    if facts.semi_sync and timeout >= _LONG_MS:
        return [ok("replicas", f"{_replicas(facts)}, semi-synchronous, without a way back to asynchronous")]
    word = new if facts.flavour is Flavour.MYSQL else old
    fact = (
        f"{_replicas(facts)} of this primary may lag behind it: semi-synchronous replication gives up after "
        f"{timeout} ms"
        if facts.semi_sync
        else f"{_replicas(facts)} of this primary may lag behind it: replication is asynchronous"
    )
    return [
        warning(
            reasons.ASYNCHRONOUS_STANDBYS,
            fact,
            f"after a fail-over {lost}, and nobody is told",
            f"SET GLOBAL rpl_semi_sync_{word}_enabled = ON;",
            f"SET GLOBAL rpl_semi_sync_{word}_wait_point = 'AFTER_SYNC';",
            f"SET GLOBAL rpl_semi_sync_{word}_timeout = 4294967295;",
            "# and rpl_semi_sync_slave_enabled (MySQL: _replica_) on the replicas; all of it in the servers' files",
        )
    ]


def _replicas(facts: MariaDBFacts) -> str:
    return "1 replica" if facts.replicas == 1 else f"{facts.replicas} replicas"


# ---- tables, rights ----


def _tables(facts: MariaDBFacts, expected: Expectations) -> list[Finding]:
    out = checks.tables(
        expected,
        identity_table=facts.identity_table,
        identity=facts.identity,
        has_marker=facts.has_marker,
        lacking=facts.lacking,
        grant=lambda rights, table: f"GRANT {rights} ON {quoted(facts.database)}.{table} TO {facts.user};",
    )
    engines = dict(facts.engines)
    for table in (marker.TABLE, marker.IDENTITY_TABLE):
        if engine := engines.pop(table, ""):
            out.append(
                error(
                    reasons.MARKER_UNSAFE,
                    f"{table} has the engine {engine}",
                    "its rows are no part of a branch: they stay when it is rolled back, and prove what never happened",
                    f"ALTER TABLE {quoted(facts.database)}.{table} ENGINE=InnoDB;",
                    refused=True,
                )
            )
    if facts.has_marker and not facts.marker_keyed:
        out.append(
            error(
                reasons.MARKER_UNSAFE,
                f"{marker.TABLE} has no unique key (tx_id, branch, op)",
                "nothing keeps late work from being done after it was given up, or twice",
                f"ALTER TABLE {quoted(facts.database)}.{marker.TABLE} ADD PRIMARY KEY (tx_id, branch, op);",
                refused=True,
            )
        )
    if engines:
        some = sorted(engines)[:5]
        out.append(
            warning(
                reasons.NOT_TRANSACTIONAL,
                f"tables here without transactions: {', '.join(f'{t} ({engines[t]})' for t in some)}"
                + (f" and {len(engines) - 5} more" if len(engines) > 5 else ""),
                "what a branch changes in them stays when it is rolled back, and is seen before it commits",
                *(f"ALTER TABLE {quoted(facts.database)}.{quoted(t)} ENGINE=InnoDB;" for t in some),
            )
        )
    default = facts.settings.get("default_storage_engine", "InnoDB")
    if default.lower() != "innodb":
        out.append(
            warning(
                reasons.NOT_TRANSACTIONAL,
                f"default_storage_engine is {default}",
                "new tables will have no transactions, unless they say ENGINE=InnoDB",
                "SET GLOBAL default_storage_engine = InnoDB;",
                *_in_file("default_storage_engine = InnoDB"),
            )
        )
    return out


_NEEDED = {
    "CONNECTION ADMIN": "the coordinator may not end the session of a service that hangs or has lost its way, so "
    "what that has prepared keeps its locks",
    "PROCESS": "the coordinator cannot see a branch in limbo (prepared in InnoDB, and unknown to XA RECOVER), nor the "
    "sessions of other users",
    "XA_RECOVER_ADMIN": "the coordinator cannot list what is prepared, so nobody finishes it when its service dies",
}


_UNSEEN = {
    "REPLICATION CLIENT": "it cannot be seen whether this server is a replica, which must not be a resource",
    "PROCESS": "it cannot be seen whether replicas follow this server, which may lag behind it",
}


def _rights(facts: MariaDBFacts) -> list[Finding]:
    out = [
        error(
            reasons.NOT_PERMITTED,
            f"{facts.user} has no right {right}",
            _NEEDED[right],
            f"GRANT {right} ON *.* TO {facts.user};",
        )
        for right in facts.lacking_global
    ]
    out += [
        warning(
            reasons.NOT_PERMITTED,
            f"{facts.user} has no right {right}",
            _UNSEEN[right],
            f"GRANT {right} ON *.* TO {facts.user};",
        )
        for right in facts.unseen
    ]
    return out


# ---- what is there ----


def _prepared(facts: MariaDBFacts, expected: Expectations) -> list[Finding]:
    out = []
    if facts.limbo:
        out.append(
            error(
                reasons.IN_LIMBO,
                f"{'1 transaction is' if facts.limbo == 1 else f'{facts.limbo} transactions are'} in limbo: prepared "
                "in InnoDB, and not in XA RECOVER",
                "it keeps its locks, and can neither be committed nor rolled back before the next start of the server",
                "# restart the server; then the branch is listed, and the coordinator finishes it as it was decided",
            )
        )
    late = [one for one in facts.old if one.age_us > expected.old_us]
    out += checks.old_prepared(
        expected, late, lambda one: f"XA ROLLBACK {one.name};", "they keep their locks"
    )
    if facts.prepared_ours:
        out.append(
            ok(
                "prepared",
                f"{facts.prepared_ours} prepared branches of txcoord on this server at this moment",
            )
        )
    if facts.prepared_foreign:
        out.append(
            ok(
                "prepared_foreign",
                f"{facts.prepared_foreign} prepared of somebody else; txcoord never touches them",
            )
        )
    return out


_TIMEOUTS = ("wait_timeout", "idle_transaction_timeout", "idle_write_transaction_timeout")


def _timeouts(facts: MariaDBFacts, expected: Expectations) -> list[Finding]:
    out = []
    for name in _TIMEOUTS:
        seconds = facts.number(name)
        if 0 < seconds * 1_000_000 < expected.open_us:
            better = "28800" if name == "wait_timeout" else "0"
            out.append(
                warning(
                    reasons.IDLE_TIMEOUT,
                    f"{name} is {seconds} s",
                    "a branch is idle while other services work: it is cut off, and its transaction aborted, before "
                    f"its deadline ({expected.open_us // 1_000_000} s by default)",
                    f"SET GLOBAL {name} = {better};",
                    *_in_file(f"{name} = {better}"),
                )
            )
    return out


def quoted(name: str) -> str:
    """A name in a statement."""
    return "`" + name.replace("`", "``") + "`"
