"""Jobs that retry parked branches."""

from __future__ import annotations

from ..adapters.sql.log import SqlLog
from ..adapters.sql.replays import SqlReplays
from ..api.grpc.replays import query_of
from ..engine.coordinator import Coordinator
from ..engine.replays import Replayer
from ..ports import Failpoints, Spawn


def replayer(coordinator: Coordinator, log: SqlLog, spawn: Spawn, failpoints: Failpoints) -> Replayer:
    """Begins to look for jobs in the log."""
    made = Replayer(coordinator, SqlReplays(log), query_of, spawn=spawn, failpoints=failpoints)
    made.start()
    return made
