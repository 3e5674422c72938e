"""The log, as it began. A revision never changes once it is released: make a new one.

MariaDB ends an SQL transaction with each statement that makes something: there each can be repeated, so that a
migration that died half way is simply run again.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


_MARIADB = "mysql"
# Of every table on MariaDB, whatever the database's own are. The collation compares byte by byte, blanks at the end
# too.
_OPTIONS = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_nopad_bin",
    "mysql_row_format": "DYNAMIC",
}
_LONG_TEXT = sa.String().with_variant(mysql.MEDIUMTEXT(), _MARIADB)
_UNDECIDED = "decision IS NULL"
_IN_PHASE_TWO = "decision IS NOT NULL AND ended_us = 0 AND NOT at_rest"
_WITH_DETAIL = "ended_us > 0 AND NOT detail_pruned"
_BARE = "detail_pruned"


def _again() -> bool:
    """May what is to be made be there already, from a try that died?"""
    return op.get_bind().dialect.name == _MARIADB


def _table(name: str, *columns: sa.schema.SchemaItem, **options: Any) -> None:
    op.create_table(name, *columns, if_not_exists=_again(), **_OPTIONS, **options)


def _key(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid().with_variant(mysql.BINARY(16), _MARIADB), primary_key=True)


def _text(name: str, length: int | None = None, *, key: bool = False, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length) if length else _LONG_TEXT, primary_key=key, nullable=null)


def _number(name: str, type_: type[sa.Integer], *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, type_(), primary_key=key, nullable=False, autoincrement=False)


def _big(name: str, *, key: bool = False) -> sa.Column[int]:
    return _number(name, sa.BigInteger, key=key)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), _MARIADB), nullable=False)


def _index(name: str, condition: str, *columns: str, unique: bool = False) -> None:
    """A partial index."""
    where = sa.text(condition)
    op.create_index(
        name,
        "txcoord_tx",
        columns,
        unique=unique,
        if_not_exists=_again(),
        postgresql_where=where,
        sqlite_where=where,
    )


def _computed(name: str, type_: sa.types.TypeEngine[Any], expression: str) -> sa.Column[Any]:
    return sa.Column(name, type_, sa.Computed(expression, persisted=True))


def _mariadb_columns() -> list[sa.Column[Any]]:
    """Instead of partial indexes: which part a row is in, when it comes up there, and whether it needs a look."""
    flush = sa.Column("flush_id", sa.BigInteger(), nullable=False)  # which flush wrote the row last
    part = (
        f"CASE WHEN {_UNDECIDED} THEN 1 WHEN {_BARE} THEN 4 WHEN {_WITH_DETAIL} THEN 3 WHEN {_IN_PHASE_TWO} THEN 2"
        " ELSE 0 END"
    )
    due = (
        f"CASE WHEN {_UNDECIDED} OR {_BARE} THEN deadline_us WHEN {_WITH_DETAIL} THEN ended_us"
        f" WHEN {_IN_PHASE_TWO} THEN lease_until_us ELSE 0 END"
    )
    return [
        flush,
        _computed("part", mysql.TINYINT(), part),
        _computed("due_us", sa.BigInteger(), due),
        _computed("attention", mysql.TINYINT(), "(parked > 0) + 2 * heuristic"),
    ]


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    _table(
        "txcoord_tx",
        _key("tx_id"),
        _text("namespace", 255),
        _text("gid", 255, null=True),
        _text("name", 255),
        _text("state", 16),
        _text("decision", 16, null=True),
        _text("decided_by", 16, null=True),
        _text("reason"),
        _big("created_us"),
        _big("decided_us"),
        _big("deadline_us"),
        _big("ended_us"),
        _number("version", sa.Integer),
        _number("epoch", sa.Integer),
        _text("owner", 255),
        _big("lease_until_us"),
        _text("one_phase_resource", 255),
        _text("labels"),
        _text("headers"),
        _bytes("result"),
        _number("parked", sa.Integer),
        _flag("heuristic"),
        _flag("at_rest"),
        _flag("detail_pruned"),
        *(_mariadb_columns() if dialect == _MARIADB else ()),
    )
    _index("txcoord_tx_gid", "gid IS NOT NULL", "namespace", "gid", unique=True)
    if dialect == _MARIADB:
        op.create_index("txcoord_tx_due", "txcoord_tx", ("part", "due_us"), if_not_exists=True)
        op.create_index("txcoord_tx_attention", "txcoord_tx", ("attention",), if_not_exists=True)
    else:
        _index("txcoord_tx_undecided", _UNDECIDED, "deadline_us")
        _index("txcoord_tx_phase_two", _IN_PHASE_TWO, "lease_until_us")
        _index("txcoord_tx_with_detail", _WITH_DETAIL, "ended_us")
        _index("txcoord_tx_bare", _BARE, "deadline_us")
        _index("txcoord_tx_parked", "parked > 0", "tx_id")
        _index("txcoord_tx_heuristic", "heuristic", "tx_id")
    _table(
        "txcoord_branch",
        _key("tx_id"),
        _text("id", 64, key=True),
        _number("position", sa.SmallInteger),
        _text("kind", 16),
        _text("state", 16),
        _text("resource", 255),
        _text("xid", 255),
        _number("attempts", sa.Integer),
        _big("next_attempt_us"),
        _text("reason"),
        _flag("heuristic"),
        _bytes("payload"),
        _bytes("result"),
        sqlite_with_rowid=False,
    )
    _table(
        "txcoord_history",
        _key("tx_id"),
        _big("at_us", key=True),
        _big("ordinal", key=True),
        _text("what", 64),
        _text("branch", 64),
        _text("by_whom", 255),
        _text("reason"),
        sqlite_with_rowid=False,
    )
    _table(
        "txcoord_audit",
        _key("tx_id"),
        _big("at_us", key=True),
        _big("ordinal", key=True),
        _text("actor", 255),
        _text("reason"),
        _text("action", 64),
    )
    _table(
        "txcoord_log_identity",
        _number("id", sa.Integer, key=True),
        _text("log_id", 10),
        _number("incarnation", sa.Integer),
        _text("earlier_log_ids"),
    )
    _table("txcoord_resource", _text("name", 255, key=True), _text("identity", 255))
    _table(
        "txcoord_lease",
        _text("duty", 255, key=True),
        _text("owner", 255),
        _big("token"),
        _big("until_us"),
    )
    if dialect == "postgresql":
        # Rows are updated once or twice and then rest: leave room for that, and vacuum by growth, not by share.
        op.execute(
            "ALTER TABLE txcoord_tx SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,"
            " autovacuum_analyze_scale_factor = 0.02)"
        )
