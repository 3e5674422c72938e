"""Where the figures of a node come from, and where they are served."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from ..adapters.sql.log import SqlLog
from ..config import split_listen
from ..engine.coordinator import Coordinator
from ..engine.deadlines import Deadlines
from ..observe import logs, metrics
from ..observe.lately import EVERY_S
from ..observe.metrics import Metrics
from ..ports import Clock, LogUnavailable, Queue, Spawn
from .errors import ExitCode, StartError

if TYPE_CHECKING:
    from ..api.http.metrics import MetricsServer

log = logs.get("txcoord.metrics")

_EVERY_S = 5.0
"""Between two times that the log is asked."""


class Observed:
    """The metrics of one node. Nothing is asked of the log, and nothing listens, until it is started."""

    def __init__(self, log_: SqlLog, clock: Clock, *, node: str, role: str) -> None:
        self.metrics = Metrics()
        self.metrics.now_us = clock.now_us
        self._log = log_
        self._node, self._role = node, role
        self._server: MetricsServer | None = None
        log_.on_flush = self.metrics.flushed

    def watch(self, coordinator: Coordinator, queue: Queue, log_id: str, drained: Callable[[], bool]) -> None:
        """Where this node's own figures are."""
        self.metrics.info = (self._node, version("txcoord"), log_id, self._role)
        self.metrics.gauges |= {
            metrics.DRAINED: lambda: {(): int(drained())},
            metrics.LIVE: lambda: {(): len(coordinator.live)},
            metrics.ALARMS: lambda: {(kind,): count for kind, count in coordinator.alarms.items()},
            metrics.DISABLED: lambda: {(target,): 1 for target in coordinator.gate.all_disabled()},
            metrics.QUEUE: lambda: {(tier,): count for tier, count in queue.depth().items()},
            metrics.WAITING: lambda: {(what,): count for what, count in _waiting(coordinator).items()},
        }

    def watch_services(
        self, redis: Callable[[], Mapping[tuple[str, ...], float]], *kafka: Callable[[], Mapping[str, bool]]
    ) -> None:
        """Whether what this node uses beside its log is there."""
        self.metrics.gauges[metrics.REDIS_UP] = redis
        self.metrics.gauges[metrics.KAFKA_UP] = lambda: {
            (part,): int(well) for look in kafka for part, well in look().items()
        }

    def watch_deadlines(self, deadlines: Deadlines) -> None:
        """Who is asked what became of local transactions."""
        self.metrics.gauges[metrics.ASKED] = lambda: {
            (name,): count for name, count in Counter(deadlines.asking).most_common(metrics.MOST)
        }

    async def start(self, address: str, spawn: Spawn) -> str:
        """Listen; answers the address with its port. Raises StartError when it cannot be bound."""
        from ..api.http.metrics import MetricsServer

        host, port = split_listen(address)
        self._server = MetricsServer(self.metrics.render)
        try:
            port = await self._server.start(host, port)
        except OSError as error:
            raise StartError(ExitCode.UNAVAILABLE, "ADDRESS_IN_USE", str(error)) from error
        spawn(self._keep_asking(), "metrics")
        return f"{host}:{port}"

    async def stop(self) -> None:
        """Listen no longer."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    async def ask(self) -> None:
        """Ask the log, once. Never raises."""
        try:
            backlog = await self._log.backlog()
            self.metrics.figures = await self._log.figures()
        except LogUnavailable:
            self.metrics.figures = None
        except Exception:
            log.exception("metrics.not_asked")
            self.metrics.figures = None
        else:
            self.metrics.backlog = {target: (b.count, b.oldest_due_us) for target, b in backlog.items()}

    async def keep_lately(self) -> None:
        """Let what is said of the last minute be of the last minute, for ever."""
        while True:
            self.metrics.lately.move(time.monotonic())
            await asyncio.sleep(EVERY_S)

    async def _keep_asking(self) -> None:
        """Now and then, for ever: whoever reads the figures must not wait for the log."""
        while True:
            await self.ask()
            await asyncio.sleep(_EVERY_S)


def _waiting(coordinator: Coordinator) -> Mapping[str, int]:
    return {
        "due": sum(coordinator.calls.depth().values()),
        "later": coordinator.calls.later,
        "finish": sum(coordinator.phase_two.depth().values()),
        "finish_later": coordinator.phase_two.later,
    }


__all__ = ["Observed"]
