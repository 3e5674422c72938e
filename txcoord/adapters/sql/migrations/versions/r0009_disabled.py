"""Targets that are disabled since nothing has arrived at them for long.

On MariaDB each statement can be repeated: see the first revision.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_MARIADB = "mysql"


def upgrade() -> None:
    for name in ("disabled_us", "failing_since_us"):
        if op.get_bind().dialect.name == _MARIADB:
            op.execute(
                f"ALTER TABLE txcoord_target ADD COLUMN IF NOT EXISTS {name} BIGINT NOT NULL DEFAULT 0"
            )
        else:
            op.add_column(
                "txcoord_target", sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
            )
