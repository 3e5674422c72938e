"""The tables of the log, as this version of txcoord reads and writes them. Migrations make them.

No foreign keys: they would cost a look-up for each row of the hot path, and only pruning deletes. All times
are UTC microseconds. Indexes are partial where the engine can do that: what is over for good is in none of
those that the hot path keeps. MariaDB has no partial indexes: there columns that it computes itself say which rows
are in which part (see the migration).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    literal_column,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.types import TypeDecorator, TypeEngine, Uuid

MARIADB: Final = "mysql"
"""What SQLAlchemy calls the dialect of a log on MariaDB."""
TEXT: Final = String().with_variant(mysql.MEDIUMTEXT(), MARIADB)
BYTES: Final = LargeBinary().with_variant(mysql.MEDIUMBLOB(), MARIADB)


class TxId(TypeDecorator[str]):
    """A tx id: 32 hexadecimal digits here, the database's own UUID type where it has one that keeps their order."""

    impl = Uuid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(mysql.BINARY(16) if dialect.name == MARIADB else Uuid())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        return bytes.fromhex(value) if dialect.name == MARIADB else uuid.UUID(hex=value)

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.hex() if isinstance(value, bytes) else str(value.hex)


metadata = MetaData()


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the rows of ``tx``, found by an index of their own."""

    condition: str
    """Of the partial index. Literal, in statements too: an engine uses such an index only for what it can prove when
    it plans, and a parameter proves nothing."""
    mariadb: str
    """The same, by the columns that MariaDB computes."""
    due: str = ""
    """The column by which they come up; on MariaDB `due_us` has the same."""

    def of(self, conn: Connection) -> TextClause:
        """The condition."""
        return text(self.mariadb if conn.dialect.name == MARIADB else self.condition)

    def others(self, conn: Connection) -> TextClause:
        """All rows but these."""
        return text(f"NOT ({self.mariadb if conn.dialect.name == MARIADB else self.condition})")

    def due_of(self, conn: Connection) -> ColumnElement[int]:
        """Their order."""
        return literal_column("due_us" if conn.dialect.name == MARIADB else self.due, BigInteger)


UNDECIDED = Part("decision IS NULL AND state <> 'running'", "part = 1", "deadline_us")
CARRIED_OUT = Part(
    "(decision IS NOT NULL OR state = 'running') AND ended_us = 0 AND NOT at_rest",
    "part = 2",
    "lease_until_us",
)
"""In phase two, or a plan that runs: a node has it, and sees to its deadline too."""
WITH_DETAIL = Part("ended_us > 0 AND NOT detail_pruned", "part = 3", "ended_us")
BARE = Part("detail_pruned", "part = 4", "deadline_us")
PARKED = Part("parked > 0", "attention IN (1, 3)")
HEURISTIC = Part("heuristic", "attention IN (2, 3)")


def _partial(name: str, part: Part | str, *columns: str, unique: bool = False) -> Index:
    where: TextClause = text(part if isinstance(part, str) else part.condition)
    return Index(name, *columns, unique=unique, postgresql_where=where, sqlite_where=where)


tx = Table(
    "txcoord_tx",
    metadata,
    Column("tx_id", TxId, primary_key=True),
    Column("namespace", String(255), nullable=False),
    Column("gid", String(255)),  # NULL: none was given, or it was given up
    Column("name", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("decision", String(16)),
    Column("decided_by", String(16)),
    Column("reason", TEXT, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("decided_us", BigInteger, nullable=False),
    Column("deadline_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("owner", String(255), nullable=False),
    Column("lease_until_us", BigInteger, nullable=False),
    Column("one_phase_resource", String(255), nullable=False),
    Column("labels", TEXT, nullable=False),  # JSON; empty for none
    Column("headers", TEXT, nullable=False),
    Column("result", BYTES, nullable=False),
    Column("parked", Integer, nullable=False),  # how many branches are parked
    Column("heuristic", Boolean, nullable=False),  # is any branch
    Column("at_rest", Boolean, nullable=False),  # phase two waits for an operator: not to be claimed
    Column("detail_pruned", Boolean, nullable=False),
    _partial("txcoord_tx_gid", "gid IS NOT NULL", "namespace", "gid", unique=True),
    _partial("txcoord_tx_undecided", UNDECIDED, "deadline_us"),
    _partial("txcoord_tx_phase_two", CARRIED_OUT, "lease_until_us"),
    _partial("txcoord_tx_with_detail", WITH_DETAIL, "ended_us"),
    _partial("txcoord_tx_bare", BARE, "deadline_us"),
    _partial("txcoord_tx_parked", PARKED, "tx_id"),
    _partial("txcoord_tx_heuristic", HEURISTIC, "tx_id"),
)

branch = Table(
    "txcoord_branch",
    metadata,
    Column("tx_id", TxId, primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("position", SmallInteger, nullable=False),  # its place in the list
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("resource", String(255), nullable=False),
    Column("xid", String(255), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_us", BigInteger, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("heuristic", Boolean, nullable=False),
    Column("payload", BYTES, nullable=False),
    Column("result", BYTES, nullable=False),
    Column("action", TEXT, nullable=False, server_default=""),  # JSON: see `actions`
    _partial("txcoord_branch_waiting", "next_attempt_us > 0", "resource", "next_attempt_us"),
    sqlite_with_rowid=False,  # one tree less to write
)

history = Table(
    "txcoord_history",
    metadata,
    Column("tx_id", TxId, primary_key=True),
    Column("at_us", BigInteger, primary_key=True),
    Column("ordinal", BigInteger, primary_key=True),  # from a counter of the writing process
    Column("what", String(64), nullable=False),
    Column("branch", String(64), nullable=False),
    Column("by_whom", String(255), nullable=False),
    Column("reason", TEXT, nullable=False),
    sqlite_with_rowid=False,
)

audit = Table(
    "txcoord_audit",
    metadata,
    Column("tx_id", TxId, primary_key=True),
    Column("at_us", BigInteger, primary_key=True),
    Column("ordinal", BigInteger, primary_key=True),
    Column("actor", String(255), nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("action", String(64), nullable=False),
    Column("namespace", String(255), nullable=False, server_default=""),
    Column("branch", String(64), nullable=False, server_default=""),
    Column("replay", String(64), nullable=False, server_default=""),  # of orders about a job: its tx_id too
    Column("detail", TEXT, nullable=False, server_default=""),  # JSON; empty for none
    Index("txcoord_audit_at", "at_us"),
)

replay = Table(
    "txcoord_replay",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("namespace", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("what", TEXT, nullable=False),  # JSON: what was asked
    Column("base", TEXT, nullable=False),  # JSON: counts when it was resumed
    Column("actor", String(255), nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("message", TEXT, nullable=False),
    Column("request_id", String(255)),  # NULL: none was given
    Column("owner", String(255), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("lease_until_us", BigInteger, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("updated_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger, nullable=False),
    Column("after_tx_id", String(64), nullable=False),
    Column("after_branch", String(64), nullable=False),
    Column("listed", Boolean, nullable=False),
    Column("canary_step", Integer, nullable=False),
    Index("txcoord_replay_request", "namespace", "request_id", unique=True),
)

replay_item = Table(
    "txcoord_replay_item",
    metadata,
    Column("replay_id", String(64), primary_key=True),
    Column("tx_id", String(64), primary_key=True),
    Column("branch", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("gid", String(255), nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("message", TEXT, nullable=False),
    Index("txcoord_replay_item_state", "replay_id", "state"),
    sqlite_with_rowid=False,
)

log_identity = Table(
    "txcoord_log_identity",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("log_id", String(10), nullable=False),
    Column("incarnation", Integer, nullable=False),
    Column("earlier_log_ids", TEXT, nullable=False),  # separated by blanks
)

resource = Table(
    "txcoord_resource",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("identity", String(255), nullable=False),
)

lease = Table(
    "txcoord_lease",
    metadata,
    Column("duty", String(255), primary_key=True),
    Column("owner", String(255), nullable=False),  # empty: released
    Column("token", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False),
)

outbox = Table(
    "txcoord_outbox",
    metadata,
    Column("tx_id", TxId, primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("what", String(64), nullable=False),
    Column("branch", String(64), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("topics", SmallInteger, nullable=False),
    Column("data", TEXT, nullable=False),  # JSON
    sqlite_with_rowid=False,
)

outbox_held = Table(
    "txcoord_outbox_held",
    metadata,
    Column("tx_id", TxId, primary_key=True),  # all that it announces: the order is kept
    Column("until_us", BigInteger, nullable=False),
)

ordering = Table(
    "txcoord_ordering",
    metadata,
    Column(
        "id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True
    ),  # in the order of the writes
    Column("tx_id", TxId, nullable=False),
    Column("branch", String(64), nullable=False),
    Column("position", SmallInteger, nullable=False),
    Column("line", String(32), nullable=False),  # of namespace, target and key
    Column("due_us", BigInteger, nullable=False),
    Column("turn", SmallInteger),  # 1: its; else NULL
    Index("txcoord_ordering_branch", "tx_id", "branch", unique=True),
    Index("txcoord_ordering_turn", "line", "turn", unique=True),
    Index("txcoord_ordering_line", "line", "id"),
    sqlite_autoincrement=True,
)

node = Table(
    "txcoord_node",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("address", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
    Column("live", Integer, nullable=False),  # transactions that it carries out
    Column("draining", Boolean, nullable=False),
    Column("clock_offset_us", BigInteger, nullable=False),
)

node_audit = Table(
    "txcoord_node_audit",
    metadata,
    Column("node", String(255), primary_key=True),
    Column("at_us", BigInteger, primary_key=True, autoincrement=False),
    Column("ordinal", BigInteger, primary_key=True, autoincrement=False),
    Column("actor", String(255), nullable=False),
    Column("identity", String(255), nullable=False),  # of the token that was shown; empty for none
    Column("reason", TEXT, nullable=False),
    Column("action", String(64), nullable=False),
)

target = Table(
    "txcoord_target",
    metadata,
    Column("target", String(255), primary_key=True),
    Column("paused", Boolean, nullable=False),
    Column("paused_until_us", BigInteger, nullable=False),
    Column("rate_per_s", Double(), nullable=False),
    Column("at_once", Integer, nullable=False),
    Column("actor", String(255), nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("changed_us", BigInteger, nullable=False),
    Column("disabled_us", BigInteger, nullable=False),
    Column("failing_since_us", BigInteger, nullable=False),
    Column("alias_of", String(255), nullable=False),  # empty: it is called itself
)

target_audit = Table(
    "txcoord_target_audit",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("target", String(255), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("namespace", String(255), nullable=False),
    Column("action", String(64), nullable=False),
    Column("actor", String(255), nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("detail", TEXT, nullable=False),
    Index("txcoord_target_audit_target", "target", "at_us"),
)
