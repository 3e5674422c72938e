"""``scripts/outage``: sagas and TCC transactions while nearly everything breaks, and what became of them."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from tests.faults.outage_check import Found, check
from tests.faults.outage_participant import INSERT, declared
from tests.faults.outage_plan import LONG, SHORT, Asked, Form, drawn
from tests.faults.outage_site import (
    BROKER_BACK,
    POISON,
    PREFIX,
    STOCK_BACK,
    STOCK_KILLED,
    Place,
    placed,
    retry_topics,
)
from tests.support.databases import PG18, new_folder, running_server
from tests.support.kafka_queue import records_of
from tests.support.kafka_server import KafkaServer
from tests.support.redis_server import RedisServer
from txcoord.adapters.kafka import KafkaConnection
from txcoord.testing.postgres import PostgresServer
from txcoord_client import (
    Aborted,
    AlreadyAborted,
    AlreadyCommitted,
    Coordinator,
    InProgress,
    OutcomeUnknown,
    Refused,
    Retry,
    Run,
    Unavailable,
    saga,
)

OFTEN: Final = Retry(first=1, factor=2, cap=10, attempts=100)
"""Of what is worth only so many attempts: none of it may be parked here."""


class GaveUp(Exception):
    """The client does not want it any more."""


class Clients:
    """All of them, in this process."""

    def __init__(self, form: Form, coord: Coordinator) -> None:
        self._form = form
        self._coord = coord
        self._declared = {name: declared(name) for name in ("stock", "payment")}
        self.answers: dict[str, str] = {}
        """What each was told in the end: ``committed``, ``aborted``, or ``unknown`` and why."""

    async def all(self, asked: Sequence[Asked], began: float) -> None:
        """Each at its time, to its end."""
        await asyncio.gather(*(self._one(one, began) for one in asked))

    async def _one(self, asked: Asked, began: float) -> None:
        await asyncio.sleep(began + asked.start - time.monotonic())
        do = self._tcc if asked.kind == "tcc" else self._saga
        try:
            self.answers[asked.gid] = await do(asked)
        except AlreadyCommitted:
            self.answers[asked.gid] = "committed"
        except (Aborted, AlreadyAborted, Refused):
            self.answers[asked.gid] = "aborted"
        except (OutcomeUnknown, Unavailable) as error:
            self.answers[asked.gid] = f"unknown: {type(error).__name__} {error}"

    async def _tcc(self, asked: Asked) -> str:
        began = time.monotonic()
        whole = False
        try:
            async with self._coord.begin("hold", gid=asked.gid, timeout=self._form.timeout) as g:
                for number, name in enumerate(asked.parts, 1):
                    hold = self._declared[name].hold
                    await g.tcc(hold, gid=asked.gid, branch=str(number), how=asked.how)
                for number, (what, whom) in enumerate(asked.told, 3):
                    values = {"gid": asked.gid, "branch": str(number), "op": what}
                    if what == "sql":
                        g.sql(whom, INSERT, values, retry=OFTEN)
                    else:
                        tell = g.message if what == "message" else g.notify
                        retry = OFTEN if what == "notify" else None
                        tell(self._declared[whom].told, {**values, "how": asked.how}, retry=retry)
                await asyncio.sleep(began + asked.think - time.monotonic())
                if asked.gives_up:
                    raise GaveUp
                whole = True
        except (GaveUp, Unavailable):
            if whole:
                raise
            return "aborted"  # Its block has failed.
        return "committed"

    async def _saga(self, asked: Asked) -> str:
        flow = saga("steps")
        for number, name in enumerate(asked.parts, 1):
            flow = flow.step(self._declared[name].act[str(number)], name=f"s{number}")
        data = {"gid": asked.gid, "how": asked.how}
        until = time.monotonic() + self._form.timeout + 60
        run: Run | None = None
        while True:
            # A saga is its coordinators': it is asked for until it is known.
            try:
                run = run or await self._coord.submit(
                    flow, gid=asked.gid, data=data, timeout=self._form.timeout
                )
                if (await run.wait(20)).committed:
                    return "committed"
            except InProgress:
                # It was taken when nobody answered.
                out = await self._coord.get(asked.gid)
                if out is not None and out.state in ("COMMITTED", "ABORTED"):
                    return out.state.lower()
            except (Unavailable, OutcomeUnknown):
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(0.2)


async def outage(form: Form, seed: int, place: Place) -> Found:
    """Let all of it happen, and look what is left."""
    asked = drawn(form, seed)
    async with Coordinator(",".join(place.addresses), participants=place.targets) as coord:
        clients = Clients(form, coord)
        await asyncio.to_thread(place.kafka.start)
        place.mark("Kafka is there for the first time")
        began = time.monotonic()
        place.mark("the first transaction")
        faults = [_at(began, when, do) for when, do in _faults(form, place)]
        chaos = asyncio.gather(*faults, *([_storms(place)] if form.storms else []))
        clock = asyncio.create_task(_own_lateness(place.lateness_s))
        await clients.all(asked, began)
        place.mark("all clients are told")
        await chaos
        clock.cancel()
    return await check(form, asked, clients.answers, place)


async def _own_lateness(found: list[float]) -> None:
    """How late this process is woken: what that is, the machine owes to all of them."""
    while True:
        due = time.monotonic() + 0.1
        await asyncio.sleep(0.1)
        found.append(time.monotonic() - due)


Do = Callable[[], Awaitable[object]]


async def _at(began: float, when: float, do: Do) -> None:
    await asyncio.sleep(began + when - time.monotonic())
    await do()


def _faults(form: Form, place: Place) -> list[tuple[float, Do]]:
    def then(what: str, do: Callable[[], object]) -> Do:
        async def run() -> None:
            await asyncio.to_thread(do)
            place.mark(what)

        return run

    stock = place.participants["stock"]
    return [
        (form.down[0], then(STOCK_KILLED, stock.kill9)),
        (form.down[1], then(STOCK_BACK, lambda: stock.start(wait_s=60))),
        (form.redis_killed, then("Redis is killed", place.redis.kill)),
        (form.broker[0], then("the broker is killed", place.kafka.kill9)),
        (form.broker[1], then(BROKER_BACK, place.kafka.start)),
        (form.coordinator_killed, then("coordinator c1 is killed", place.nodes["c1"].kill9)),
        (form.worker_killed, then("worker w1 is killed", place.nodes["w1"].kill9)),
    ]


async def _storms(place: Place) -> None:
    """One after the other as soon as the broker is back; the participant is still dead, if that did not take long."""
    connection = KafkaConnection((place.kafka.address,))
    topics = retry_topics(place)
    while BROKER_BACK not in place.marks:  # noqa: ASYNC110 - a thread waits for it
        await asyncio.sleep(0.05)
    producer = connection.producer()
    await producer.start()
    for value in POISON:
        await producer.send_and_wait(topics[0], value, key=b"k")
    await producer.stop()
    place.mark("poison is on a retry topic")
    await asyncio.to_thread(place.new_worker("w3").start, wait_s=0)
    place.mark("worker w3 joins")
    poison = f"{PREFIX}.poison"
    while len(await records_of(place.kafka, poison)) < len(POISON):  # noqa: ASYNC110 - on a topic
        await asyncio.sleep(0.5)
    place.mark("the poison is kept")
    admin = connection.admin()
    await admin.start()
    await admin.delete_topics(topics)
    await admin.close()
    place.mark("the retry topics are deleted")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do, say. 0: all is well; 1: something was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/outage", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="the form of the tests")
    parser.add_argument("--sagas", type=int)
    parser.add_argument("--tccs", type=int)
    parser.add_argument("--storms", action="store_true", help="topics deleted, a rebalance, poison, too")
    parser.add_argument("--keep", action="store_true", help="keep the folder of logs and calls")
    parser.add_argument("--json", action="store_true", help="the figures as a line of JSON")
    asked = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    form = SHORT if asked.short else LONG
    form = replace(
        form,
        sagas=form.sagas if asked.sagas is None else asked.sagas,
        tccs=form.tccs if asked.tccs is None else asked.tccs,
        storms=asked.storms,
    )
    folder = new_folder("outage")
    with ExitStack() as stack:
        postgres = stack.enter_context(running_server(PG18))
        redis = stack.enter_context(RedisServer.running())
        kafka = KafkaServer()
        stack.callback(kafka.remove)
        found = asyncio.run(_run(form, asked.seed, folder, postgres, kafka, redis))
    print(json.dumps(found.figures) if asked.json else found.told())
    for wrong in found.wrong[:50]:
        print(f"WRONG {wrong}")
    if found.wrong or asked.keep:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if found.wrong else 0


async def _run(
    form: Form, seed: int, folder: Path, postgres: PostgresServer, kafka: KafkaServer, redis: RedisServer
) -> Found:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    async with placed(folder, form, postgres, kafka, redis, say) as place:
        return await outage(form, seed, place)


if __name__ == "__main__":
    sys.exit(main())
