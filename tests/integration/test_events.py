"""Events on a real Kafka: complete, in order, as the log has it, and as the CloudEvents SDK reads them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support.events import Event, replay, told
from tests.support.http_api import http_node
from tests.support.kafka_server import KafkaServer
from tests.support.node import new_tx, xa
from txcoord.adapters.events.cloudevents import record_of
from txcoord.adapters.kafka.connection import KafkaConnection
from txcoord.adapters.kafka.publishing import KafkaPublisher
from txcoord.adapters.sql.outbox import SqlOutbox
from txcoord.config import ConfigError, load
from txcoord.core.events import Commit, Operate, Rollback
from txcoord.core.model import Announcement, Audit, Topic, Tx
from txcoord.outgoing import Outgoing, Publishing, Record
from txcoord.ports import Query
from txcoord.wiring import Node


def with_events(kafka: KafkaServer, prefix: str) -> dict[str, Any]:
    return {
        "kafka": {"bootstrap_servers": kafka.address, "prefix": prefix, "partitions": 2, "tiers": "1s"},
        "events": {"enabled": True},
    }


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110 - it is asked of a database
        await asyncio.sleep(0.05)


async def published(node: Node) -> None:
    """Until the outbox is empty."""

    async def empty() -> bool:
        return (await node.log.figures()).outbox == 0

    await until(empty)


async def work(node: Node, count: int) -> list[Tx]:
    """Commits and rollbacks, side by side."""
    coordinator = node.coordinator

    async def one(number: int) -> Tx:
        tx = new_tx(coordinator.clock, gid=f"g-{secrets.token_hex(4)}")
        tx = replace(tx, name="order", labels={"n": str(number)})
        if number % 3:
            return await coordinator.commit(Commit(tx, begun=False))
        return await coordinator.rollback(Rollback(tx, reason="CHANGED_MIND"), begun=False)

    return list(await asyncio.gather(*map(one, range(count))))


async def parked(node: Node) -> Tx:
    """One whose branch an operator parks, and skips."""
    coordinator = node.coordinator
    tx = new_tx(coordinator.clock)
    await coordinator.commit(Commit(replace(tx, branches=(xa(tx, "1", "gone"),)), begun=False))
    for action in ("park", "skip"):
        audit = Audit("ann", "it is gone", action, coordinator.clock.now_us())
        await coordinator.operate(tx.tx_id, Operate(action, "1", audit))
    return tx


def whats(events: Sequence[Any]) -> list[str]:
    return [event.type.removeprefix("txcoord.") for event in events]


async def seen_of(kafka: KafkaServer, prefix: str, tx: Tx) -> list[Event]:
    async with asyncio.timeout(60):
        while not (seen := told(await replay(kafka, f"{prefix}.events")).get(tx.tx_id)):  # noqa: ASYNC110 - of a broker
            await asyncio.sleep(0.1)
    return seen


async def as_the_log_has_it(node: Node, kafka: KafkaServer, prefix: str) -> None:
    """Replaying the topic from its start gives each transaction's outcome."""
    seen = told(await replay(kafka, f"{prefix}.events"))
    rows = {tx.tx_id: tx for tx in await node.log.query(Query(limit=10_000))}
    assert set(seen) == set(rows)
    for tx_id, row in rows.items():
        events = seen[tx_id]
        assert whats(events)[0] == "transaction.decided"
        last = [
            e for e in events if e.type in ("txcoord.transaction.committed", "txcoord.transaction.aborted")
        ]
        assert [e.type for e in last] == [f"txcoord.transaction.{row.state}"]
        for event in events:
            assert (event.subject, event.data["namespace"]) == (tx_id, row.namespace)
            assert event.source.startswith("/txcoord/")
            assert event.data["decision"] == row.decision
            assert event.data["decided_by"] == row.decided_by
            assert event.data["reason"] == row.reason
        assert last[0].data["labels"] == row.labels


async def test_the_topic_says_what_the_log_has_also_after_the_broker_was_away(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    prefix = f"events-{secrets.token_hex(4)}"
    async with http_node(tmp_path, **with_events(kafka, prefix)) as node:
        await work(node, 40)
        stuck = await parked(node)
        await published(node)
        kafka.kill9()
        more = await work(node, 20)
        figures = await node.log.figures()
        assert figures.outbox == 2 * len(more)
        kafka.start()
        await published(node)
        async with asyncio.timeout(60):  # A broker that was killed does not show all at once what it has.
            while len(told(await replay(kafka, f"{prefix}.events")).get(stuck.tx_id, ())) < 4:  # noqa: ASYNC110 - of a broker
                await asyncio.sleep(0.1)
        await as_the_log_has_it(node, kafka, prefix)
        seen = await seen_of(kafka, prefix, stuck)
        assert whats(seen) == [
            "transaction.decided",
            "branch.parked",
            "branch.heuristic",
            "transaction.committed",
        ]
        (dead,) = await replay(kafka, f"{prefix}.dead-letter")
        assert (dead.id, dead.type) == (seen[1].id, "txcoord.branch.parked")
        assert dead.data["branch"]["target"] == "gone"
        text = node.observed.metrics.render().decode()
        assert 'txcoord_events_total{outcome="sent",topic="dead_letters"} 1.0' in text


async def test_a_relay_that_dies_after_publishing_only_tells_twice(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    prefix = f"events-{secrets.token_hex(4)}"
    async with http_node(tmp_path, **with_events(kafka, prefix)) as node:
        await work(node, 1)  # The topics are there then.
        await published(node)
        await node.events.stop()
        await work(node, 10)
        outbox = SqlOutbox(node.log)
        waiting = await outbox.take([], 100)
        assert len(waiting) == 20
        names = {Topic.EVENTS: f"{prefix}.events"}
        assert node.coordinator.identity is not None
        log_id = node.coordinator.identity.log_id
        dies = KafkaPublisher(KafkaConnection((kafka.address,)), names)
        for end in (False, True):
            some = [out for out in waiting if (out.announcement.what != "transaction.decided") is end]
            told_ = await dies.publish([record_of(log_id, out, Topic.EVENTS) for out in some])
            assert {answer for answer, _ in told_} == {Publishing.SENT}
        await dies.close()  # Nothing was deleted.
    async with Node(node.settings) as again:
        await published(again)
        events = await replay(kafka, f"{prefix}.events")
        assert len(events) == 2 + 2 * 20
        assert sum(map(len, told(events).values())) == 22
        await as_the_log_has_it(again, kafka, prefix)


async def test_a_record_that_the_broker_refuses_does_not_keep_others_back(kafka: KafkaServer) -> None:
    topic = f"small-{secrets.token_hex(4)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    configs = {"max.message.bytes": "2000"}
    await admin.create_topics([NewTopic(topic, 1, 1, topic_configs=configs)])
    await admin.close()
    publisher = KafkaPublisher(KafkaConnection((kafka.address,)), {Topic.EVENTS: topic})
    values = [b"a" * 100, b"b" * 5_000, b"c" * 100, b"d" * 2_000_000, b"e" * 100]
    told_ = await publisher.publish([Record(Topic.EVENTS, str(n), v) for n, v in enumerate(values)])
    sent, refused = Publishing.SENT, Publishing.REFUSED
    assert [answer for answer, _ in told_] == [sent, refused, sent, refused, sent]
    assert "Large" in told_[1][1]
    await publisher.close()


async def test_a_broker_that_is_away_is_no_ones_fault() -> None:
    connection = KafkaConnection(("127.0.0.1:1",))
    publisher = KafkaPublisher(connection, {Topic.EVENTS: "x"}, timeout_s=5)
    told_ = await publisher.publish([Record(Topic.EVENTS, "1", b"x")] * 3)
    assert {answer for answer, _ in told_} == {Publishing.AWAY}
    await publisher.close()


def test_events_without_kafka_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_EVENTS__ENABLED", "true")
    with pytest.raises(ConfigError) as refused:
        load(None)
    (problem,) = refused.value.problems
    assert "events.enabled needs Kafka" in problem
    assert "TXCOORD_KAFKA__BOOTSTRAP_SERVERS" in problem


def test_an_event_is_as_documented() -> None:
    told_ = Announcement(
        2, 9_999, "transaction.committed", "", 1_700_000_000_000_001, Topic.EVENTS, '{"a":1}'
    )
    record = record_of("0123456789", Outgoing("ab" * 16, told_), Topic.EVENTS)
    assert record.value.decode() == (
        '{"specversion":"1.0","id":"abababababababababababababababab.2.9999","source":"/txcoord/0123456789",'
        '"type":"txcoord.transaction.committed","subject":"abababababababababababababababab",'
        '"time":"2023-11-14T22:13:20.000001Z","datacontenttype":"application/json",'
        '"sequence":"000000000209999","data":{"a":1}}'
    )
    assert record.key == "ab" * 16
