"""``scripts/dev-services``: what a fleet of coordinators and workers needs beside itself, until it is interrupted."""

from __future__ import annotations

import signal
import threading

from tests.support.databases import new_server
from tests.support.kafka_server import KafkaServer
from tests.support.redis_server import RedisServer


def main() -> None:
    """Start them, say where they are, wait, and remove them."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    postgres, kafka = new_server(), KafkaServer()
    try:
        with RedisServer.running() as redis:
            postgres.start()
            kafka.start()
            postgres.create_database("txcoord_log")
            print(f"export TXCOORD_LOG__URL={postgres.url('txcoord_log')}")
            print(f"export TXCOORD_KAFKA__BOOTSTRAP_SERVERS={kafka.address}")
            print("export TXCOORD_KAFKA__REPLICATION_FACTOR=1 TXCOORD_KAFKA__MIN_INSYNC_REPLICAS=1")
            print(f"export TXCOORD_REDIS__URL={redis.url}")
            print(
                "# then, in other terminals: txcoord migrate; txcoord serve; txcoord worker. Ctrl-C here ends them all",
                flush=True,
            )
            ended.wait()
    finally:
        kafka.remove()
        postgres.remove()


if __name__ == "__main__":
    main()
