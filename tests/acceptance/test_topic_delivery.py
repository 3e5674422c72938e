"""Messages and notifications on topics of a real Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import CommitFailedError, IllegalStateError
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from tests.support.acceptance import eventually
from tests.support.http_api import http_node
from tests.support.kafka_server import KafkaServer
from txcoord.config import ConfigError, load
from txcoord.wiring import Node
from txcoord_client import Aborted, Coordinator, Refused, Rejected, Retry
from txcoord_client.inbox import Inbox, id_of
from txcoord_client.webhooks import CloudEvent

OFTEN = Retry(first=0.1, factor=1, cap=0.1)


async def make(kafka: KafkaServer, topic: str, **configs: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    try:
        await admin.start()
        made = await admin.create_topics([NewTopic(topic, 2, 1, topic_configs=configs)])
        assert [code for _, code, *_ in made.topic_errors] == [0]
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def consuming(kafka: KafkaServer, *topics: str, **more: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """Not to be cancelled while it starts: the library would leave connections open."""
    consumer = AIOKafkaConsumer(*topics, bootstrap_servers=kafka.address, enable_auto_commit=False, **more)
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def records(kafka: KafkaServer, topic: str) -> list[Any]:
    """All that is on it."""
    async with consuming(kafka) as consumer:
        parts = [TopicPartition(topic, n) for n in range(2)]
        consumer.assign(parts)
        await consumer.seek_to_beginning(*parts)
        ends, found = await consumer.end_offsets(parts), []
        for part in parts:
            while await consumer.position(part) < ends[part]:
                found += [r for some in (await consumer.getmany(part, timeout_ms=500)).values() for r in some]
        return found


@dataclass
class Place:
    kafka: KafkaServer
    node: Node
    coord: Coordinator
    prefix: str

    async def came(self, topic: str, count: int) -> list[Any]:
        async def there() -> list[Any]:
            found = await records(self.kafka, topic)
            return found if len({dict(r.headers)["txcoord-message-id"] for r in found}) >= count else []

        found: list[Any] = await eventually(there, what=f"{count} records are on {topic}", within=60)
        return found


@pytest.fixture
async def place(kafka: KafkaServer, tmp_path: Path) -> AsyncIterator[Place]:
    prefix = f"deliver-{secrets.token_hex(4)}"
    how = {
        "bootstrap_servers": kafka.address,
        "prefix": f"{prefix}-own",
        "tiers": "1s",
        "topics": f"{prefix}.*, other/{prefix}.shared, */{prefix}-all, {prefix}-own.*",
    }
    async with http_node(tmp_path, kafka=how) as node, Coordinator(node.address) as coord:
        yield Place(kafka, node, coord, prefix)


async def test_a_record_says_what_it_is_of(place: Place) -> None:
    topic = f"{place.prefix}.paid"
    await make(place.kafka, topic)
    async with place.coord.begin("order", wait="delivered", headers={"traceparent": "00-1"}) as g:
        ids = [g.message(f"topic:{topic}", {"order": 7}, key="k7", headers={"Shop": "1", "txcoord-x": "2"})]
        event = CloudEvent("shop.paid", subject="7", extensions={"shop": "1"})
        ids.append(g.notify(f"topic:{topic}", {"order": 8}, key=b"k8", event=event))
        whole = CloudEvent("shop.paid", structured=True)
        ids.append(g.message(f"topic:{topic}", {"order": 9}, message_id="own", event=whole))
    assert ids[2] == "own"
    found = {dict(r.headers)["txcoord-message-id"].decode(): r for r in await place.came(topic, 3)}
    plain = found[ids[0]]
    headers = {name: value.decode() for name, value in plain.headers}
    assert (plain.key, plain.value) == (b"k7", b'{"order":7}')
    assert headers == {
        "traceparent": "00-1",
        "shop": "1",
        "content-type": "application/json",
        "txcoord-message-id": ids[0],
        "txcoord-namespace": "default",
        "txcoord-tx-id": g.tx_id,
        "txcoord-gid": g.tx_id,
        "txcoord-branch": ids[0].partition(".")[2],
        "txcoord-attempt": "1",
    }
    assert found[ids[1]].key == b"k8"
    for number, order in ((1, 8), (2, 9)):
        record = found[ids[number]]
        told = from_kafka_event(KafkaMessage(dict(record.headers), record.key, record.value))
        assert (told.get_type(), told.get_id(), told.get_data()) == (
            "shop.paid",
            ids[number],
            {"order": order},
        )


async def test_a_broker_that_is_down_and_a_topic_that_is_not_there_are_failures(place: Place) -> None:
    topic = f"{place.prefix}.late"
    ids = set()
    for _ in range(3):
        async with place.coord.begin("order") as g:
            ids.add(g.message(f"topic:{topic}", {"order": 1}, retry=OFTEN))

    async def why() -> str:
        tx = await place.node.log.read([g.tx_id])
        return tx[g.tx_id].branches[0].reason if tx else ""

    async def says_so() -> bool:
        return (await why()).startswith("UNKNOWN_TOPIC")

    await eventually(says_so, what="the topic is not there", within=60)
    place.kafka.kill9()
    async with place.coord.begin("order") as g:
        ids.add(g.message(f"topic:{topic}", {"order": 1}, retry=OFTEN))

    for n in range(5):
        async with place.coord.begin("order") as g2:
            ids.add(g2.message(f"topic:{topic}", n, order_key="k", retry=OFTEN))

    async def away() -> bool:
        return (await why()).startswith(("UNAVAILABLE", "BREAKER_OPEN", "TIMED_OUT"))

    await eventually(away, what="the broker is away", within=60)
    place.kafka.start()
    await make(place.kafka, topic)
    found = await place.came(topic, 9)
    assert {dict(r.headers)["txcoord-message-id"].decode() for r in found} == ids
    # The order key is the record's key; repeats are left out.
    assert list(dict.fromkeys(r.value for r in found if r.key == b"k")) == [b"%d" % n for n in range(5)]


async def test_a_record_that_is_too_large_is_parked_and_those_beside_it_arrive(place: Place) -> None:
    topic = f"{place.prefix}.small"
    await make(place.kafka, topic, **{"max.message.bytes": "2000"})
    async with place.coord.begin("order") as g:
        for size in (10, 5_000, 20, 3_000):
            g.message(f"topic:{topic}", b"x" * size, key="k", retry=OFTEN)

    async def parked() -> list[str]:
        found = [d.reason for d in await place.coord.deliveries(parked=True)]
        return found if len(found) == 2 else []

    for reason in await eventually(parked, what="two are parked", within=60):
        assert reason.startswith("REFUSED_IN_PHASE_TWO: TOO_LARGE")
    assert sorted(len(r.value) for r in await place.came(topic, 2)) == [10, 20]


CONSUMER = """
import asyncio, json, os, signal, sys
from aiokafka import AIOKafkaConsumer
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from txcoord_client.inbox import Inbox, id_of

async def main(brokers, topic, group, url):
    inbox, engine = None, create_async_engine(url)
    inbox = Inbox("orders", engine)
    async def note(db, name):
        await db.execute(text("INSERT INTO note VALUES (:name)"), {"name": name})
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=brokers, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest",
        session_timeout_ms=6000, heartbeat_interval_ms=500,
    )
    await consumer.start()
    taken = 0
    async for record in consumer:
        await inbox.take(id_of(record), note, json.loads(record.value)["name"])
        taken += 1
        if taken == 5:
            os.kill(os.getpid(), signal.SIGKILL)  # It is done, and its offset is not committed.
        if taken % 2:
            await consumer.commit()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.timeout(180)
async def test_consumers_with_an_inbox_act_once_whatever_comes_again(place: Place, tmp_path: Path) -> None:
    """One consumer is killed, another joins while the next one works, records fail for a while, some are refused."""
    topic, count = f"{place.prefix}.inbox", 40
    await make(place.kafka, topic)
    url = f"sqlite+aiosqlite:///{tmp_path}/receiver.db"
    engine = create_async_engine(url)
    inbox = Inbox("orders", engine)
    await inbox.make_table()
    async with engine.begin() as conn:
        await conn.execute(text("CREATE TABLE note (name text NOT NULL)"))
    for n in range(count):
        async with place.coord.begin("order") as g:
            g.message(f"topic:{topic}", {"name": f"n{n}"}, key=str(n))
    for record in await place.came(topic, count):  # Their sender repeats itself.
        async with place.coord.begin("order") as g:
            own = dict(record.headers)["txcoord-message-id"].decode()
            g.message(f"topic:{topic}", record.value, key=record.key, message_id=own)
    args = [place.kafka.address, topic, place.prefix, url]
    dies = subprocess.Popen([sys.executable, "-c", CONSUMER, *args])
    fails, refused, first = {"n7": 2, "n30": 1}, [], []

    @inbox
    async def note(db: AsyncConnection, name: str) -> None:
        await db.execute(text("INSERT INTO note VALUES (:name)"), {"name": name})
        if name.endswith("9"):
            raise Refused("NO_NINES")
        if fails.get(name, 0):
            fails[name] -= 1
            raise ZeroDivisionError

    def joins() -> contextlib.AbstractAsyncContextManager[AIOKafkaConsumer]:
        return consuming(
            place.kafka,
            topic,
            group_id=place.prefix,
            auto_offset_reset="earliest",
            heartbeat_interval_ms=500,
        )

    async def consume(consumer: AIOKafkaConsumer) -> None:
        async for record in consumer:
            name = json.loads(record.value)["name"]
            try:
                took = await note(id_of(record), name)
            except ZeroDivisionError:
                consumer.seek(TopicPartition(record.topic, record.partition), record.offset)
                continue
            if took.refused:
                refused.append(name)
            elif took.first:
                first.append(name)
            with contextlib.suppress(CommitFailedError, IllegalStateError):
                await consumer.commit()

    async def all_there() -> bool:
        async with engine.connect() as conn:
            found = (await conn.execute(text("SELECT count(*) FROM txcoord_inbox"))).scalar_one()
        return bool(found == count)

    assert await asyncio.to_thread(dies.wait, 90) == -9
    tasks = []
    async with contextlib.AsyncExitStack() as stack:
        try:
            tasks.append(asyncio.create_task(consume(await stack.enter_async_context(joins()))))
            await eventually(lambda: first, what="the first one works", within=90)
            tasks.append(asyncio.create_task(consume(await stack.enter_async_context(joins()))))
            await eventually(all_there, what="all were taken", within=90)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    async with engine.connect() as conn:
        notes = list((await conn.execute(text("SELECT name FROM note"))).scalars())
    await engine.dispose()
    # The one that was killed refuses nothing.
    assert len(notes) == len(set(notes)) == count - len(set(refused))
    assert {*notes, *refused} == {f"n{n}" for n in range(count)}
    assert len(set(notes) - set(first)) == len(notes) - len(first) == 5
    assert not any(fails.values()) or {"n7", "n30"} - set(first)


async def test_what_is_refused_before_anything_is_written(place: Place) -> None:
    p = place.prefix
    for namespace, topic, why in (
        ("default", "elsewhere", "add elsewhere to kafka.topics"),
        ("default", f"{p}-own.retry.1s", "belongs to Kafka or to txcoord itself"),
        ("default", "a/b", "is no name of a topic"),
        ("other", f"{p}.paid", f"add other/{p}.paid to kafka.topics"),
    ):
        async with Coordinator(place.node.address, namespace=namespace) as coord:
            with pytest.raises((Rejected, Aborted), match="TARGET_NOT_ALLOWED") as refused:
                async with coord.begin("order") as g:
                    g.message(f"topic:{topic}", {})
            assert why in str(refused.value)
    for more in ({"operation": "x"}, {"key": "k" * 2000}):
        with pytest.raises((Rejected, Aborted)):
            async with place.coord.begin("order") as g:
                g.message(f"topic:{p}.paid", {}, **more)  # type: ignore[arg-type]
    with pytest.raises((Rejected, Aborted), match="partition_key"):
        async with place.coord.begin("order") as g:
            g.message("https://example.com/x", {}, key="k")


async def test_without_kafka_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with http_node(tmp_path) as node, Coordinator(node.address) as coord:
        with pytest.raises((Rejected, Aborted), match="this coordinator has no Kafka"):
            async with coord.begin("order") as g:
                g.message("topic:orders", {})
    monkeypatch.setenv("TXCOORD_KAFKA__TOPICS", "orders.*")
    with pytest.raises(ConfigError) as refused:
        load(None)
    assert "bootstrap_servers" in str(refused.value.problems)
