"""The tables of the log, as this version of txcoord reads and writes them. Migrations make them.

No foreign keys: they would cost a look-up for each row of the hot path, and only pruning deletes. All times
are UTC microseconds. Indexes are partial where the engine can do that: what is over for good is in none of
those that the hot path keeps.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.types import TypeDecorator, Uuid


class TxId(TypeDecorator[str]):
    """A tx id: 32 hexadecimal digits here, the database's own UUID type where it has one."""

    impl = Uuid
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else uuid.UUID(hex=value)

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else value.hex


metadata = MetaData()

# Conditions of the partial indexes. Literal, in statements too: an engine uses such an index only for what it
# can prove when it plans, and a parameter proves nothing.
UNDECIDED = "decision IS NULL"
IN_PHASE_TWO = "decision IS NOT NULL AND ended_us = 0 AND NOT at_rest"
WITH_DETAIL = "ended_us > 0 AND NOT detail_pruned"
BARE = "detail_pruned"
PARKED = "parked > 0"
HEURISTIC = "heuristic"


def _partial(name: str, condition: str, *columns: str, unique: bool = False) -> Index:
    where: TextClause = text(condition)
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
    Column("reason", String, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("decided_us", BigInteger, nullable=False),
    Column("deadline_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("owner", String(255), nullable=False),
    Column("lease_until_us", BigInteger, nullable=False),
    Column("one_phase_resource", String(255), nullable=False),
    Column("labels", String, nullable=False),  # JSON; empty for none
    Column("headers", String, nullable=False),
    Column("result", LargeBinary, nullable=False),
    Column("parked", Integer, nullable=False),  # how many branches are parked
    Column("heuristic", Boolean, nullable=False),  # is any branch
    Column("at_rest", Boolean, nullable=False),  # phase two waits for an operator: not to be claimed
    Column("detail_pruned", Boolean, nullable=False),
    _partial("txcoord_tx_gid", "gid IS NOT NULL", "namespace", "gid", unique=True),
    _partial("txcoord_tx_undecided", UNDECIDED, "deadline_us"),
    _partial("txcoord_tx_phase_two", IN_PHASE_TWO, "lease_until_us"),
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
    Column("reason", String, nullable=False),
    Column("heuristic", Boolean, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("result", LargeBinary, nullable=False),
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
    Column("reason", String, nullable=False),
    sqlite_with_rowid=False,
)

audit = Table(
    "txcoord_audit",
    metadata,
    Column("tx_id", TxId, primary_key=True),
    Column("at_us", BigInteger, primary_key=True),
    Column("ordinal", BigInteger, primary_key=True),
    Column("actor", String(255), nullable=False),
    Column("reason", String, nullable=False),
    Column("action", String(64), nullable=False),
)

log_identity = Table(
    "txcoord_log_identity",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("log_id", String(10), nullable=False),
    Column("incarnation", Integer, nullable=False),
    Column("earlier_log_ids", String, nullable=False),  # separated by blanks
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
