"""Python SDK of txcoord: global transactions across databases and services.

from txcoord_client import Coordinator

coord = Coordinator("127.0.0.1:7070", resources={"accounts": accounts, "ledger": ledger})

async with coord.begin("transfer", gid="order-42") as g:
    async with g.xa(accounts) as db:
        await db.execute(debit)
    async with g.xa(ledger) as db:
        await db.execute(credit)
"""

from ._answers import Call, Ended
from ._attached import Attached
from ._block import Scope
from ._delivered import Delivered
from ._local import Local
from ._places import ParticipantAt
from ._runs import Run
from ._version import __version__
from .access import TLS, Token
from .coordinator import Coordinator
from .errors import (
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
from .interceptors import ClientInterceptor, ServerInterceptor
from .outcome import Outcome, State
from .participant import Participant
from .retries import Retry
from .sagas import Saga, saga
from .transaction import Transaction, XaBlock
from .webhooks import CloudEvent

__all__ = [
    "TLS",
    "Aborted",
    "AlreadyAborted",
    "AlreadyCommitted",
    "Attached",
    "Call",
    "ClientInterceptor",
    "CloudEvent",
    "Coordinator",
    "Delivered",
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
    "ServerInterceptor",
    "State",
    "Token",
    "Transaction",
    "TxcoordError",
    "Unavailable",
    "UnknownResource",
    "XaBlock",
    "__version__",
    "saga",
]
