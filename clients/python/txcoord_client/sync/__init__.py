"""The synchronous SDK: the same words without ``await``.

from txcoord_client.sync import Coordinator

coord = Coordinator("127.0.0.1:7070", resources={"accounts": accounts, "ledger": ledger})

with coord.begin("transfer", gid="order-42") as g:
    with g.xa(accounts) as db:
        db.execute(debit)
    with g.xa(ledger) as db:
        db.execute(credit)

SQL runs on the caller's thread. The wire to the coordinator is one background thread of the process, made at first
use. Errors and outcomes are those of ``txcoord_client``.
"""

from .._answers import Call, Ended
from .._places import ParticipantAt
from ..access import TLS, Token
from ..errors import (
    Aborted,
    AlreadyAborted,
    AlreadyCommitted,
    ForkedAfterUse,
    Heuristic,
    InProgress,
    NotIdle,
    NoTransaction,
    OutcomeUnknown,
    OverlappingUnits,
    Pending,
    Refused,
    Rejected,
    ResourceBusy,
    ResourceMismatch,
    TxcoordError,
    Unavailable,
    UnknownResource,
)
from ..outcome import Outcome, State
from ..retries import Retry
from ._attached import Attached
from ._block import Scope
from ._local import Local
from ._runs import Run
from .coordinator import Coordinator
from .participant import Participant
from .sagas import Saga, saga
from .transaction import Transaction, XaBlock

__all__ = [
    "TLS",
    "Aborted",
    "AlreadyAborted",
    "AlreadyCommitted",
    "Attached",
    "Call",
    "Coordinator",
    "Ended",
    "ForkedAfterUse",
    "Heuristic",
    "InProgress",
    "Local",
    "NoTransaction",
    "NotIdle",
    "Outcome",
    "OutcomeUnknown",
    "OverlappingUnits",
    "Participant",
    "ParticipantAt",
    "Pending",
    "Refused",
    "Rejected",
    "ResourceBusy",
    "ResourceMismatch",
    "Retry",
    "Run",
    "Saga",
    "Scope",
    "State",
    "Token",
    "Transaction",
    "TxcoordError",
    "Unavailable",
    "UnknownResource",
    "XaBlock",
    "saga",
]
