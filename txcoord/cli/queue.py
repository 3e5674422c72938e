"""`txcoord queue`: what waits on Kafka. `txcoord worker`: carries it out."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from . import console, settings

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from ..adapters.kafka import KafkaConnection, KafkaQueueSettings
    from ..config import Settings

app = typer.Typer(no_args_is_help=True, help="What waits on Kafka for its next attempt.")

T = TypeVar("T")

_SHOWN = 60


def worker(
    name: Annotated[
        str | None, typer.Option("--name", help="Name of this node. Default: host, worker and process.")
    ] = None,
    config: settings.ConfigFile = None,
) -> None:
    """Carry out what waits on Kafka, until SIGTERM or SIGINT: then it drains, and leaves with 0.

    A node without an API, with the settings of the coordinators. Start and stop any number, in any order.
    """
    from .serve import configure_logs, run_loop, until_signal

    loaded = settings.load(config)
    _with_kafka(loaded)
    if loaded.log.url.get_secret_value().startswith("sqlite"):
        console.fail(
            console.CONFIG, "a log on SQLite has one node: workers need one on PostgreSQL or MariaDB"
        )
    name = name or loaded.node.name or f"{socket.gethostname()}-worker-{os.getpid()}"
    loaded = loaded.model_copy(
        update={
            "node": loaded.node.model_copy(update={"name": name}),
            "kafka": loaded.kafka.model_copy(update={"consume": True}),
        }
    )
    configure_logs(loaded)

    async def run() -> None:
        from ..wiring import Node

        await until_signal(Node(loaded, role="worker"))

    run_loop(run)


@app.command()
def status(config: settings.ConfigFile = None, json: settings.Json = False) -> None:
    """Show the topics, how many records are not consumed, and who consumes them."""
    loaded = settings.load(config)
    _with_kafka(loaded)

    async def ask() -> Any:
        from ..adapters.kafka.looking import status

        return await status(*_kafka(loaded))

    topics, group = _asked(ask())
    if json:
        for t in topics:
            console.emit(
                {
                    "topic": t.topic,
                    "what": t.what,
                    "partitions": t.partitions,
                    "records": t.records,
                    "behind": t.behind,
                }
            )
        console.emit({"group": group.group, "state": group.state, "members": list(group.members)})
        return
    rows = [
        (
            t.topic,
            str(t.partitions) if t.partitions else "not there",
            str(t.records),
            str(t.behind) if t.what == "retry" else "-",
        )
        for t in topics
    ]
    console.table(("TOPIC", "PARTITIONS", "RECORDS", "BEHIND"), rows)
    who = ", ".join(group.members) or "nobody"
    console.say(f"group {group.group} ({group.state.lower() or 'unknown'}): {who}")


@app.command()
def poison(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="The last so many.")] = 50,
    config: settings.ConfigFile = None,
    json: settings.Json = False,
) -> None:
    """Show the records that could not be read: where they came from, why, and what is in them."""
    loaded = settings.load(config)
    _with_kafka(loaded)

    async def ask() -> Any:
        from ..adapters.kafka.looking import poison

        return await poison(_kafka(loaded)[0], loaded.kafka.prefix, limit)

    records = _asked(ask())
    if json:
        import base64

        for r in records:
            console.emit(
                {
                    "partition": r.partition,
                    "offset": r.offset,
                    "at_us": r.at_us,
                    "topic": r.topic,
                    "from_partition": r.from_partition,
                    "from_offset": r.from_offset,
                    "reason": r.reason,
                    "key_base64": base64.b64encode(r.key or b"").decode(),
                    "value_base64": base64.b64encode(r.value or b"").decode(),
                }
            )
        return
    if not records:
        console.say("no record was poison")
        return
    rows = [
        (
            f"{r.partition}:{r.offset}",
            console.moment(r.at_us),
            f"{r.topic}:{r.from_partition}:{r.from_offset}",
            r.reason,
            repr(r.value)[: _SHOWN + 3],
        )
        for r in records
    ]
    console.table(("RECORD", "SET ASIDE", "FROM", "WHY", "VALUE"), rows)


def _with_kafka(loaded: Settings) -> None:
    if not loaded.kafka.addresses:
        console.fail(console.CONFIG, "no Kafka is set: TXCOORD_KAFKA__BOOTSTRAP_SERVERS=host:9092")


def _kafka(loaded: Settings) -> tuple[KafkaConnection, KafkaQueueSettings]:
    from ..wiring.queue import kafka_connection, kafka_queue

    return kafka_connection(loaded.kafka, "txcoord-cli"), kafka_queue(loaded.kafka)


def _asked(work: Coroutine[Any, Any, T]) -> T:
    """What Kafka answers; or an end with one line."""
    from .serve import run_loop

    answer: list[T] = []

    async def run() -> None:
        from ..wiring import ExitCode, StartError

        try:
            answer.append(await work)
        except StartError:
            raise
        except Exception as error:
            if not isinstance(error, OSError | TimeoutError) and not _of_kafka(error):
                raise
            raise StartError(
                ExitCode.UNAVAILABLE, "QUEUE_UNAVAILABLE", f"Kafka cannot be asked: {error}"
            ) from error

    run_loop(run)
    return answer[0]


def _of_kafka(error: Exception) -> bool:
    from aiokafka.errors import KafkaError

    return isinstance(error, KafkaError)
