"""The durable log on an SQL database, with group commit."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from txcoord_client.protocol.identifiers import is_tx_id

from ...coalesce import Gate
from ...core.model import Audit, Branch, Change, ChangeKind, HistoryEntry, Tx, Windows, WriteResult, Written
from ...observe import logs
from ...ports import Backlog, DeliveryQuery, Figures, LogIdentity, LogUnavailable, Query, Turn
from . import figures, mapping, reading, schema, turns, upkeep, waiting
from .batch import Flushed, Item, Round, halves, rounds_of
from .outage import Outage
from .sqlite import SqliteStore, path_of
from .store import FlushRefused, ReplyLost, Store, T, Work, parse_url

log = logs.get("txcoord.log")

_DAY_US = 86_400_000_000
_TRIES = 3
_PATIENCE_S = 0.5
"""Between tries to write what is lazy while the database is away."""


_READING, _WRITING = "reading", "writing"
_Read = tuple[Sequence[str], asyncio.Future[dict[str, Tx]]]


def store_for(url: str, *, statement_timeout_s: float = 10.0, pool_size: int = 4) -> Store:
    """The store for a URL's dialect. Raises ValueError. Drivers are slow to import: only the one that is used is."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return SqliteStore(parsed, statement_timeout_s=statement_timeout_s)
    if parsed.get_backend_name() == "mysql":
        from .mariadb import MariaDBStore

        return MariaDBStore(parsed, statement_timeout_s=statement_timeout_s, pool_size=pool_size)
    from .postgresql import PostgresStore

    return PostgresStore(parsed, statement_timeout_s=statement_timeout_s, pool_size=pool_size)


class SqlLog:
    """``ports.Log``. A change that the database itself refuses (its content cannot be stored) raises ValueError."""

    def __init__(
        self,
        url: str,
        *,
        windows: Windows,
        detail_retention_us: int = 7 * _DAY_US,
        tick_s: float = 0.02,
        statement_timeout_s: float = 10.0,
        pool_size: int = 4,
    ) -> None:
        self.forced_flushes = 0
        self.lazy_flushes = 0
        self.store = store_for(url, statement_timeout_s=statement_timeout_s, pool_size=pool_size)
        self.gate: Gate[Item] = Gate(self._flush, tick=self._tick)
        self._reads: Gate[_Read] = Gate(self._read_together, tick=self._tick)
        self._in_memory = parse_url(url).get_backend_name() == "sqlite" and path_of(parse_url(url)) is None
        self._windows = windows
        self._detail_retention_us = detail_retention_us
        self._tick_s = tick_s
        self._outage = Outage(lambda: asyncio.get_running_loop().time())
        self.on_flush: Callable[[bool, float], None] | None = None
        """Hears of each flush: was it forced, and how long did it take, in seconds?"""
        self._open = False
        self._waiting: set[asyncio.Future[Any]] = set()
        # Two processes may write about one transaction in one microsecond: each counts from elsewhere.
        self._ordinals = itertools.count(secrets.randbits(46) << 16, 1 << 8)

    # ---- its life ----

    async def open(self) -> LogIdentity:
        """Connect and check the schema."""
        await self.store.open()
        try:
            if self._in_memory:
                from .migrate import upgrade

                await self.store.changing(upgrade)
            await self.store.reading(schema.check)
            identity = await self.store.reading(reading.identity)
        except BaseException:
            await self.store.close()
            raise
        self.store.expect(identity)
        self._open = True
        return identity

    async def close(self) -> None:
        """Flush what is lazy, then disconnect."""
        left = await self.gate.close() if self._open else []
        self._open = False
        self._reads.abandon()
        if left:
            log.warning("log.lazy_lost", count=len(left), reason="the log is away; recovery repeats them")
        self._fail_waiting("the log is closed")
        await self.store.close()

    def abandon(self) -> None:
        """Drop everything at once, as a crash would. Who waits for a write hears that its fate is unknown."""
        self._open = False
        self.gate.abandon()
        self._reads.abandon()
        self.store.abandon()
        self._fail_waiting("the log was abandoned")

    def _fail_waiting(self, why: str) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(LogUnavailable(why))

    # ---- writing ----

    async def write(self, change: Change) -> WriteResult:
        """Write one change with the next flush."""
        if not self._open:
            raise LogUnavailable("the log is not open")
        future: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        self.gate.add(Item(change, next(self._ordinals), future), urgent=change.forced or change.soon)
        try:
            return await future
        finally:
            self._waiting.discard(future)

    def write_lazily(self, change: Change, done: Callable[[WriteResult], None] | None = None) -> None:
        """Write it with some later flush."""
        if self._open:
            self.gate.add(Item(change, next(self._ordinals), done=done), urgent=False)

    async def settle(self) -> None:
        """Write what waits lazily now."""
        if not await self.gate.settle():
            raise LogUnavailable("what waits cannot be written now")

    async def flushes(self) -> tuple[int, int]:
        """Forced flushes, and lazy-only ones."""
        return self.forced_flushes, self.lazy_flushes

    async def _tick(self) -> None:
        await asyncio.sleep(_PATIENCE_S if self._outage.fails(_WRITING) else self._tick_s)

    async def _flush(self, items: list[Item], urgent: bool) -> list[Item]:
        """The gate's flush: answers every item, gives back the lazy ones that could not be written."""
        try:
            doubtful = any(i.doubtful for i in items)
            flushed = await (self._resolve(items) if doubtful else self._write(items))
        except FlushRefused as refused:
            return await self._find_bad(items, urgent, refused)
        except LogUnavailable as error:
            return self._could_not(items, error)
        except Exception as error:
            log.exception("log.flush_failed")
            return self._could_not(items, LogUnavailable(f"{type(error).__name__}: {error}"))
        for item in items:
            _answer(item, flushed[item])
        return []

    async def _write(self, items: list[Item]) -> Flushed:
        relaxed = not any(i.forced for i in items)
        try:
            flushed = await self._sent(rounds_of(items), relaxed)
        except ReplyLost as lost:
            log.warning("log.reply_lost", items=len(items), reason=str(lost))
            for item in items:
                item.doubtful = True
            return await self._resolve(items)
        if relaxed:
            self.lazy_flushes += 1
        else:
            self.forced_flushes += 1
        return flushed

    async def _resolve(self, items: list[Item]) -> Flushed:
        """Whether these were written is not known: look, and write again what was not."""
        for _ in range(_TRIES):
            try:
                # Nothing else is written before this has ended: the store sees to it that no lost flush lives on.
                flushed = await self._sent([], False)
                found = await self.read([i.change.tx.tx_id for i in items])
                now_us = await self.now_us()
                rest = []
                for item in items:
                    row = found.get(item.change.tx.tx_id)
                    if (
                        row is not None
                        and not _repeatable(item.change)
                        and mapping.is_own_row(item.change, row)
                    ):
                        flushed[item] = WriteResult(Written.OK, now_us)
                    else:
                        rest.append(item)
                if rest:
                    again = await self._sent(rounds_of(rest), not any(i.forced for i in rest))
                    for item in rest:
                        flushed[item] = again[item]
            except ReplyLost as lost:
                log.warning("log.reply_lost", items=len(items), reason=str(lost))
                continue
            self.forced_flushes += 1
            return flushed
        raise LogUnavailable("replies were lost again and again")

    async def _find_bad(self, items: list[Item], urgent: bool, refused: FlushRefused) -> list[Item]:
        """Something in it cannot be stored: look for it in halves; it fails alone."""
        if len(items) > 1:
            return [left for half in halves(items) for left in await self._flush(half, urgent)]
        item = items[0]
        tx_id = item.change.tx.tx_id
        log.error("log.change_refused", tx_id=tx_id, kind=item.change.kind, reason=str(refused))
        if item.future is not None and not item.future.done():
            item.future.set_exception(ValueError(f"the log cannot store this change of {tx_id}: {refused}"))
        return []

    def _could_not(self, items: list[Item], error: LogUnavailable) -> list[Item]:
        self._outage.trouble(_WRITING, error)
        left = []
        for item in items:
            if item.future is None:
                left.append(item)
            elif not item.future.done():
                item.future.set_exception(LogUnavailable(str(error)))
        return left

    async def _sent(self, rounds: Sequence[Round], relaxed: bool) -> Flushed:
        begun = time.monotonic()
        flushed = await self.store.write(rounds, relaxed)
        if self.on_flush is not None:
            self.on_flush(not relaxed, time.monotonic() - begun)
        self._outage.well(_WRITING)
        return flushed

    async def _changing(self, work: Work[T], *, relaxed: bool = False) -> T:
        return await self._heard(_WRITING, self.store.changing(work, relaxed=relaxed))

    async def _reading(self, work: Work[T]) -> T:
        return await self._heard(_READING, self.store.reading(work))

    async def _heard(self, kind: str, asked: Awaitable[T]) -> T:
        try:
            out = await asked
        except LogUnavailable as error:
            self._outage.trouble(kind, error)
            raise
        self._outage.well(kind)
        return out

    # ---- reading ----

    async def read(self, tx_ids: Sequence[str]) -> dict[str, Tx]:
        """Rows with their branches, those that exist. Reads of many callers become one."""
        if not self._open:
            raise LogUnavailable("the log is not open")
        future: asyncio.Future[dict[str, Tx]] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        self._reads.add((tx_ids, future), urgent=True)
        try:
            return await future
        finally:
            self._waiting.discard(future)

    async def _read_together(self, reads: list[_Read], _: bool) -> list[_Read]:
        # What is no tx id cannot be here, and must not spoil the reads of others.
        wanted = {tx_id for tx_ids, _ in reads for tx_id in tx_ids if is_tx_id(tx_id)}
        found: dict[str, Tx] = {}
        trouble = ""
        try:
            found = await self._reading(lambda c: reading.read(c, wanted))
        except LogUnavailable as error:
            trouble = str(error)
        except Exception as error:
            log.exception("log.read_failed")
            trouble = f"{type(error).__name__}: {error}"
        for tx_ids, future in reads:
            if future.done():
                continue
            if trouble:
                future.set_exception(LogUnavailable(trouble))
            else:
                future.set_result({tx_id: found[tx_id] for tx_id in tx_ids if tx_id in found})
        return []

    async def news(
        self, undecided: Sequence[str], unended: Sequence[str]
    ) -> tuple[Collection[str], Collection[str]]:
        """Which of these are decided by now, and which of those have ended or rest."""
        return await self._reading(lambda c: reading.news(c, undecided, unended))

    async def read_gid(self, namespace: str, gid: str) -> Tx | None:
        """The transaction that a gid names now."""
        return await self._reading(lambda c: reading.read_gid(c, namespace, gid))

    async def history(self, tx_id: str) -> list[HistoryEntry]:
        """Oldest first."""
        return await self._reading(lambda c: reading.history(c, tx_id))

    async def audits(self, tx_id: str) -> list[Audit]:
        """Oldest first."""
        return await self._reading(lambda c: reading.audits(c, tx_id))

    async def query(self, query: Query) -> list[Tx]:
        """A page, newest first."""
        return await self._reading(lambda c: reading.query(c, query))

    async def deliveries(self, query: DeliveryQuery) -> list[tuple[Tx, Branch]]:
        """A page of deliveries, each with its transaction."""
        return await self._reading(lambda c: reading.deliveries(c, query))

    async def overdue(self, limit: int) -> list[Tx]:
        """Undecided and past their deadline, oldest first."""
        return await self._reading(lambda c: reading.overdue(c, self.store.clock(c), limit))

    async def figures(self) -> Figures:
        """For metrics."""
        return await self._reading(figures.ask)

    async def now_us(self) -> int:
        """The log's clock, asked now."""
        return await self._reading(self.store.clock)

    # ---- claims, resources, pruning ----

    async def claim(self, owner: str, lease_us: int, limit: int, *, all_of_owner: bool = False) -> list[Tx]:
        """Take over transactions in phase two that nobody carries out."""
        clock = self.store.clock
        return await self._changing(
            lambda c: upkeep.claim(c, clock(c), owner, lease_us, limit, all_of_owner=all_of_owner)
        )

    async def claim_due(self, owner: str, lease_us: int, due: Sequence[tuple[str, int]]) -> list[Tx]:
        """Take over those of these transactions in phase two that still have this epoch and no owner."""
        clock = self.store.clock
        return await self._claiming(lambda c: upkeep.claim_due(c, clock(c), owner, lease_us, due))

    async def claim_waiting(self, owner: str, lease_us: int, target: str, limit: int) -> list[Tx]:
        """Take over what was handed off and waits for this target, which it is to wait for no longer."""
        # Not in one transaction: what it then reads of them might be older than their epoch.
        due = await self._reading(lambda c: waiting.handed_off(c, target, limit))
        if not due:
            return []
        clock = self.store.clock
        return await self._claiming(lambda c: waiting.claim(c, clock(c), owner, lease_us, due, target))

    async def _claiming(self, work: Work[T]) -> T:
        # Synced, unless a crash that loses it takes this node with it: else another one might have the same epoch. What
        # is written of it afterwards is on disk only if the claim is.
        return await self._changing(work, relaxed=self.store.own_machine)

    async def turns(self, lines: Collection[str]) -> Mapping[str, Turn]:
        """Whose turn it is; what has ended is forgotten, and the next one has it then."""
        clock = self.store.clock
        return await self._changing(lambda c: turns.turns(c, clock(c), lines))

    async def ahead(self, keys: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        """How many are before each of these."""
        return await self._reading(lambda c: turns.ahead(c, keys))

    async def hasten(self, keys: Collection[tuple[str, str]]) -> None:
        """These count as due in their lines."""
        await self._changing(lambda c: turns.hasten(c, keys))

    async def backlog(self) -> Mapping[str, Backlog]:
        """How many branches wait for each target, and since when."""
        return await self._reading(waiting.backlog)

    async def renew(self, owner: str, tx_ids: Sequence[str], lease_us: int) -> Collection[str]:
        """Keep the lease of what this node is still carrying out; what is its own still."""
        clock = self.store.clock
        # Not synced: a lease that a crash forgets only ends earlier.
        return await self._changing(
            lambda c: upkeep.renew(c, clock(c), owner, tx_ids, lease_us), relaxed=True
        )

    async def resource_identity(self, name: str) -> str | None:
        """The identity that the database of this name had when it was first seen."""
        return await self._reading(lambda c: upkeep.resource_identity(c, name))

    async def remember_resource(self, name: str, identity: str, *, replace: bool = False) -> str:
        """Remember it unless one is known."""
        return await self._changing(lambda c: upkeep.remember_resource(c, name, identity, replace=replace))

    async def upkeep(self, work: Callable[[Connection, int], T]) -> T:
        """Run ``work``, given the log's clock, as one SQL transaction that is on disk when this returns: for what other
        adapters keep beside the log."""
        clock = self.store.clock
        return await self._changing(lambda c: work(c, clock(c)))

    async def prune(self, owner: str, limit: int) -> int:
        """Delete a small batch of what retention allows to go."""
        clock = self.store.clock
        count = await self._changing(
            lambda c: upkeep.prune(c, clock(c), self._windows, self._detail_retention_us, limit)
        )
        if count:
            log.info("log.pruned", owner=owner, rows=count)
        return count


def _repeatable(change: Change) -> bool:
    """Does writing it twice do the same as once? Then it is not looked for: its row may look the same without
    it, and what comes beside it (history) must not be lost."""
    if change.kind is ChangeKind.PROGRESS:
        return change.tx.epoch == change.expected_epoch
    return change.kind is ChangeKind.RELEASE_GID


def _answer(item: Item, result: WriteResult) -> None:
    if item.future is not None:
        if not item.future.done():
            item.future.set_result(result)
    elif item.done is not None:
        try:
            item.done(result)
        except Exception:
            log.exception("log.listener_failed", tx_id=item.change.tx.tx_id)
