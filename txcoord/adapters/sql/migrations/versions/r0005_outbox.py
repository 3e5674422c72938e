"""What is to be told to the world outside, until it is on its topic.

On MariaDB each statement can be repeated: see the first revision.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_MARIADB = "mysql"
_OPTIONS = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_nopad_bin",
    "mysql_row_format": "DYNAMIC",
}


def _key() -> sa.Column[object]:
    return sa.Column("tx_id", sa.Uuid().with_variant(mysql.BINARY(16), _MARIADB), primary_key=True)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    again = dialect == _MARIADB
    op.create_table(
        "txcoord_outbox",
        _key(),
        sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("what", sa.String(64), nullable=False),
        sa.Column("branch", sa.String(64), nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("topics", sa.SmallInteger, nullable=False),
        sa.Column("data", sa.String().with_variant(mysql.MEDIUMTEXT(), _MARIADB), nullable=False),
        if_not_exists=again,
        sqlite_with_rowid=False,
        **_OPTIONS,
    )
    op.create_table(
        "txcoord_outbox_held",
        _key(),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        if_not_exists=again,
        **_OPTIONS,
    )
    if dialect == "postgresql":
        # Rows come and go: vacuum by growth, not by share.
        op.execute(
            "ALTER TABLE txcoord_outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)"
        )
