"""The few interfaces that the engine needs. Adapters implement them; each has one contract suite.

No implementation here, and nothing but the core is imported.
"""

from .calling import Caller, CallRequest, Due, Queue
from .fleet import Leases, NodeOrder, Nodes, NodeStatus, Registry, SharedGate, SharedLost, Wakeups
from .log import (
    Backlog,
    DeliveryQuery,
    Figures,
    Log,
    LogIdentity,
    LogUnavailable,
    Query,
    SchemaMismatch,
    Turn,
)
from .operators import Replays, TargetRules
from .process import Clock, Failpoints, Randomness, Spawn, Task
from .resources import (
    Answerer,
    Finished,
    Finisher,
    FinishResult,
    NotAnswered,
    PreparedBranch,
    Probed,
    ResourceStatus,
    ResourceTrouble,
)

__all__ = [
    "Answerer",
    "Backlog",
    "CallRequest",
    "Caller",
    "Clock",
    "DeliveryQuery",
    "Due",
    "Failpoints",
    "Figures",
    "FinishResult",
    "Finished",
    "Finisher",
    "Leases",
    "Log",
    "LogIdentity",
    "LogUnavailable",
    "NodeOrder",
    "NodeStatus",
    "Nodes",
    "NotAnswered",
    "PreparedBranch",
    "Probed",
    "Query",
    "Queue",
    "Randomness",
    "Registry",
    "Replays",
    "ResourceStatus",
    "ResourceTrouble",
    "SchemaMismatch",
    "SharedGate",
    "SharedLost",
    "Spawn",
    "TargetRules",
    "Task",
    "Turn",
    "Wakeups",
]
