"""Branches with a participant: what it is called with, and plans that are carried out before they are decided.

On MariaDB each statement can be repeated: see the revision before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_MARIADB = "mysql"
# A plan that runs is carried out by a node, which sees to its deadline too.
_UNDECIDED = "decision IS NULL AND state <> 'running'"
_CARRIED_OUT = "(decision IS NOT NULL OR state = 'running') AND ended_us = 0 AND NOT at_rest"
_WITH_DETAIL = "ended_us > 0 AND NOT detail_pruned"
_BARE = "detail_pruned"


def upgrade() -> None:
    if op.get_bind().dialect.name == _MARIADB:
        _on_mariadb()
        return
    op.add_column("txcoord_branch", sa.Column("action", sa.String(), nullable=False, server_default=""))
    for name, where, column in (
        ("txcoord_tx_undecided", _UNDECIDED, "deadline_us"),
        ("txcoord_tx_phase_two", _CARRIED_OUT, "lease_until_us"),
    ):
        op.drop_index(name, "txcoord_tx")
        condition = sa.text(where)
        op.create_index(name, "txcoord_tx", [column], postgresql_where=condition, sqlite_where=condition)


def _on_mariadb() -> None:
    text = mysql.MEDIUMTEXT().compile(dialect=op.get_bind().dialect)
    op.execute(f"ALTER TABLE txcoord_branch ADD COLUMN IF NOT EXISTS action {text} NOT NULL DEFAULT ''")
    part = (
        f"CASE WHEN {_UNDECIDED} THEN 1 WHEN {_BARE} THEN 4 WHEN {_WITH_DETAIL} THEN 3 WHEN {_CARRIED_OUT} THEN 2"
        " ELSE 0 END"
    )
    due = (
        f"CASE WHEN {_UNDECIDED} OR {_BARE} THEN deadline_us WHEN {_WITH_DETAIL} THEN ended_us"
        f" WHEN {_CARRIED_OUT} THEN lease_until_us ELSE 0 END"
    )
    op.execute(
        f"ALTER TABLE txcoord_tx MODIFY COLUMN part TINYINT GENERATED ALWAYS AS ({part}) STORED,"
        f" MODIFY COLUMN due_us BIGINT GENERATED ALWAYS AS ({due}) STORED"
    )
