"""The log, as it began. A revision never changes once it is released: make a new one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _key(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid(), primary_key=True)


def _text(name: str, length: int | None = None, *, key: bool = False, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), primary_key=key, nullable=null)


def _number(name: str, type_: type[sa.Integer], *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, type_(), primary_key=key, nullable=False, autoincrement=False)


def _big(name: str, *, key: bool = False) -> sa.Column[int]:
    return _number(name, sa.BigInteger, key=key)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary(), nullable=False)


def _index(name: str, condition: str, *columns: str, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, "txcoord_tx", columns, unique=unique, postgresql_where=where, sqlite_where=where)


def upgrade() -> None:
    op.create_table(
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
    )
    _index("txcoord_tx_gid", "gid IS NOT NULL", "namespace", "gid", unique=True)
    _index("txcoord_tx_undecided", "decision IS NULL", "deadline_us")
    _index("txcoord_tx_phase_two", "decision IS NOT NULL AND ended_us = 0 AND NOT at_rest", "lease_until_us")
    _index("txcoord_tx_with_detail", "ended_us > 0 AND NOT detail_pruned", "ended_us")
    _index("txcoord_tx_bare", "detail_pruned", "deadline_us")
    _index("txcoord_tx_parked", "parked > 0", "tx_id")
    _index("txcoord_tx_heuristic", "heuristic", "tx_id")
    op.create_table(
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
    op.create_table(
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
    op.create_table(
        "txcoord_audit",
        _key("tx_id"),
        _big("at_us", key=True),
        _big("ordinal", key=True),
        _text("actor", 255),
        _text("reason"),
        _text("action", 64),
    )
    op.create_table(
        "txcoord_log_identity",
        _number("id", sa.Integer, key=True),
        _text("log_id", 10),
        _number("incarnation", sa.Integer),
        _text("earlier_log_ids"),
    )
    op.create_table("txcoord_resource", _text("name", 255, key=True), _text("identity", 255))
    op.create_table(
        "txcoord_lease",
        _text("duty", 255, key=True),
        _text("owner", 255),
        _big("token"),
        _big("until_us"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Rows are updated once or twice and then rest: leave room for that, and vacuum by growth, not by share.
        op.execute(
            "ALTER TABLE txcoord_tx SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,"
            " autovacuum_analyze_scale_factor = 0.02)"
        )
