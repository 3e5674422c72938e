"""Everything that an outage happens to: servers, coordinators, workers, participants, as processes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg

from tests.faults.outage_participant import NAMES, TABLE
from tests.faults.outage_plan import REPORTING, Form
from tests.support.kafka_server import KafkaServer
from tests.support.redis_server import RedisServer
from txcoord.adapters.kafka.tiers import Tiers
from txcoord.config.kafka import KafkaSettings
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import TXCOORD, Managed, coordinator, free_port, run_txcoord
from txcoord_client.protocol import postgresql as pg

PREFIX: Final = "outage"
COORDINATORS: Final = ("c1", "c2", "c3")
WORKERS: Final = ("w1", "w2")
STOCK_KILLED: Final = "stock is killed"
STOCK_BACK: Final = "stock is back"
BROKER_BACK: Final = "the broker is back"
POISON: Final = (b"\xffgarbage", b'{"v": 99, "tx": "later"}')
# Who wrote when that a branch waits until when: it is written down by the log's own server.
_RECORDER: Final = """
CREATE TABLE outage_due (tx_id uuid, branch text, attempts int, reason text, failures int,
    due_us bigint, at_us bigint);
CREATE FUNCTION outage_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO outage_due VALUES (NEW.tx_id, NEW.id, NEW.attempts, NEW.reason,
        coalesce(nullif(NEW.action, '')::jsonb ->> 'failures', '0')::int, NEW.next_attempt_us,
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    RETURN NULL;
END $$;
CREATE TRIGGER outage_note AFTER INSERT OR UPDATE ON txcoord_branch FOR EACH ROW
    WHEN (NEW.next_attempt_us > 0) EXECUTE FUNCTION outage_note();
"""


def now_us() -> int:
    """The clock of all."""
    return time.time_ns() // 1000


@dataclass
class Place:
    """It runs."""

    folder: Path
    postgres: PostgresServer
    kafka: KafkaServer
    redis: RedisServer
    databases: dict[str, str]
    nodes: dict[str, Managed] = field(default_factory=dict)
    participants: dict[str, Managed] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    """When what happened, in µs."""
    say: Callable[[str], None] = print
    began: float = 0.0
    lateness_s: list[float] = field(default_factory=list)
    """Of timers in the process of the clients."""

    def mark(self, what: str) -> None:
        """It happens now."""
        self.marks[what] = now_us()
        self.say(f"{time.monotonic() - self.began:7.1f} s  {what}")

    @property
    def addresses(self) -> list[str]:
        """Of the coordinators."""
        return [self.nodes[name].address for name in COORDINATORS]

    @property
    def targets(self) -> dict[str, str]:
        """Where participants are called."""
        return {name: f"grpc://{process.address}" for name, process in self.participants.items()}

    def calls(self, name: str) -> list[dict[str, Any]]:
        """What a participant has written down."""
        path = self.folder / f"{name}.calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    async def fetch(self, database: str, query: str) -> list[Any]:
        """Rows of a database."""
        conn = await asyncpg.connect(self.postgres.url(database, "postgresql"))
        try:
            return list(await conn.fetch(query))
        finally:
            await conn.close()

    def new_worker(self, name: str) -> Managed:
        """One more, not started."""
        env = {**self.nodes["c1"].env, "TXCOORD_NODE__NAME": name, "TXCOORD_KAFKA__CONSUME": "true"}
        env.pop("TXCOORD_LISTEN")
        command = [*TXCOORD, "worker", "--name", name]
        self.nodes[name] = Managed(
            name, command, log=self.folder / f"{name}.log", env=env, address="", cwd=self.folder
        )
        return self.nodes[name]


@asynccontextmanager
async def placed(
    folder: Path,
    form: Form,
    postgres: PostgresServer,
    kafka: KafkaServer,
    redis: RedisServer,
    say: Callable[[str], None],
) -> AsyncIterator[Place]:
    """All but Kafka is started; that is started last, and nobody has waited for it."""
    databases = {name: f"outage_{name}" for name in ("log", REPORTING, *NAMES)}
    for database in databases.values():
        await asyncio.to_thread(postgres.create_database, database)
    place = Place(folder, postgres, kafka, redis, databases, say=say, began=time.monotonic())
    async with AsyncExitStack() as stack:
        stack.callback(lambda: [postgres.drop_database(name) for name in databases.values()])
        settings = {
            "KAFKA__BOOTSTRAP_SERVERS": kafka.address,
            "KAFKA__PREFIX": PREFIX,
            "KAFKA__CONSUME": "false",
            "KAFKA__PARTITIONS": "4",
            "KAFKA__SESSION_TIMEOUT": "6s",
            "EVENTS__ENABLED": "true",
            "REDIS__URL": redis.url,
            "RECOVERY__LEASE": "3s",
            "RECOVERY__SCAN_INTERVAL": "1s",
            "LOG_FORMAT": "json",
            "TARGETS__ALLOW": "loopback",
            f"RESOURCES__{REPORTING}__URL": postgres.url(databases[REPORTING]),
            f"RESOURCES__{REPORTING}__EXECUTE_URL": postgres.url(databases[REPORTING]),
            **form.settings,
        }
        for name in COORDINATORS:
            place.nodes[name] = coordinator(
                folder, resources={}, log_url=postgres.url(databases["log"]), name=name, settings=settings
            )
        for name in WORKERS:
            place.new_worker(name)
        sql = ";".join([*pg.ddl(), pg.set_identity("0" * 32), TABLE])
        for name in (REPORTING, *NAMES):
            await asyncio.to_thread(postgres.sql, sql, databases[name])
        for name in NAMES:
            place.participants[name] = _participant(place, name)
        await asyncio.to_thread(run_txcoord, "migrate", env=place.nodes["c1"].env, cwd=folder)
        await asyncio.to_thread(postgres.sql, _RECORDER, databases["log"])
        stack.callback(
            lambda: [process.kill9() for process in (*place.nodes.values(), *place.participants.values())]
        )
        waits = {name: 0 if name in WORKERS else 60 for name in place.nodes}
        starts = [asyncio.to_thread(place.nodes[name].start, wait_s=wait) for name, wait in waits.items()]
        starts += [asyncio.to_thread(p.start, wait_s=60) for p in place.participants.values()]
        await asyncio.gather(*starts)
        place.mark("nodes and participants are there, Kafka is not")
        yield place


def tiers_us(place: Place) -> tuple[int, ...]:
    """Of the retry topics, shortest first."""
    chosen = place.nodes["c2"].env.get("TXCOORD_KAFKA__TIERS")
    return (KafkaSettings(tiers=chosen) if chosen else KafkaSettings()).tiers_us


def retry_topics(place: Place) -> list[str]:
    """Shortest first."""
    return list(Tiers(PREFIX, tiers_us(place)).delay_us)


def _participant(place: Place, name: str) -> Managed:
    port = free_port()
    command = [
        sys.executable, "-m", "tests.faults.outage_participant", name, str(port),
        place.postgres.url(place.databases[name]), str(place.folder / f"{name}.calls"),
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    return Managed(name, command, log=place.folder / f"{name}.log", address=f"127.0.0.1:{port}", cwd=root)
