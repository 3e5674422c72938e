"""Targets: what operators have said about participants, and who did, when and why.

On MariaDB each statement can be repeated: see the first revision.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MARIADB = "mysql"
_OPTIONS = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_nopad_bin",
    "mysql_row_format": "DYNAMIC",
}


def upgrade() -> None:
    long_text = sa.String().with_variant(mysql.MEDIUMTEXT(), _MARIADB)
    again = op.get_bind().dialect.name == _MARIADB
    op.create_table(
        "txcoord_target",
        sa.Column("target", sa.String(255), primary_key=True, nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("paused_until_us", sa.BigInteger(), nullable=False),
        sa.Column("rate_per_s", sa.Double(), nullable=False),
        sa.Column("at_once", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("reason", long_text, nullable=False),
        sa.Column("changed_us", sa.BigInteger(), nullable=False),
        if_not_exists=again,
        **_OPTIONS,
    )
    op.create_table(
        "txcoord_target_audit",
        sa.Column("id", sa.String(32), primary_key=True, nullable=False),
        sa.Column("target", sa.String(255), nullable=False),
        sa.Column("at_us", sa.BigInteger(), nullable=False),
        sa.Column("namespace", sa.String(255), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("reason", long_text, nullable=False),
        sa.Column("detail", long_text, nullable=False),
        if_not_exists=again,
        **_OPTIONS,
    )
    op.create_index(
        "txcoord_target_audit_target", "txcoord_target_audit", ["target", "at_us"], if_not_exists=again
    )
