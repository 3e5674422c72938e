"""Where the code under test would reach the machine: clock, randomness, drivers, channel, logs.

Everything is put back in the end. Nothing of what the code decides is changed here; planted bugs are in ``bugs``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncmy
import asyncpg
import grpc
import structlog

import txcoord.adapters.sql.log as sql_log
import txcoord.adapters.sql.sqlite as sql_sqlite
import txcoord.adapters.xa.mariadb_holder as maria_holder
import txcoord_client._block as sdk_block
import txcoord_client._runs as sdk_runs
import txcoord_client._wire as sdk_wire
import txcoord_client.coordinator as sdk_coordinator

from . import drivers, wire
from .loop import PROCESS, Process

if TYPE_CHECKING:
    from .world import World


class _Draws:
    """``random`` and ``secrets`` of one module."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.random = rng.random
        self.uniform = rng.uniform
        self.randbits = rng.getrandbits
        self.choice = rng.choice
        self.shuffle = rng.shuffle
        self.randrange = rng.randrange
        self.sample = rng.sample


class _Time:
    def __init__(self, world: World) -> None:
        self.monotonic = world.loop.time


def _here() -> Process:
    process = PROCESS.get()
    assert process is not None
    return process


@contextmanager
def applied(world: World) -> Iterator[None]:
    """The world's, for as long as it runs."""

    def connect_pg(dsn: str, **_: Any) -> Any:
        return drivers._connected_pg(world, _here(), world.databases[_host(dsn)])

    def connect_my(*, host: str, **_: Any) -> Any:
        return drivers.connected_my(world, _here(), world.databases[host])

    def channel(target: str, *_: Any, **__: Any) -> Any:
        return wire.Channel(world, _here(), target)

    def clock() -> Any:
        return real_clock(world.loop.time)

    real_clock = sdk_wire.LogClock
    put: list[tuple[Any, str, Any]] = [
        (asyncpg, "connect", connect_pg),
        (asyncmy, "connect", connect_my),
        (grpc.aio, "insecure_channel", channel),
        (sdk_wire, "LogClock", clock),
        (sdk_wire, "random", _Draws(world.rng("sdk wire"))),
        (sdk_block, "secrets", _Draws(world.rng("sdk block"))),
        (sdk_runs, "secrets", _Draws(world.rng("sdk runs"))),
        (sdk_coordinator, "random", _Draws(world.rng("sdk"))),
        (sql_log, "secrets", _Draws(world.rng("log"))),
        (sql_sqlite, "now_us", world.log.now_us),
        (maria_holder, "time", _Time(world)),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in put]
    structlog_before = structlog.get_config()
    disabled = logging.root.manager.disable
    collect = gc.isenabled()
    for where, name, value in put:
        setattr(where, name, value)
    structlog.configure(
        processors=[partial(_logged, world)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        cache_logger_on_first_use=False,
    )
    logging.disable(logging.CRITICAL)
    gc.disable()
    asyncio._set_running_loop(world.loop)
    try:
        yield
    finally:
        asyncio._set_running_loop(None)
        if collect:
            gc.enable()
        logging.disable(disabled)
        structlog.configure(**structlog_before)
        for where, name, value in before:
            setattr(where, name, value)


def _host(dsn: str) -> str:
    return dsn.split("@", 1)[1].split("/", 1)[0]


def _logged(world: World, _: Any, method: str, facts: Any) -> Any:
    name = facts.pop("event")
    if facts.get("exc_info") is True:
        import sys

        facts["exc_info"] = sys.exc_info()[1]
    world.checker.event(name, facts)
    raise structlog.DropEvent


def settle(future: asyncio.Future[Any], result: Any) -> None:
    """Answer whoever waits."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
