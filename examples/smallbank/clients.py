"""Clients of the bank: each asks for payments, and asks again with the same gid when it hears nothing."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc

from .check import ABORTED, FINAL, UNKNOWN, Payment

OPS = (
    *("send_payment", "send_payment", "send_payment"),
    *("withdraw_savings", "withdraw_savings", "withdraw_savings"),
    *("move_checking", "move_savings"),
)
Pay = Callable[..., Awaitable[bytes]]
_CALL_S = 10.0
_ASKS = 60
"""With pauses of up to a second that is far longer than any transaction may last."""


class Clients:
    """Concurrent clients, and what they were told."""

    def __init__(self, address: str, accounts: int, seed: float, prefix: str) -> None:
        self.payments: dict[str, Payment] = {}
        self.told: Counter[str] = Counter()
        self.repeats = 0
        self.longest_s = 0.0
        """The longest that one of them waited for a fact."""
        self._address = address
        self._accounts = accounts
        self._rng = random.Random(seed)
        self._prefix = prefix

    async def run(self, count: int, going: Callable[[], bool]) -> None:
        """``count`` clients at once, as long as ``going`` says."""
        async with grpc.aio.insecure_channel(
            self._address,
            options=[("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)],
        ) as channel:
            pay: Pay = channel.unary_unary("/Bank/Pay", None, None)
            seeds = [random.Random(self._rng.random()) for _ in range(count)]
            await asyncio.gather(*(self._client(pay, rng, going) for rng in seeds))

    async def _client(self, pay: Pay, rng: random.Random, going: Callable[[], bool]) -> None:
        in_a_row = 0
        while going():
            gid = f"{self._prefix}-{len(self.payments) + 1}"
            source, target = rng.sample(range(1, self._accounts + 1), 2)
            payment = Payment(gid, rng.choice(OPS), source, target, rng.choice((1, 7, 100, 2_500, 60_000)))
            self.payments[gid] = payment
            await self._settle(pay, payment, rng)
            self.told[payment.told] += 1
            if payment.told != ABORTED:
                in_a_row = 0
                continue
            # Something is down. Whoever goes on asking at once only makes more aborted payments.
            in_a_row += 1
            await asyncio.sleep(min(0.25 * 2**in_a_row, 1.0) * rng.uniform(0.5, 1.0))

    async def _settle(self, pay: Pay, payment: Payment, rng: random.Random) -> None:
        begun = time.monotonic()
        for attempt in range(_ASKS):
            if await self._ask(pay, payment) in FINAL:
                break
            self.repeats += 1
            await asyncio.sleep(min(0.05 * 2**attempt, 1.0) * rng.random())
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        if rng.random() < 0.02:
            await self._ask(pay, payment)  # Whoever asks once more must be told the same.

    async def _ask(self, pay: Pay, payment: Payment) -> str:
        request = {key: getattr(payment, key) for key in ("op", "gid", "source", "target", "cents")}
        try:
            reply = json.loads(await pay(json.dumps(request).encode(), timeout=_CALL_S))
        except grpc.aio.AioRpcError:
            reply = {"told": UNKNOWN}
        told = str(reply["told"])
        payment.answers.append(told)
        payment.whys.append(reply.get("why", ""))
        return told
