"""What an error reply of a database means for a branch, whatever the database."""

from __future__ import annotations

from enum import Enum


class Reply(Enum):
    """What an error reply means."""

    UNKNOWN_XID = "unknown_xid"
    """No such prepared transaction: committed earlier, rolled back by hand, not there yet, or (MariaDB) its
    session still lives. Proves nothing."""
    BUSY = "busy"
    """Another session is finishing it: retry."""
    REFUSED = "refused"
    """Rights or another database: someone must mend the configuration; retried."""
    DUPLICATE = "duplicate"
    DUPLICATE_XID = "duplicate_xid"
    """A branch of that name is open or prepared already."""
    LOCK_TIMEOUT = "lock_timeout"
    TOO_LATE = "too_late"
    ROLLED_BACK = "rolled_back"
    """Deadlock, serialization failure: the transaction is gone; it may be tried again."""
    GUARD = "guard"
    """Someone ended the branch's transaction behind the SDK's back, or tried to."""
    NOT_IDLE = "not_idle"
    """The session is inside a transaction already."""
    NOT_POSSIBLE = "not_possible"
    """This transaction cannot be prepared (temporary tables, LISTEN, a cursor WITH HOLD)."""
    NO_TABLE = "no_table"
    """The marker table is missing."""
    NO_SESSION = "no_session"
    """There is no session of that id."""
    PREPARE_DISABLED = "prepare_disabled"
    PREPARE_FULL = "prepare_full"
    UNREACHABLE = "unreachable"
    """Connection or server trouble: the outcome of the statement is unknown."""
    OTHER = "other"
