"""Helpers of the tests of what `txcoord resource check` and `txcoord doctor` find."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.integration.cli_support import Desk
from tests.support.databases import new_server
from txcoord.cli import findings
from txcoord.config import LogSettings, ResourceSettings, Settings
from txcoord.testing import servers
from txcoord.testing.postgres import PostgresServer
from txcoord.wiring.diagnosis import Diagnosis, diagnose, look_at_log
from txcoord.wiring.parts import connect, open_log


class Findings:
    """What was found at one resource."""

    def __init__(self, found: Diagnosis) -> None:
        self._found = found
        self.all = [asdict(finding) for finding in found.findings]

    @property
    def shown(self) -> str:
        """As `txcoord resource check` prints it in a pipe."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            findings.show([self._found], json=False)
        return printed.getvalue()

    def one(self, reason: str, severity: str = "error", about: str = "") -> dict[str, Any]:
        """The only finding with that reason (and that text in its fact)."""
        matching = [f for f in self.all if f["reason"] == reason and about in f["fact"]]
        assert len(matching) == 1, self.shown
        assert matching[0]["severity"] == severity, self.shown
        return matching[0]

    @property
    def wrong(self) -> list[str]:
        """The reasons of all that is not well, in order."""
        return [f["reason"] for f in self.all if f["severity"] != "ok" and not f["fixed"]]


def check(
    desk: Desk, url: str, *, good: bool = False, name: str = "orders", fix: bool = False, execute: str = ""
) -> Findings:
    """What `txcoord resource check` does for that one resource, in this process: a new one takes long. ``good``: no
    problem is expected, so that it would end with 0. ``execute``: the URL for best-effort SQL."""
    resource = ResourceSettings(
        url=SecretStr(url),
        execute_url=SecretStr(execute) if execute else None,
        timeout=timedelta(seconds=30),
    )
    settings = Settings(
        log=LogSettings(url=SecretStr(f"sqlite:///{desk.folder / 'txcoord.db'}")),
        resources={name: resource},
    )
    found = asyncio.run(_diagnose(settings, name, fix))
    said = Findings(found)
    assert found.good is good, said.shown
    return said


async def _diagnose(settings: Settings, name: str, fix: bool) -> Diagnosis:
    log = open_log(settings)
    identity = await connect(log, settings)
    try:
        return await diagnose(name, settings, await look_at_log(log, [identity.log_id]), fix=fix)
    finally:
        await log.close()


def new_desk(folder: Path) -> Desk:
    """A desk with a log on SQLite."""
    desk = Desk(folder)
    desk.run("migrate")
    return desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return new_desk(tmp_path)


@contextmanager
def standby_of(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A streaming replica, made with pg_basebackup."""
    standby = new_server()
    try:
        command = [
            str(primary.bin_dir / "pg_basebackup"), "-D", str(standby.data), "-R", "-c", "fast", "--no-sync",
            "-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=servers.environment(), check=False)
        assert done.returncode == 0, done.stderr
        if nobody := servers.nobody():
            for path in (standby.data, *standby.data.rglob("*")):
                shutil.chown(path, nobody.pw_uid, nobody.pw_gid)
        standby.start()
        yield standby
    finally:
        standby.remove()


class _Pooler(socketserver.BaseRequestHandler):
    """Passes everything on, but tells a process id of its own, as poolers do."""

    server: Any

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.target)) as behind:
            threading.Thread(target=self._pass, args=(self.request, behind), daemon=True).start()
            known = False
            while data := behind.recv(65536):
                # BackendKeyData: K, 12, process, key. It comes once, with the start.
                at = -1 if known else data.find(b"K\x00\x00\x00\x0c")
                if at >= 0:
                    known = True
                    data = data[: at + 5] + (4711).to_bytes(4, "big") + data[at + 9 :]
                self.request.sendall(data)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # one of both has gone


@contextmanager
def pooler_before(server: PostgresServer) -> Iterator[int]:
    """The port of something that stands between, and looks like PgBouncer to a client."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Pooler) as between:
        between.daemon_threads = True
        between.target = server.port  # type: ignore[attr-defined]
        threading.Thread(target=between.serve_forever, daemon=True).start()
        try:
            yield between.server_address[1]
        finally:
            between.shutdown()
