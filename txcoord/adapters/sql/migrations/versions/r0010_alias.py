"""Targets whose calls go to another one.

On MariaDB each statement can be repeated: see the first revision.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_MARIADB = "mysql"


def upgrade() -> None:
    if op.get_bind().dialect.name == _MARIADB:
        op.execute(
            "ALTER TABLE txcoord_target ADD COLUMN IF NOT EXISTS alias_of VARCHAR(255) NOT NULL DEFAULT ''"
        )
    else:
        op.add_column(
            "txcoord_target", sa.Column("alias_of", sa.String(255), nullable=False, server_default="")
        )
