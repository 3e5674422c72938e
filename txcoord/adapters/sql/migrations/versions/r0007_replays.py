"""Replays: jobs that retry parked branches, and what each did. The audit trail says branch, namespace and job.

On MariaDB each statement can be repeated: see the first revision.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_MARIADB = "mysql"
_TEXT = sa.String().with_variant(mysql.MEDIUMTEXT(), _MARIADB)
_OPTIONS = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_nopad_bin",
    "mysql_row_format": "DYNAMIC",
}


def _words(name: str, length: int, *, key: bool = False, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), primary_key=key, nullable=null)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, _TEXT, nullable=False)


def _big(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


def upgrade() -> None:
    mariadb = op.get_bind().dialect.name == _MARIADB
    for name, kind in (
        ("namespace", sa.String(255)),
        ("branch", sa.String(64)),
        ("replay", sa.String(64)),
        ("detail", _TEXT),
    ):
        if mariadb:
            text = kind.compile(dialect=op.get_bind().dialect)
            op.execute(
                f"ALTER TABLE txcoord_audit ADD COLUMN IF NOT EXISTS {name} {text} NOT NULL DEFAULT ''"
            )
        else:
            op.add_column("txcoord_audit", sa.Column(name, kind, nullable=False, server_default=""))
    op.create_index("txcoord_audit_at", "txcoord_audit", ["at_us"], if_not_exists=mariadb)
    op.create_table(
        "txcoord_replay",
        _words("id", 64, key=True),
        _words("namespace", 255),
        _words("state", 16),
        _text("what"),
        _text("base"),
        _words("actor", 255),
        _text("reason"),
        _text("message"),
        _words("request_id", 255, null=True),
        _words("owner", 255),
        _number("epoch"),
        _big("lease_until_us"),
        _big("started_us"),
        _big("updated_us"),
        _big("ended_us"),
        _words("after_tx_id", 64),
        _words("after_branch", 64),
        sa.Column("listed", sa.Boolean, nullable=False),
        _number("canary_step"),
        if_not_exists=mariadb,
        **_OPTIONS,
    )
    op.create_index(
        "txcoord_replay_request",
        "txcoord_replay",
        ["namespace", "request_id"],
        unique=True,
        if_not_exists=mariadb,
    )
    op.create_table(
        "txcoord_replay_item",
        _words("replay_id", 64, key=True),
        _words("tx_id", 64, key=True),
        _words("branch", 64, key=True),
        _words("state", 16),
        _words("gid", 255),
        _text("reason"),
        _text("message"),
        sqlite_with_rowid=False,
        if_not_exists=mariadb,
        **_OPTIONS,
    )
    op.create_index(
        "txcoord_replay_item_state", "txcoord_replay_item", ["replay_id", "state"], if_not_exists=mariadb
    )
