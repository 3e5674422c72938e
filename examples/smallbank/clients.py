"""Clients of the bank: each asks for payments, and asks again with the same gid when it hears nothing."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc

from .check import ABORTED, FAILED, FINAL, UNKNOWN
from .history import History

OPS = (
    *("send_payment", "send_payment", "send_payment"),
    *("withdraw_savings", "withdraw_savings", "withdraw_savings"),
    *("move_checking", "move_savings"),
)
TILL_OPS = (
    "reserve_payment",
    "reserve_payment",
    "ship_payment",
    "ship_payment",
    "mixed_payment",
    "mixed_payment",
)
"""TCC, saga, and a mix with XA: where there are tills."""
_SIDES = {
    **dict.fromkeys(TILL_OPS, ("checking", "savings")),
    "send_payment": ("checking", "savings"),
    "withdraw_savings": ("savings", "checking"),
    "move_checking": ("checking", "checking"),
    "move_savings": ("savings", "savings"),
}
Pay = Callable[..., Awaitable[bytes]]
_XA = {"reserve_payment": (), "ship_payment": (), "mixed_payment": ("checking",)}
"""In which databases such a payment is a branch."""
_CALL_S = 10.0
_ASKS = 60
"""With pauses of up to a second that is far longer than any transaction may last."""
_QUICK = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]


@dataclass(slots=True)
class Wish:
    """A payment that a client wants."""

    gid: str
    op: str
    source: int
    target: int
    cents: int
    told: str = UNKNOWN
    """What its client believes in the end."""
    why: str = ""
    """The code that came with it."""
    words: set[str] = field(default_factory=set)

    @property
    def rows(self) -> list[tuple[str, int, int]]:
        """The journal rows that it leaves when it is done, once."""
        source, target = _SIDES[self.op]
        return [(source, self.source, -self.cents), (target, self.target, self.cents)]

    @property
    def xa(self) -> list[str]:
        """In which databases it is a branch, and leaves that one's marker."""
        return sorted(_XA.get(self.op, {db for db, _, _ in self.rows}))


class Clients:
    """Concurrent clients, and what they were told."""

    def __init__(
        self,
        services: Mapping[str, str],
        accounts: int,
        seed: float,
        prefix: str,
        history: History,
        *,
        ops: Sequence[str] = OPS,
    ) -> None:
        self.wishes: dict[str, Wish] = {}
        self.recent: deque[str] = deque(maxlen=200)
        """Gids that were settled a short time ago, or are on their way."""
        self.facts: deque[str] = deque(maxlen=50)
        """Gids of which clients were told a fact just now."""
        self.told: Counter[str] = Counter()
        self.repeats = 0
        self.longest_s = 0.0
        """The longest that one of them waited for a fact."""
        self._services = dict(services)
        self._accounts = accounts
        self._rng = random.Random(seed)
        self._prefix = prefix
        self._history = history
        self._ops = ops

    async def run(self, count: int, going: Callable[[], bool]) -> None:
        """``count`` clients at once, as long as ``going`` says."""
        async with AsyncExitStack() as stack:
            ways: list[tuple[str, Pay]] = []
            for name, address in self._services.items():
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_QUICK))
                ways.append((name, channel.unary_unary("/Bank/Pay", None, None)))
            seeds = [random.Random(self._rng.random()) for _ in range(count)]
            await asyncio.gather(*(self._client(ways, rng, going) for rng in seeds))

    async def _client(
        self, ways: Sequence[tuple[str, Pay]], rng: random.Random, going: Callable[[], bool]
    ) -> None:
        in_a_row = 0
        while going():
            gid = f"{self._prefix}-{len(self.wishes) + 1}"
            source, target = rng.sample(range(1, self._accounts + 1), 2)
            wish = Wish(gid, rng.choice(self._ops), source, target, rng.choice((1, 7, 100, 2_500, 60_000)))
            self.wishes[gid] = wish
            self.recent.append(gid)
            await self._settle(ways, wish, rng)
            self.told[wish.told] += 1
            if wish.told != ABORTED:
                in_a_row = 0
                continue
            # Something is down. Whoever goes on asking at once only makes more aborted payments.
            in_a_row += 1
            await asyncio.sleep(min(0.25 * 2**in_a_row, 1.0) * rng.uniform(0.5, 1.0))

    async def _settle(self, ways: Sequence[tuple[str, Pay]], wish: Wish, rng: random.Random) -> None:
        begun = time.monotonic()
        for attempt in range(_ASKS):
            if await self._ask(rng.choice(ways), wish) in FINAL:
                break
            self.repeats += 1
            await asyncio.sleep(min(0.05 * 2**attempt, 1.0) * rng.random())
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        if rng.random() < 0.02:
            await self._ask(rng.choice(ways), wish)  # Whoever asks once more must be told the same.

    async def _ask(self, way: tuple[str, Pay], wish: Wish) -> str:
        service, pay = way
        request = {key: getattr(wish, key) for key in ("op", "gid", "source", "target", "cents")}
        call = self._history.call(wish.gid, rows=wish.rows, xa=wish.xa, op=wish.op, at=service)
        try:
            reply = json.loads(await pay(json.dumps(request).encode(), timeout=_CALL_S))
        except grpc.aio.AioRpcError as error:
            reply = {"told": UNKNOWN, "why": error.code().name}
        told, why = str(reply["told"]), str(reply.get("why", ""))
        self._history.add("reply", call=call, gid=wish.gid, told=told, why=why)
        wish.words.add(told)
        if told in FINAL and wish.told not in FINAL:
            wish.told, wish.why = told, why
            self.facts.append(wish.gid)
        elif wish.told not in FINAL:
            wish.told = FAILED if wish.words == {FAILED} else UNKNOWN
        return told
