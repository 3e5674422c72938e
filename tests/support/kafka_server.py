"""A throw-away Kafka of one broker, from what ``scripts/test`` brings into the checkout's ``.cache/kafka``."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar

from tests.support.databases import new_folder
from txcoord.testing.servers import Server, ServerError, bindable, environment

_FETCHED = Path(__file__).resolve().parents[2] / ".cache" / "kafka"

_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    # One that was killed comes back as soon as its old registration is over.
    "broker.heartbeat.interval.ms": "200",
    "broker.session.timeout.ms": "1000",
    "num.network.threads": "1",
    "num.io.threads": "2",
    # Nothing appears by itself: what needs a topic makes it.
    "auto.create.topics.enable": "false",
    "log.cleaner.dedupe.buffer.size": "8388608",
    "log.retention.check.interval.ms": "1000",
}


class KafkaServer(Server):
    """One broker with a data folder of its own, which outlives it. It runs as the present user, also as root."""

    product: ClassVar = "Kafka"
    stop_signals: ClassVar = ((signal.SIGTERM, 20.0),)

    def __init__(self, port: int | None = None) -> None:
        super().__init__(new_folder("kafka"), port=port, die_with_parent=True)
        self._said_before = 0

    @property
    def address(self) -> str:
        """For ``bootstrap_servers``."""
        return f"127.0.0.1:{self.port}"

    def _choose_port(self) -> int:
        for _ in range(100):  # the controller listens on the next one
            port = 20000 + 2 * secrets.randbelow(6000)
            if bindable(port) and bindable(port + 1):
                (self.home / "port").write_text(f"{port}\n")
                return port
        raise ServerError("no two free ports between 20000 and 32000")

    def _pid_file(self) -> Path:
        return self.home / "pid"

    def _init(self, new: Path) -> None:
        if not (_FETCHED / "complete").exists():
            raise ServerError("no Kafka here: run scripts/test once, which brings one")
        shutil.copytree(_FETCHED / "formatted", new, dirs_exist_ok=True)

    def _command(self) -> list[str]:
        controller = f"127.0.0.1:{self.port + 1}"
        settings = {
            **_SETTINGS,
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "log.dirs": str(self.data),
        }
        properties = self.home / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return [
            (_FETCHED / "java").read_text().strip(), "-Xms64m", "-Xmx256m", "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
            "-cp", f"{_FETCHED}/libs/*", "kafka.Kafka", str(properties),
        ]  # fmt: skip

    def _launch(self) -> None:
        self._said_before = self.log_file.stat().st_size if self.log_file.exists() else 0
        command = self._command()
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "TERM", *command]
        with self.log_file.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                cwd=self.data,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        with self.log_file.open("rb") as log:
            log.seek(self._said_before)
            return b"Kafka Server started" in log.read()
