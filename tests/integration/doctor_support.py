"""Helpers of the tests of what `txcoord resource check` and `txcoord doctor` find."""

from __future__ import annotations

import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli_support import Desk, resource
from tests.support.databases import new_server
from txcoord.testing import servers
from txcoord.testing.postgres import PostgresServer


class Findings:
    """What was said about one resource: by reason, each with its severity, and as a person sees it."""

    def __init__(self, found: dict[str, Any], show: Callable[[], str]) -> None:
        self.all: list[dict[str, Any]] = found["findings"]
        self._show = show

    @property
    def shown(self) -> str:
        """As a person sees it; looks again."""
        return self._show()

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


def check(desk: Desk, url: str, *arguments: str, good: bool = False, name: str = "orders") -> Findings:
    """Run `txcoord resource check` on that one resource; only a good one may end with 0."""
    command = ("resource", "check", name, *arguments)
    env = resource(name, url)
    code = 0 if good else 7
    (found,) = desk.json(*command, code=code, **env)
    return Findings(found, lambda: desk.run(*command, code=code, **env).stdout)


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
