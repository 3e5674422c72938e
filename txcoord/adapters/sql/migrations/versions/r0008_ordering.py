"""Messages that leave one after the other: a row for each, as long as it has not ended.

On MariaDB each statement can be repeated: see the first revision.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0008"
down_revision = "0007"
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
    dialect = op.get_bind().dialect.name
    again = dialect == _MARIADB
    op.create_table(
        "txcoord_ordering",
        # It grows from one write to the next, also after rows were deleted.
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("tx_id", sa.Uuid().with_variant(mysql.BINARY(16), _MARIADB), nullable=False),
        sa.Column("branch", sa.String(64), nullable=False),
        sa.Column("position", sa.SmallInteger, nullable=False),
        sa.Column("line", sa.String(32), nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=False),
        sa.Column("turn", sa.SmallInteger, nullable=True),
        if_not_exists=again,
        sqlite_autoincrement=True,
        **_OPTIONS,
    )
    for name, columns, unique in (
        ("txcoord_ordering_branch", ["tx_id", "branch"], True),
        ("txcoord_ordering_turn", ["line", "turn"], True),
        ("txcoord_ordering_line", ["line", "id"], False),
    ):
        op.create_index(name, "txcoord_ordering", columns, unique=unique, if_not_exists=again)
    if dialect == "postgresql":
        # Rows come and go: vacuum by growth, not by share.
        op.execute(
            "ALTER TABLE txcoord_ordering SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)"
        )
