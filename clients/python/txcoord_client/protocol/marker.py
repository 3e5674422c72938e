"""The marker: a row in the participant's own database that answers "did it happen?" for ever.

It is written inside the branch's own transaction. A *tombstone* is a marker put there by someone who wants
the thing never to happen: it takes the key, so the late work fails on it.
"""

from __future__ import annotations

TABLE = "txcoord_marker"
IDENTITY_TABLE = "txcoord_identity"

# state
DONE = 1
TOMBSTONE = 2

# op
XA = "xa"
"""A two-phase branch; the key's branch is the branch's own id."""
ONE = "one"
"""A one-phase branch. Whoever probes for it does not know the branch's number, so the key has a fixed one."""
SQL = "sql"
"""Statements that the coordinator has run once the whole was COMMITTED."""
XA_OPS = (XA, ONE, SQL)
"""The ops of a coordinator's resources. Those of participants (``protocol.barrier``) may be another coordinator's in
the same database, and have rules of their own for how long they are needed."""
ONE_BRANCH = "0"
IDENTITY = "identity"
"""A row that is no transaction's, and stays: what tells a participant's database from another. It is beside the markers
since whoever may write those may write it, and comes along wherever they are copied to."""
IDENTITY_TX_ID = "0" * 32
