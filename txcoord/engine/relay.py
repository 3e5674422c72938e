"""Publishes what transactions have announced: from the log's outbox to topics.

One node does it, by lease. Two of them at a time, while the lease changes hands, only publish twice: each goes by a
transaction's order, and nothing leaves the log before it is on its topic. So whoever passes by what it has seen reads
each transaction in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..core.model import Topic
from ..observe import logs
from ..outgoing import Outbox, Outgoing, Publisher, Publishing, Record
from ..ports import Clock, Leases, LogUnavailable

log = logs.get("txcoord.relay")

DUTY = "outbox"
Key = tuple[str, int, int]
_GOES = {topics: tuple(topics) for topics in map(Topic, range(4))}


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """How it goes about it."""

    batch: int = 500
    lease_us: int = 15_000_000
    poll_s: float = 0.25
    """Between two looks when there was nothing."""
    gather_s: float = 0.1
    """After a batch that was not full: many small ones would cost more."""
    pause_s: float = 1.0
    """While broker or log is away."""
    hold_us: int = 60_000_000
    """How long the announcements of a transaction wait when one was refused; those of others go on."""
    behind_s: float = 60.0
    """When the broker has been away for so long, that is an alarm."""


class Relay:
    """The relay of one node. ``shown`` makes a record of an announcement: see :mod:`.events`."""

    def __init__(
        self,
        outbox: Outbox,
        publisher: Publisher,
        leases: Leases,
        *,
        node: str,
        clock: Clock,
        shown: Callable[[Outgoing, Topic], Record],
        alarm: Callable[[str, str, str, str], None],
        published: Callable[[str, str, int], None] = lambda _topic, _outcome, _count: None,
        settings: RelaySettings | None = None,
    ) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._leases = leases
        self._node = node
        self._clock = clock
        self._shown = shown
        self._alarm = alarm
        self._published = published
        self._s = settings or RelaySettings()
        self._lease_until = 0.0
        self._done: list[Key] = []
        """Published, and still in the log."""
        self._away_since: float | None = None
        self._alarmed = False

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                pause_s = await self.step()
            except LogUnavailable as error:
                log.debug("log.unavailable", duty=DUTY, reason=str(error))
                pause_s = self._s.pause_s
            except Exception:
                log.exception("relay.crashed")
                pause_s = self._s.pause_s
            await self._clock.sleep(pause_s)

    async def step(self) -> float:
        """Publish a batch, if it is this node's to do; how long to wait, in seconds, before the next one."""
        if not await self._leads():
            return self._s.lease_us / 3_000_000
        done, self._done = self._done, []
        try:
            batch = await self._outbox.take(done, self._s.batch)
        except BaseException:
            self._done = done + self._done
            raise
        if not batch:
            return self._s.poll_s
        if not await self._publish(batch):
            return self._s.pause_s
        return 0.0 if len(batch) == self._s.batch else self._s.gather_s

    async def stop(self) -> None:
        """Say what was published, and let others go on. Raises LogUnavailable."""
        if self._lease_until:
            self._lease_until = 0.0
            done, self._done = self._done, []
            await self._outbox.take(done, 0)
            await self._leases.release(DUTY, self._node)

    async def _leads(self) -> bool:
        now = self._clock.monotonic()
        if now < self._lease_until:
            return True
        if await self._leases.acquire(DUTY, self._node, self._s.lease_us) is None:
            self._lease_until, self._done = 0.0, []  # Whoever leads now publishes them once more.
            return False
        # Asked for again when a third of it is over.
        self._lease_until = now + self._s.lease_us / 3_000_000
        return True

    async def _publish(self, batch: Sequence[Outgoing]) -> bool:
        """Is the broker well? Of a transaction one is on its way at a time: the next one goes when it is there."""
        held: set[str] = set()
        why = ""
        for wave in _waves(batch):
            going = [out for out in wave if out.tx_id not in held]
            records = [
                (out, self._shown(out, topic)) for out in going for topic in _GOES[out.announcement.topics]
            ]
            answers = await self._publisher.publish([record for _, record in records])
            missing: set[Key] = set()
            for (out, record), (answer, text) in zip(records, answers, strict=True):
                if answer is Publishing.SENT:
                    continue
                missing.add(out.key)
                if answer is Publishing.AWAY:
                    why = text
                elif out.tx_id not in held:
                    held.add(out.tx_id)
                    what, branch = out.announcement.what, out.announcement.branch
                    self._alarm("event_refused", out.tx_id, branch, f"{what} for {record.topic.name}: {text}")
            self._done += [out.key for out in going if out.key not in missing]
            self._count(records, answers)
            if why:
                break
        if held:
            await self._outbox.hold(held, self._s.hold_us)
        self._heard(why)
        return not why

    def _count(
        self, records: Sequence[tuple[Outgoing, Record]], answers: Sequence[tuple[Publishing, str]]
    ) -> None:
        for topic in Topic:
            name = str(topic.name).lower()
            told = [a for (_, r), (a, _) in zip(records, answers, strict=True) if r.topic is topic]
            sent = told.count(Publishing.SENT)
            for outcome, count in (("sent", sent), ("failed", len(told) - sent)):
                if count:
                    self._published(name, outcome, count)

    def _heard(self, why: str) -> None:
        now = self._clock.monotonic()
        if not why:
            if self._away_since is not None:
                log.info("events.back", after_s=round(now - self._away_since, 1))
            self._away_since, self._alarmed = None, False
        elif self._away_since is None:
            self._away_since = now
            log.warning("events.away", reason=why)
        elif now - self._away_since > self._s.behind_s and not self._alarmed:
            self._alarmed = True
            self._alarm("events_behind", "", "", f"for {now - self._away_since:.0f} s: {why}")


def _waves(batch: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """The first of each transaction, then the second of each, and so on."""
    left: dict[str, deque[Outgoing]] = {}
    for out in batch:
        left.setdefault(out.tx_id, deque()).append(out)
    while left:
        yield [waiting.popleft() for waiting in left.values()]
        left = {tx_id: waiting for tx_id, waiting in left.items() if waiting}
