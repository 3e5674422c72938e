"""Branches that wait for their next attempt are found by their target.

The index holds those alone, and its condition names no column that changes while all goes well: on PostgreSQL such an
update would have to touch every index of the branch. MariaDB has no partial indexes: there they are found by way of
the rows that are carried out.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "mysql":
        return
    waiting = sa.text("next_attempt_us > 0")
    op.create_index(
        "txcoord_branch_waiting",
        "txcoord_branch",
        ["resource", "next_attempt_us"],
        postgresql_where=waiting,
        sqlite_where=waiting,
    )
