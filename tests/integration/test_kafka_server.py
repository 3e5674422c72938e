"""The throw-away Kafka: what is acknowledged is there after SIGKILL, on the same port."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support.kafka_server import KafkaServer
from txcoord.config import Settings
from txcoord.wiring import services


async def test_what_is_acknowledged_survives_a_kill(kafka: KafkaServer) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    await admin.create_topics([NewTopic("survives", num_partitions=1, replication_factor=1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=kafka.address, acks="all", enable_idempotence=True)
    await producer.start()
    await producer.send_and_wait("survives", b"one")
    await producer.stop()
    address = kafka.address

    kafka.kill9()
    kafka.start()

    assert kafka.address == address
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.address, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition("survives", 0)])
    assert (await consumer.getone()).value == b"one"
    await consumer.stop()


async def test_doctor_says_which_topics_are_not_there(kafka: KafkaServer) -> None:
    said = {"bootstrap_servers": kafka.address, "prefix": "doctor"}
    [found] = await services.look(Settings.model_validate({"kafka": said}))
    [finding] = found.findings
    assert (finding.reason, finding.severity) == ("KAFKA_UNAVAILABLE", "warning")
    assert "topics are not there: doctor." in finding.fact
