"""A node: everything that one coordinator process is made of, built from its settings."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..adapters.embedded import InProcessLeases, SystemClock, SystemRandomness, Tasks
from ..adapters.sql.leases import SqlLeases
from ..adapters.sql.nodes import SqlNodes
from ..adapters.sql.targets import SqlTargets
from ..adapters.xa.checks import Examiner, Expectations
from ..api.grpc.server import GrpcServer
from ..config import Settings, items, microseconds, split_listen
from ..core.backoff import Backoff
from ..engine.carrier import RETRY, EngineSettings
from ..engine.coordinator import Coordinator
from ..engine.due import Carrying
from ..engine.gate import GateSettings
from ..engine.recovery import RecoverySettings
from ..engine.replays import Replayer
from ..observe import logs
from ..ports import Failpoints, Leases, LogUnavailable, ResourceStatus
from .auth import Entrance, may_listen
from .careful import CarefulLeases, CarefulRecovery
from .claim import FileClaim, NameClaim
from .diagnosis import expectations
from .errors import ExitCode, StartError
from .events import Events
from .examiners import examiner
from .fleet import Fleet
from .looking import look
from .metrics import Observed
from .parts import (
    api_settings,
    caller,
    connect,
    failpoints_of_environment,
    finisher,
    log_down,
    log_file,
    must_exist,
    open_log,
    windows,
)
from .queue import choose
from .replays import replayer
from .resources import Resources
from .shared import Shared
from .sql import widths

if TYPE_CHECKING:
    from ..api.http.server import HttpServer

log = logs.get("txcoord.node")

_READY_S = 1.0
_LEAVE_S = 1.0
"""How long what is left may take once nothing of ours is on its way any more."""


class Node:
    """One coordinator, or a worker, which has no API. ``async with Node(settings)`` starts it, and stops it cleanly."""

    def __init__(
        self, settings: Settings, *, failpoints_: Failpoints | None = None, role: str = "coordinator"
    ) -> None:
        self.settings = settings
        self._serves = role != "worker"
        self._running = False
        self.host, self.port = split_listen(settings.listen)
        self.clock = SystemClock()
        self.tasks = Tasks()
        self.log = open_log(settings)
        self.target_rules = SqlTargets(self.log, events=settings.events.enabled)
        self.resources = Resources(
            [finisher(settings, name) for name in settings.resources], self.log, self.clock, self._look_at
        )
        self.targets = settings.called
        self.caller = caller(settings, self.targets, self.resources)
        self.observed = Observed(self.log, self.clock, node=settings.node_name, role=role)
        self.events = Events(settings)
        self.entrance = Entrance(settings)
        self._failpoints = failpoints_ or failpoints_of_environment()
        self.queue = choose(settings, self.clock, self.tasks.spawn)
        self._carrying: Carrying | None = None
        self._opened = False
        self._log_ids: tuple[str, ...] = ()
        file = log_file(settings)
        self._claim = FileClaim(file) if file is not None else None
        self._leases: Leases = InProcessLeases(self.clock.now_us)
        self._name: NameClaim | None = None
        if file is None:
            self._leases = leases = SqlLeases(self.log)
            self._name = NameClaim(leases, settings.node_name, settings.recovery.lease.total_seconds())
        self._shared: Shared | None = None
        self._recovery: CarefulRecovery | None = None
        self._careful: CarefulLeases | None = None
        self._fleet = Fleet(
            SqlNodes(self.log),
            settings.node_name,
            role,
            lease_s=settings.recovery.lease.total_seconds(),
            live=lambda: len(self.coordinator.live),
            clock_offset_us=lambda: self.clock.ahead_us,
            drain=self._drained,
        )
        self._is_ready = True
        self._joined = False
        self._replayer: Replayer | None = None
        self._server: GrpcServer | None = None
        self._http: HttpServer | None = None
        self.http_host, self.http_port = (
            split_listen(settings.http_address) if settings.http_address else ("", 0)
        )
        self.metrics_address = settings.metrics_address
        self._coordinator: Coordinator | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self.host}:{self.port}"

    @property
    def http_url(self) -> str:
        """Where the HTTP API is; empty when there is none."""
        scheme = "http" if self.entrance.tls is None else "https"
        return f"{scheme}://{self.http_host}:{self.http_port}" if self.http_host else ""

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator of a node that was started."""
        assert self._coordinator is not None
        return self._coordinator

    def _look_at(self, name: str) -> tuple[Examiner, Expectations]:
        return examiner(name, self.settings.resources[name]), expectations(name, self.settings, self._log_ids)

    def statuses(self) -> list[ResourceStatus]:
        """The resources as this node sees them."""
        return self.resources.statuses()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ---- start ----

    async def start(self) -> None:
        """Start. Raises StartError; then nothing is left running."""
        try:
            await self._start()
        except BaseException as error:
            await self.abandon()
            if isinstance(error, LogUnavailable):
                raise log_down(error) from error
            raise

    async def _start(self) -> None:
        try:
            self.caller.check()
        except (OSError, ValueError) as error:
            raise StartError(
                ExitCode.CONFIG, "BAD_CREDENTIALS", f"what participants are shown cannot be used: {error}"
            ) from error
        if self._serves:
            self.entrance.load()
            may_listen(self.host, self.port)
        if self._serves and self.http_host:
            may_listen(self.http_host, self.http_port, "--http-address")
        if self.metrics_address:
            may_listen(*split_listen(self.metrics_address), "TXCOORD_METRICS_ADDRESS")
        must_exist(self.settings)
        if self._claim is not None:
            self._claim.take()
        identity = await connect(self.log, self.settings)
        self._opened = True
        self._log_ids = (identity.log_id, *identity.earlier_log_ids)
        if self._name is not None:
            await self._name.take()
            self.tasks.spawn(self._name.keep(), "name")
        self.clock.observe(await self.log.now_us())
        await self.resources.look_first()
        s = self.settings
        self._shared = shared = Shared(s, identity.log_id, now_us=self.clock.now_us, spawn=self.tasks.spawn)
        self._leases = shared.leases(self._leases)
        coordinator = Coordinator(
            self.log,
            self.resources.by_name,
            settings=EngineSettings(
                node=s.node_name,
                windows=windows(s),
                lease_us=microseconds(s.recovery.lease),
                hold_us=microseconds(s.recovery.hold),
                call_alone=widths(s),
                shared=self._claim is None,
                overdue_us=self.queue.overdue_us,
                overdue_share=self.queue.overdue_share,
                overdue_most_us=self.queue.overdue_most_us,
                events=s.events.enabled,
                dead_letters=s.events.dead_letters or s.events.enabled,
                disable_after_us=microseconds(s.targets.disable_after),
                gate=GateSettings(longest_us=microseconds(s.backoff.cap), drain_per_s=s.targets.drain_rate),
                backoff=Backoff(
                    first_us=microseconds(s.backoff.first),
                    factor=s.backoff.factor,
                    cap_us=microseconds(s.backoff.cap),
                ),
                retry=replace(
                    RETRY,
                    first_us=microseconds(s.backoff.first),
                    factor=s.backoff.factor,
                    cap_us=microseconds(s.backoff.cap),
                ),
            ),
            clock=self.clock,
            randomness=SystemRandomness(),
            spawn=self.tasks.spawn,
            failpoints=self._failpoints,
            caller=self.caller,
            answerer=self.caller,
            queue=self.queue.queue,
            metrics=self.observed.metrics,
            wakeups=shared.wakeups,
            shared_gate=shared.gate,
        )
        self.observed.watch(
            coordinator, self.queue.queue, identity.log_id, drained=lambda: self._fleet.draining
        )
        self.observed.watch_services(shared.up, self.queue.up, self.events.up)
        self.caller.registry = shared.registry
        self.targets.is_registered = shared.registry.is_known
        shared.start()
        self.caller.knows_log(identity.log_id)
        coordinator.identity = identity
        self._coordinator = coordinator
        tolerance_us = microseconds(s.node.clock_tolerance)
        self._careful = CarefulLeases(self._leases, self.clock, tolerance_us)
        recovery = CarefulRecovery(
            coordinator,
            leases=self._careful,
            settings=RecoverySettings(
                scan_s=s.recovery.scan_interval.total_seconds(),
                takeover_s=min(1.0, s.recovery.lease.total_seconds() / 4),
                deadline_max_us=microseconds(s.deadline.max),
            ),
            spawn=self.tasks.spawn,
            failpoints=self._failpoints,
            targets=self.target_rules,
        )
        recovery.watch_clock(self.clock, tolerance_us)
        self._recovery = recovery
        self.observed.watch_deadlines(recovery.deadlines)
        await recovery.start()
        self._carrying = Carrying(coordinator, failpoints=self._failpoints)
        await self.queue.queue.start(self._carrying.carry)
        for resource in self.resources.by_name.values():
            self.tasks.spawn(self.resources.watch(resource), f"resource:{resource.name}")
        self.events.start(coordinator, self.log, self.tasks.spawn, shared=self._claim is None)
        self._running = True
        if self._serves:
            await self._serve(coordinator, recovery)
        self.tasks.spawn(self.observed.keep_lately(), "lately")
        if self.metrics_address:
            self.metrics_address = await self.observed.start(self.metrics_address, self.tasks.spawn)
        self.tasks.spawn(self._keep_ready(self._server, self._http), "readiness")
        await self._fleet.join(self.address if self._serves else "")
        self._joined = True
        self.tasks.spawn(self._fleet.keep(), "fleet")
        more = {"address": self.address} if self._serves else {}
        if self._http is not None:
            more["http"] = self.http_url
        event = "node.started" if self._serves else "worker.started"
        log.info(event, node=s.node_name, log_id=identity.log_id, pid=os.getpid(), **more)

    async def _serve(self, coordinator: Coordinator, recovery: CarefulRecovery) -> None:
        """Take requests. Raises StartError."""
        s = self.settings
        self._replayer = replayer(coordinator, self.log, self.tasks.spawn, self._failpoints)
        tokens, tls = self.entrance.tokens, self.entrance.tls
        api = api_settings(s, self.targets)
        server = GrpcServer(
            coordinator,
            recovery,
            api,
            resources=self.statuses,
            targets=self.target_rules,
            tokens=tokens,
            tls=tls,
            fleet=self._fleet,
            replayer=self._replayer,
            registry=self._shared.registry if self._shared is not None else None,
            look=partial(look, settings=s, log=self.log, log_ids=self._log_ids),
        )
        http: HttpServer | None = None
        try:
            self.port = await server.start(self.host, self.port)
            self._server = server
            if self.http_host:
                from ..api.http.server import HttpServer, HttpSettings

                most = s.limits.http_connections
                how = HttpSettings(api.limits, hosts=items(s.http_hosts), connections=most)
                http = HttpServer(server.operations, how, now_us=self.clock.now_us, tokens=tokens, tls=tls)
                self.http_port = await http.start(self.http_host, self.http_port)
        except OSError as error:
            raise StartError(ExitCode.UNAVAILABLE, "ADDRESS_IN_USE", str(error)) from error
        self._http = http
        self.tasks.spawn(self.entrance.keep(), "entrance")

    async def lost(self) -> StartError:
        """Waits until this node must end by itself, for ever if need be; answers why."""
        if self._name is None:
            await asyncio.get_running_loop().create_future()
            raise AssertionError("nobody ends that")
        await self._name.lost.wait()
        return self._name.why_lost()

    async def _drained(self, draining: bool) -> None:
        """An operator has said whether this node is to take new work."""
        assert self._careful is not None
        assert self._recovery is not None
        assert self._carrying is not None
        self._careful.wanted = self._recovery.wanted = not draining
        self._carrying.hold(draining)
        self.queue.queue.hold(draining)
        if self._server is not None:
            self._server.take_work(not draining)
            await self._server.ready(not draining and self._is_ready)
        if self._http is not None:
            self._http.front.takes_work = not draining
        if draining:
            for duty in self._duties():
                await self._leases.release(duty, self.settings.node_name)

    def _duties(self) -> list[str]:
        names = self.resources.by_name
        return ["prune", *(f"{what}:{name}" for what in ("scan", "prune") for name in names)]

    async def _keep_ready(self, server: GrpcServer | None, http: HttpServer | None) -> None:
        """Ready means: the log answers. Asking it also keeps the clock right while nothing is written."""
        ready = True

        async def say(yes: bool) -> None:
            self._is_ready = yes
            if server is not None:
                await server.ready(yes and not self._fleet.draining)
            if http is not None:
                http.ready(yes)

        while True:
            await asyncio.sleep(_READY_S)
            try:
                self.clock.observe(await self.log.now_us())
            except LogUnavailable as error:
                if ready:
                    log.error("node.not_ready", reason=str(error))
                    await say(False)
                ready = False
                continue
            if not ready:
                log.info("node.ready_again")
                await say(True)
                ready = True

    # ---- stop ----

    async def stop(self) -> None:
        """Stop taking, carry out what is live (to a limit), hand the rest over, flush, leave."""
        if not self._running:
            await self.abandon()
            return
        self._running = False
        loop = asyncio.get_running_loop()
        limit_s = self.settings.node.drain_timeout.total_seconds()
        until = loop.time() + limit_s
        log.info("node.draining", live=len(self.coordinator.live))
        if self._carrying is not None:
            self._carrying.leave()
        await self._close_servers(limit_s)
        while self._going_on() and loop.time() < until:  # noqa: ASYNC110 - also ends when a retry is far off
            await asyncio.sleep(0.01)
        await self.queue.queue.stop()
        await self.events.stop()
        await self._hand_over()
        await self.abandon()
        log.info("node.stopped")

    def _going_on(self) -> bool:
        """Is anything live that may still end by itself before we leave?"""
        soon_us = self.clock.now_us() + int(_LEAVE_S * 1_000_000)
        return any(
            not live.tx.shown_parked and any(b.next_attempt_us <= soon_us for b in live.tx.branches)
            for live in self.coordinator.live
        )

    async def _hand_over(self) -> None:
        """What is left is free for other nodes now, not only when its lease has run out."""
        left = [live.tx.tx_id for live in self.coordinator.live if live.logged]
        node = self.settings.node_name
        self._recovery_stop()
        try:
            async with asyncio.timeout(_LEAVE_S):
                if left:
                    log.warning("node.left_to_others", rows=len(left))
                    await self.log.settle()  # What is written later would bring a lease with it.
                    await self.log.renew(node, left, 0)
                for duty in self._duties():
                    await self._leases.release(duty, node)
        except (LogUnavailable, TimeoutError) as error:
            log.warning("log.unavailable", duty="hand_over", reason=str(error))

    async def _close_servers(self, grace_s: float) -> None:
        server, self._server = self._server, None
        http, self._http = self._http, None
        if http is not None:
            http.drain()
        await asyncio.gather(*(one.stop(grace_s) for one in (server, http) if one is not None))

    def _recovery_stop(self) -> None:
        if self._recovery is not None:
            self._recovery.stop()
        if self._replayer is not None:
            self._replayer.stop()
        if self._coordinator is not None:
            self._coordinator.phase_two.stop()
            self._coordinator.calls.stop()

    async def abandon(self) -> None:
        """End everything now; what is lazy is still flushed."""
        self._running = False
        self._recovery_stop()
        await self._close_servers(0)
        await self.queue.queue.stop()
        await self.observed.stop()
        if self._shared is not None:
            self._shared.stop()
        await self.events.stop()
        await self.tasks.stop()
        if self._shared is not None:
            await self._shared.close()
        await self.resources.close()
        await self.caller.close()
        if self._opened:
            self._opened = False
            with contextlib.suppress(LogUnavailable, TimeoutError):
                async with asyncio.timeout(_LEAVE_S):
                    if self._joined:
                        await self._fleet.leave()
                    if self._name is not None:
                        await self.log.settle()  # Whoever is called so next must find it written.
                        await self._name.release()
            with contextlib.suppress(LogUnavailable):
                await self.log.close()
        if self._claim is not None:
            self._claim.release()
