"""The contenders in threads: the synchronous SDK, and the same by hand with the same drivers."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from sqlalchemy import Connection, Engine, create_engine

from txcoord_client.sync import Coordinator

from .match import ACCOUNTS, BARE, UPDATE, XA, Match, Row, Turn

Once = Callable[[int], None]


def compare(
    urls: Sequence[str], names: Sequence[str], address: str, callers: int, seconds: float
) -> list[Row]:
    """``callers`` at once, for ``seconds`` each contender."""
    with ExitStack() as stack:
        engines: list[Engine] = []
        for url in urls:
            # One more than callers: the SDK keeps one connection of each pool free.
            engines.append(create_engine(url, pool_size=callers + 1, max_overflow=0))
            stack.callback(engines[-1].dispose)
        resources = dict(zip(names, engines, strict=True))
        coord = stack.enter_context(Coordinator(address, resources=resources))
        bench = _Bench(engines, coord)
        once = {XA: bench.txcoord, BARE: bench.bare}
        match = Match(seconds)
        for turn in match.turns():
            _measure(once[turn.kind], callers, turn)
        return match.rows(callers)


class _Bench:
    """The two contenders on the same databases."""

    def __init__(self, engines: Sequence[Engine], coord: Coordinator) -> None:
        self._first, self._second = engines
        self._coord = coord
        self._numbers = itertools.count()
        self._run = f"bare{os.getpid()}"

    def txcoord(self, number: int) -> None:
        """One global transaction over both databases."""
        with self._coord.begin("bench") as g:
            with g.xa(self._first) as db:
                db.execute(UPDATE, {"cents": -1, "id": number % ACCOUNTS})
            with g.xa(self._second) as db:
                db.execute(UPDATE, {"cents": 1, "id": number % ACCOUNTS})

    def bare(self, number: int) -> None:
        """The same by hand: one after the other, as a thread does it."""
        gid = f"{self._run}-{next(self._numbers)}"
        with self._first.connect() as one, self._second.connect() as other:
            first, second = _branch(one, gid), _branch(other, gid)
            first.begin()
            one.execute(UPDATE, {"cents": -1, "id": number % ACCOUNTS})
            second.begin()
            other.execute(UPDATE, {"cents": 1, "id": number % ACCOUNTS})
            for branch in (first, second):
                branch.prepare()
            for branch in (first, second):
                branch.commit()


def _measure(once: Once, callers: int, turn: Turn) -> None:
    clock = time.perf_counter
    begun = clock()
    until = begun + turn.seconds
    numbers = itertools.count(turn.seed)

    def caller() -> None:
        while True:
            start = clock()
            if start >= until:
                return
            try:
                once(next(numbers) * 7919)
            except Exception as error:
                turn.sample.failed(error)
                continue
            turn.sample.durations.append(clock() - start)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turn.sample.seconds += clock() - begun


class _Psycopg:
    def __init__(self, connection: Connection, gid: str) -> None:
        self._driver: Any = connection.connection.driver_connection
        self._gid = gid

    def begin(self) -> None:
        self._driver.tpc_begin(self._gid)

    def prepare(self) -> None:
        self._driver.tpc_prepare()

    def commit(self) -> None:
        self._driver.tpc_commit()


class _MySQL:
    def __init__(self, connection: Connection, gid: str) -> None:
        self._connection = connection
        self._gid = gid

    def begin(self) -> None:
        self._connection.exec_driver_sql(f"XA START '{self._gid}'")

    def prepare(self) -> None:
        self._connection.exec_driver_sql(f"XA END '{self._gid}'")
        self._connection.exec_driver_sql(f"XA PREPARE '{self._gid}'")

    def commit(self) -> None:
        self._connection.exec_driver_sql(f"XA COMMIT '{self._gid}'")


def _branch(connection: Connection, gid: str) -> _Psycopg | _MySQL:
    return (_Psycopg if connection.dialect.driver == "psycopg" else _MySQL)(connection, gid)
