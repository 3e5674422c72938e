"""Errors of the SDK. Facts are attributes; every error says whether the outcome is definite.

``reason`` is a stable code (see ``protocol.reasons``) to program against; the text is for people.

    TxcoordError
     ├─ Rejected                  a clear no; nothing was done, unless `definite` is False
     │   ├─ NoTransaction         there is no current transaction, or it has ended
     │   ├─ NotIdle               the connection or session is already in a transaction
     │   ├─ OverlappingUnits      sessions of an instrumented engine did not end in reverse order
     │   ├─ UnknownResource       no resource of that name, or an engine without a name
     │   ├─ ResourceMismatch      the engine leads to another database than the coordinator's
     │   ├─ ResourceBusy          the connection pool had no room until the deadline
     │   └─ ForkedAfterUse        the process was forked with a live coordinator
     ├─ Refused                   a participant said no
     ├─ Pending                   a participant says: ask me later
     ├─ Aborted                   the transaction was aborted: nothing of it happened
     ├─ AlreadyCommitted          the gid was committed before
     ├─ AlreadyAborted            the gid was aborted before
     ├─ InProgress                the gid is on its way under another tx id
     ├─ OutcomeUnknown            it may have committed: ask again with the gid, or `Coordinator.settle`
     ├─ Heuristic                 someone finished a branch against the decision: a person must look
     └─ Unavailable               the coordinator does not answer; `definite`: the call did nothing
"""

from __future__ import annotations

from collections.abc import Mapping

from .outcome import Outcome
from .protocol import reasons


class TxcoordError(Exception):
    """Base of all errors of the SDK."""

    default_reason = "OTHER"
    default_definite = True

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        definite: bool | None = None,
        tx_id: str = "",
        gid: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        """Stable code to program against."""
        self.definite = self.default_definite if definite is None else definite
        """Is it certain what became of the transaction, or that the call did nothing?"""
        self.tx_id = tx_id
        self.gid = gid
        self.facts = dict(facts or {})
        self.outcome: Outcome | None = None
        """What the coordinator told of the transaction beside its refusal."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class Rejected(TxcoordError):
    """A clear no, before anything was done. Not ``definite``: an earlier try, unanswered, may have done it."""

    default_reason = reasons.BAD_REQUEST


class NoTransaction(Rejected):
    """There is no current transaction: work that needs one is never done without."""

    default_reason = reasons.NO_TRANSACTION


class NotIdle(Rejected):
    """A connection or session given to a transaction must not be in a transaction of its own."""

    default_reason = reasons.NOT_IDLE


class OverlappingUnits(Rejected):
    """Two sessions or connections of an instrumented engine share the branch's connection, and one of them ended
    while a younger one had work that was not ended. The transaction is rollback-only."""

    default_reason = reasons.OVERLAPPING_UNITS


class UnknownResource(Rejected):
    """The database has no name here, or the coordinator does not know the name."""

    default_reason = reasons.UNKNOWN_RESOURCE


class ResourceMismatch(Rejected):
    """Service and coordinator have different databases under the same name."""

    default_reason = reasons.RESOURCE_MISMATCH


class ResourceBusy(Rejected):
    """The connection pool had no room until the deadline."""

    default_reason = reasons.RESOURCE_BUSY


class ForkedAfterUse(Rejected):
    """A gRPC channel does not survive a fork: make or first use the Coordinator in the child."""

    default_reason = reasons.FORKED_AFTER_USE


class Refused(TxcoordError):
    """A participant's business no: the transaction aborts, and nothing is tried again.

    Raised by a participant's code, ``raise Refused("OUT_OF_STOCK", left=0)``, and by ``g.tcc`` and ``g.saga`` where one
    has said it. ``reason`` is the participant's own code.
    """

    default_reason = reasons.BRANCH_REFUSED

    def __init__(self, reason: str = "", message: str = "", **facts: object) -> None:
        super().__init__(
            message or "refused", reason=reason, facts={name: str(value) for name, value in facts.items()}
        )


class Pending(TxcoordError):
    """Raised by a participant's code: not done yet, ask again, after ``retry_after`` seconds if given. What was done in
    its transaction is rolled back."""

    default_reason = reasons.PENDING
    default_definite = False

    def __init__(self, message: str = "not done yet", *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Aborted(TxcoordError):
    """The transaction was aborted: nothing of it happened, and nothing of it will."""

    default_reason = reasons.ROLLED_BACK_BY_CLIENT

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        decided_by: str = "",
        retriable: bool = False,
        tx_id: str = "",
        gid: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, tx_id=tx_id, gid=gid, facts=facts)
        self.decided_by = decided_by
        """``client``, ``deadline``, ``branch``, ``operator``, ``scanner`` or ``database``."""
        self.retriable = retriable
        """No business decision: the same work, run again under a new transaction, may succeed."""


class AlreadyCommitted(TxcoordError):
    """This gid was committed before: its work is done, once. While ``outcome.state`` is COMMITTING, some of it is not
    visible yet."""

    default_reason = reasons.ALREADY_COMMITTED

    def __init__(self, message: str, *, tx_id: str = "", gid: str = "", result: bytes = b"") -> None:
        super().__init__(message, tx_id=tx_id, gid=gid)
        self.result = result
        """What was stored with the commit."""


class AlreadyAborted(TxcoordError):
    """This gid was aborted before. ``reason`` says why; see :attr:`retriable`."""

    default_reason = reasons.ALREADY_ABORTED

    def __init__(
        self, message: str, *, reason: str = "", tx_id: str = "", gid: str = "", retriable: bool = False
    ) -> None:
        super().__init__(message, reason=reason, tx_id=tx_id, gid=gid)
        self.retriable = retriable


class InProgress(TxcoordError):
    """This gid is on its way under another tx id; it is decided at its deadline at the latest."""

    default_reason = reasons.IN_PROGRESS
    default_definite = False

    def __init__(self, message: str, *, tx_id: str = "", gid: str = "", deadline_us: int = 0) -> None:
        super().__init__(message, tx_id=tx_id, gid=gid)
        self.deadline_us = deadline_us
        """By the log's clock, UTC microseconds."""


class OutcomeUnknown(TxcoordError):
    """The transaction may have been committed, or not. To find out: ask with the same gid again, or call
    :meth:`Coordinator.settle`."""

    default_reason = reasons.OUTCOME_UNKNOWN
    default_definite = False

    def __init__(
        self,
        message: str,
        *,
        tx_id: str = "",
        gid: str = "",
        deadline_us: int = 0,
        resources: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, tx_id=tx_id, gid=gid)
        self.deadline_us = deadline_us
        self.resources = resources
        """Where a one-phase commit may have happened."""


class Heuristic(TxcoordError):
    """Someone finished a branch by hand, against the decision: a part of the transaction may be missing, or, of an
    aborted one, be there."""

    default_reason = reasons.HEURISTIC
    default_definite = False


class Unavailable(TxcoordError):
    """The coordinator, or what it needs, does not answer. Not ``definite``: what was asked may have been done."""

    default_reason = reasons.UNAVAILABLE
    default_definite = False

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        definite: bool | None = None,
        retry_after: float = 0.0,
        tx_id: str = "",
        gid: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, definite=definite, tx_id=tx_id, gid=gid, facts=facts)
        self.retry_after = retry_after
        """Seconds."""
