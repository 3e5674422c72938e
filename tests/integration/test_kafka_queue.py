"""The queue on Kafka, where Kafka or a worker goes away, and where somebody else has been at it."""

from __future__ import annotations

import asyncio

from aiokafka.admin import NewTopic

from tests.support.kafka_queue import (
    committed,
    connection_to,
    new_settings,
    queue_node,
    records_of,
    until,
    until_committed,
)
from tests.support.kafka_server import KafkaServer
from txcoord.adapters.kafka import TopicSettings


async def test_never_early_whatever_the_delay_and_no_later_than_its_tier(kafka: KafkaServer) -> None:
    settings = new_settings()
    async with queue_node(kafka, settings) as node:
        delays = [0.05 * n for n in range(60)]
        for n, delay in enumerate(delays):
            node.put(f"tx{n}", delay, target=f"target{n % 3}")

        await until(lambda: len(node.carried.done) == len(delays))

        assert not node.carried.early
        assert len(node.carried.ids) == len(delays)
        assert {"here": 0, "due": 0, "sending": 0}.items() <= node.queue.depth().items()


async def test_starts_without_kafka_and_finds_it_later(kafka: KafkaServer) -> None:
    settings = new_settings()
    kafka.stop()
    async with queue_node(kafka, settings) as node:
        node.put("lost-or-not", 0.3)
        node.put("here", 0.1)
        await until(lambda: node.carried.ids == {"here"})  # What is due at once needs no Kafka.
        kafka.start()

        async def try_some() -> None:
            n = 0
            while "found" not in {tx_id[:5] for tx_id in node.carried.ids}:
                node.put(f"found{n}", 0.3)
                n += 1
                await asyncio.sleep(0.2)

        await asyncio.wait_for(try_some(), 45)
        assert not node.carried.early


async def test_what_waits_outlives_the_broker(kafka: KafkaServer) -> None:
    settings = new_settings()
    async with queue_node(kafka, settings) as node:
        dues = [node.put(f"tx{n}", 1.7) for n in range(50)]
        await until(lambda: node.queue.depth()["sending"] == 0)
        kafka.kill9()
        kafka.start()

        await until(lambda: node.carried.ids == {due.tx_id for due in dues})
        node.put("after", 0.5)
        await until(lambda: "after" in node.carried.ids)
        assert not node.carried.early


async def test_a_rebalance_in_the_middle_of_a_batch_loses_nothing(kafka: KafkaServer) -> None:
    settings = new_settings()
    async with queue_node(kafka, settings) as first:
        first.carried.gate.clear()
        dues = [first.put(f"tx{n}", 0.2) for n in range(40)]
        await until(lambda: len({due.tx_id for due, _ in first.carried.came}) == len(dues))
        async with queue_node(kafka, settings) as second:
            # It is given partitions of the first, and reads what that one has not said to be consumed.
            await until(lambda: len(second.carried.came) > 0)
            assert not first.carried.done
            # The first goes without having ended anything: as it does when it is killed, it says nothing.
            await first.stop()
            await until(lambda: second.carried.ids == {due.tx_id for due in dues})
            await until_committed(kafka, settings, len(dues))


async def test_who_is_held_leaves_the_group_and_comes_back(kafka: KafkaServer) -> None:
    settings = new_settings()
    async with queue_node(kafka, settings) as first, queue_node(kafka, settings) as second:
        first.carried.gate.clear()
        sooner = first.put("sooner", 5.0)
        await until(lambda: bool(first.queue._reader._partitions and second.queue._reader._partitions))
        waits = [first.put(f"tx{n}", 0.2) for n in range(40)]
        await until(lambda: bool(first.carried.came))
        first.queue._reader.put(sooner)  # it waits in this process
        first.queue.hold(True)
        begun = len(first.carried.came)
        waits += [first.put(f"held{n}", 0.1) for n in range(5)]
        # All of it is the other's: also what the first had begun, and what had waited in its process.
        await until(lambda: second.carried.ids >= {due.tx_id for due in [*waits, sooner]})
        assert not second.carried.early
        assert first.queue._reader._consumer is None
        assert len(first.carried.came) == begun
        first.carried.gate.set()
        first.queue.hold(False)
        await until(lambda: bool(first.queue._reader._partitions and second.queue._reader._partitions))
        again = [first.put(f"again{n}", 0.2) for n in range(40)]
        await until(lambda: first.carried.ids | second.carried.ids >= {due.tx_id for due in again})
        assert first.carried.ids & {due.tx_id for due in again}


async def test_offsets_are_committed_after_the_outcome(kafka: KafkaServer) -> None:
    settings = new_settings()
    async with queue_node(kafka, settings) as first:
        first.carried.gate.clear()
        first.put("tx", 0.2)
        await until(lambda: len(first.carried.came) == 1)
    # It left in an orderly way, with the outcome open.
    assert await committed(kafka, settings) == 0
    async with queue_node(kafka, settings) as second:
        await until(lambda: second.carried.ids == {"tx"})
    assert await committed(kafka, settings) == 1


async def test_poison_is_kept_and_holds_up_nothing(kafka: KafkaServer) -> None:
    settings = new_settings()
    topic = f"{settings.prefix}.retry.200ms"
    async with queue_node(kafka, settings) as node:
        await node.queue._topics.there.wait()
        producer = connection_to(kafka).producer(max_request_size=2_000_000)
        await producer.start()
        bad: list[bytes | None] = [
            b"\xff\xfe garbage",
            b'{"v": 99, "tx_id": "x"}',
            b"[]",
            b'{"v": 1, "tx_id": 7}',
            None,
        ]
        for value in bad:
            await producer.send_and_wait(topic, value, key=b"tx")
        bad.append(b"x" * (1024 * 1024 - 100))  # as much as brokers take
        await producer.send_and_wait(topic, bad[-1], key=b"tx")
        await producer.stop()
        node.put("good", 0.2)
        await until(lambda: "good" in node.carried.ids)
        await until_committed(kafka, settings, len(bad) + 1)

    kept = await records_of(kafka, f"{settings.prefix}.poison")
    assert [record.value for record in kept] == bad
    assert node.queue.poisoned == len(bad)
    headers = dict(kept[1].headers)
    assert headers["txcoord-topic"] == topic.encode()
    assert b"version 99" in headers["txcoord-reason"]


async def test_poison_is_not_consumed_while_its_topic_is_away(kafka: KafkaServer) -> None:
    settings = new_settings(look_s=3600, topics=TopicSettings(partitions=1))
    topic, poison = f"{settings.prefix}.retry.200ms", f"{settings.prefix}.poison"
    async with queue_node(kafka, settings) as node:
        await node.queue._topics.there.wait()
        admin, producer = connection_to(kafka).admin(), connection_to(kafka).producer()
        await admin.start()
        await admin.delete_topics([poison])
        await producer.start()
        await producer.send_and_wait(topic, b"garbage")
        await producer.stop()
        for n in range(3):  # one after the other: nobody waits for the topic that is away
            node.put(f"tx{n}", 0.2)
            await until(lambda n=n: f"tx{n}" in node.carried.ids, 8)
        assert await committed(kafka, settings) == 0
        await admin.create_topics([NewTopic(poison, 1, 1)])
        await admin.close()
        await until_committed(kafka, settings, 4)
    assert [record.value for record in await records_of(kafka, poison)] == [b"garbage"]


async def test_deleted_topics_are_made_again_and_nothing_more_is_lost(kafka: KafkaServer) -> None:
    settings = new_settings()
    async with queue_node(kafka, settings) as node:
        node.put("before", 0.2)
        await until(lambda: "before" in node.carried.ids)
        admin = connection_to(kafka).admin()
        await admin.start()
        topics = [f"{settings.prefix}.retry.{tier}" for tier in ("200ms", "400ms", "800ms", "1600ms")]
        await admin.delete_topics(topics)
        await admin.close()

        n = 0
        async with asyncio.timeout(45):
            # What was on them is the log's to find. What is put there later comes.
            while not {f"tx{n - k}" for k in range(1, 6)} <= node.carried.ids or n < 20:
                node.put(f"tx{n}", 0.2)
                n += 1
                await asyncio.sleep(0.1)
                if n % 20 == 0:
                    await until(lambda n=n: f"tx{n - 1}" in node.carried.ids or node.queue.dropped > 0, 20)
        assert not node.carried.early
