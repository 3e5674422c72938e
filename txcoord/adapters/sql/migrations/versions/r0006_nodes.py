"""The nodes of the fleet, and what operators have done to them.

On MariaDB each statement can be repeated: see the first revision.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_MARIADB = "mysql"
_OPTIONS = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_nopad_bin",
    "mysql_row_format": "DYNAMIC",
}


def _text(name: str, length: int, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), primary_key=key, nullable=False)


def _big(name: str, *, key: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), primary_key=key, nullable=False, autoincrement=False)


def upgrade() -> None:
    again = op.get_bind().dialect.name == _MARIADB
    op.create_table(
        "txcoord_node",
        _text("name", 255, key=True),
        _text("role", 16),
        _text("address", 255),
        _text("version", 64),
        _big("started_us"),
        _big("seen_us"),
        sa.Column("live", sa.Integer(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        _big("clock_offset_us"),
        if_not_exists=again,
        **_OPTIONS,
    )
    op.create_table(
        "txcoord_node_audit",
        _text("node", 255, key=True),
        _big("at_us", key=True),
        _big("ordinal", key=True),
        _text("actor", 255),
        _text("identity", 255),
        sa.Column("reason", sa.String().with_variant(mysql.MEDIUMTEXT(), _MARIADB), nullable=False),
        _text("action", 64),
        if_not_exists=again,
        **_OPTIONS,
    )
