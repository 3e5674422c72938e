"""Reads the retry topics in a group, waits until records are ready, and hands on what is due.

Reading never waits for anything that is done with the records: the group would give the partitions to others. What is
read and not ready waits here, a little of each partition; the partition is paused meanwhile.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiokafka import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from ...observe import logs
from ...ports import Due
from .connection import Health, KafkaConnection, close, start
from .lanes import Lanes
from .partitions import Partition
from .records import Poison, decode, encode
from .sending import Sender
from .tiers import Tiers

log = logs.get("txcoord.queue")

_POLL_S: Final = 0.2
_GATHER_S: Final = 0.02
"""What comes due within that time goes together."""
_LOW: Final = 200
"""More of a partition is read when fewer wait here."""
_COMMIT_S: Final = 0.5
_PATIENCE_S: Final = 5.0
_LAST_S: Final = 1.0
"""For what is said at the end."""
_JOIN_S: Final = 60.0
_AGAIN_S: Final = 1.0


class Reader:
    """One member of the group."""

    def __init__(
        self,
        connection: KafkaConnection,
        tiers: Tiers,
        sender: Sender,
        lanes: Lanes,
        health: Health,
        *,
        group: str,
        poison: str,
        session_s: float,
        now_us: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._tiers = tiers
        self._sender = sender
        self._lanes = lanes
        self._health = health
        self._group = group
        self._poison = poison
        self._session_s = session_s
        self._now_us = now_us
        self._consumer: Any = None
        self._partitions: dict[Any, Partition] = {}
        self._ready: list[tuple[int, int, Partition | None, int, Due]] = []
        """Records that are ready and due a little later, and what is due too soon for any topic."""
        self._ticket = itertools.count()
        self._sooner = asyncio.Event()
        self._again = asyncio.Event()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self.poisoned = 0

    # ---- what is asked of it ----

    def put(self, due: Due) -> None:
        """Wait for it in this process: it is due sooner than any topic's delay."""
        self._keep(due, None, -1)

    def start_again(self) -> None:
        """Leave the group, and join it anew: where the topics were made again, nothing known of them holds any more."""
        self._drop()
        self._again.set()

    def depth(self) -> dict[str, int]:
        """How many records of each topic wait for its delay, as far as this member reads it."""
        found = dict.fromkeys(self._tiers.delay_us, 0)
        for part in self._partitions.values():
            end = self._consumer.highwater(part.at) if self._consumer is not None else None
            unread = max(0, end - part.position) if end is not None and part.position >= 0 else 0
            found[part.at.topic] += len(part.waiting) + unread
        return found

    @property
    def here(self) -> int:
        """How many wait in this process for their time."""
        return len(self._ready)

    def give_back(self) -> list[Due]:
        """What waits in this process alone; it waits here no longer."""
        found = [due for _, _, part, _, due in self._ready if part is None]
        self._ready = [one for one in self._ready if one[2] is not None]
        heapq.heapify(self._ready)
        return found

    def hold(self, yes: bool) -> None:
        """Leave the group until it is said again: what was read and is not done is read by another member."""
        if yes:
            self._wanted.clear()
            self._again.set()
        else:
            self._wanted.set()

    # ---- reading ----

    async def run(self) -> None:
        """Read, until it is cancelled; then what is consumed is said, and the group is left."""
        try:
            while True:
                while not self._wanted.is_set():
                    await self._wanted.wait()
                self._again.clear()
                reading = asyncio.ensure_future(self._member())
                again = asyncio.ensure_future(self._again.wait())
                try:
                    await asyncio.wait({reading, again}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    again.cancel()
                    reading.cancel()
                    await asyncio.wait({reading})
                if not reading.cancelled() and (error := reading.exception()) is not None:
                    if not isinstance(error, KafkaError | OSError | TimeoutError):
                        log.error("queue.reader_crashed", exc_info=error)
                    self._health.trouble(error)
                    await asyncio.sleep(_AGAIN_S)
        finally:
            self._drop()

    async def _member(self) -> None:
        consumer = self._connection.consumer(
            group_id=self._group,
            session_timeout_ms=int(self._session_s * 1000),
            heartbeat_interval_ms=int(self._session_s * 1000 / 4),
            # A partition that is resumed is asked for with the next request.
            fetch_max_wait_ms=int(_POLL_S * 1000),
            max_partition_fetch_bytes=128 * 1024,
        )
        consumer.subscribe(list(self._tiers.delay_us), listener=_Listener(self))
        committing: asyncio.Future[None] | None = None
        self._consumer = consumer
        try:
            async with asyncio.timeout(_JOIN_S):
                await start(consumer)
            committing = asyncio.ensure_future(self._keep_committing())
            self._health.fine()
            while True:
                for at, records in (await consumer.getmany(timeout_ms=int(_POLL_S * 1000))).items():
                    part = self._partitions.get(at)
                    if part is not None:
                        for record in records:
                            self._take(part, record)
                self._sooner.set()
                self._pace()
        finally:
            self._consumer = None
            if committing is not None:
                committing.cancel()
            await self._commit(consumer, _LAST_S)
            self._drop()
            await close(consumer)

    def assigned(self, partitions: Iterable[Any]) -> None:
        """These are ours from now on."""
        self._drop()
        self._partitions = {at: Partition(at, self._tiers.delay_us[at.topic]) for at in partitions}

    async def revoked(self) -> None:
        """None is ours any more, perhaps until they are assigned again. What we have done is said; what is under way is
        read again by whoever comes next, and harmless: its claim is in the log."""
        if self._consumer is not None:
            await self._commit(self._consumer)
        self._drop()

    def _drop(self) -> None:
        for part in self._partitions.values():
            part.gone = True
        self._partitions = {}
        self._ready = [one for one in self._ready if one[2] is None]
        heapq.heapify(self._ready)

    def _take(self, part: Partition, record: Any) -> None:
        part.read(record.offset)
        now_us = self._now_us()
        try:
            due = decode(record.value)
        except Poison as why:
            self.poisoned += 1
            log.error(
                "queue.poison",
                topic=part.at.topic,
                partition=part.at.partition,
                offset=record.offset,
                reason=str(why),
            )
            self._set_aside(part, record, str(why))
            return
        # It cannot have been put there later than now, whatever a clock said.
        part.waiting.append((min(record.timestamp * 1000, now_us) + part.delay_us, record.offset, due))

    def _set_aside(self, part: Partition, record: Any, why: str) -> None:
        """Keep a record that cannot be read. Until it is on its topic, it is not consumed."""

        def done(kept: bool) -> None:
            if kept:
                part.consumed(record.offset)
            elif not part.gone:
                asyncio.get_running_loop().call_later(_AGAIN_S, self._set_aside, part, record, why)

        self._sender.put(
            self._poison,
            record.key,
            # A record of nothing at all is refused.
            b"" if record.key is None and record.value is None else record.value,
            self._now_us(),
            headers=[
                *record.headers,
                ("txcoord-topic", part.at.topic.encode()),
                ("txcoord-partition", str(part.at.partition).encode()),
                ("txcoord-offset", str(record.offset).encode()),
                ("txcoord-timestamp", str(record.timestamp).encode()),
                ("txcoord-reason", why.encode()),
            ],
            done=done,
        )

    def _pace(self) -> None:
        """Pause what has enough waiting here, and all while too much is being carried out."""
        if self._consumer is None:
            return
        full = self._lanes.full
        for at, part in self._partitions.items():
            pause = full or len(part.waiting) >= _LOW
            if pause != part.paused:
                part.paused = pause
                try:
                    (self._consumer.pause if pause else self._consumer.resume)(at)
                except IllegalStateError:
                    return  # A rebalance is on its way.

    # ---- time ----

    async def tell_time(self) -> None:
        """Hand on what is due, when it is; until it is cancelled."""
        while True:
            self._sooner.clear()
            now_us = self._now_us()
            next_us = self._hand_on(now_us)
            self._lanes.give_out()
            self._pace()
            wait_s = _POLL_S if next_us is None else min(_POLL_S, (next_us - now_us) / 1_000_000)
            if wait_s <= _GATHER_S:
                await asyncio.sleep(_GATHER_S)
                continue
            try:
                async with asyncio.timeout(wait_s):
                    await self._sooner.wait()
            except TimeoutError:
                pass

    def _hand_on(self, now_us: int) -> int | None:
        """What is due goes to its lane. When the next one comes, by the log's clock."""
        for part in self._partitions.values():
            waiting = part.waiting
            while waiting and waiting[0][0] <= now_us:
                _, offset, due = waiting.popleft()
                self._go_on(part, offset, due, now_us)
        while self._ready and self._ready[0][0] <= now_us:
            _, _, of, offset, due = heapq.heappop(self._ready)
            if of is None or not self._lanes.crowded(due.target):
                self._lanes.put(of, offset, due)
            else:
                self._pass_on(of, offset, due, self._tiers.shortest)
        heads = [part.waiting[0][0] for part in self._partitions.values() if part.waiting]
        if self._ready:
            heads.append(self._ready[0][0])
        return min(heads, default=None)

    def _go_on(self, part: Partition, offset: int, due: Due, now_us: int) -> None:
        """Its topic's delay is over."""
        if due.due_us <= now_us and not self._lanes.crowded(due.target):
            self._lanes.put(part, offset, due)
        elif due.due_us <= now_us:
            self._pass_on(part, offset, due, self._tiers.shortest)
        elif (topic := self._tiers.choose(due.due_us - now_us)) is not None:
            self._pass_on(part, offset, due, topic)
        else:
            self._keep(due, part, offset)

    def _keep(self, due: Due, part: Partition | None, offset: int) -> None:
        heapq.heappush(self._ready, (due.due_us, next(self._ticket), part, offset, due))
        if self._ready[0][4] is due:
            self._sooner.set()

    def _pass_on(self, part: Partition, offset: int, due: Due, topic: str) -> None:
        """To another topic. It is consumed once it is there."""

        def done(sent: bool) -> None:
            if sent:
                part.consumed(offset)
            elif not part.gone:
                asyncio.get_running_loop().call_later(_AGAIN_S, self._pass_on, part, offset, due, topic)

        self._sender.put(topic, due.tx_id.encode(), encode(due), self._now_us(), done=done)

    # ---- offsets ----

    async def _keep_committing(self) -> None:
        while True:
            await asyncio.sleep(_COMMIT_S)
            if self._consumer is not None:
                await self._commit(self._consumer)

    async def _commit(self, consumer: Any, patience_s: float = _PATIENCE_S) -> None:
        parts = [part for part in self._partitions.values() if part.mark > max(part.committed, 0)]
        if not parts:
            return
        marks = {part.at: part.mark for part in parts}
        try:
            async with asyncio.timeout(patience_s):
                await consumer.commit({at: OffsetAndMetadata(mark, "") for at, mark in marks.items()})
        except (CommitFailedError, IllegalStateError):
            return  # They are somebody else's by now.
        except (KafkaError, OSError, TimeoutError) as error:
            self._health.trouble(error)
            return
        self._health.fine()
        for part in parts:
            part.committed = marks[part.at]


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._reader.revoked()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        self._reader.assigned(assigned)
