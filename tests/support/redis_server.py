"""A throw-away Redis: the machine's own, or what ``scripts/test`` unpacks into the checkout's ``.cache``."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.databases import new_folder

_UNPACKED = Path(__file__).resolve().parents[2] / ".cache" / "redis" / "root"
_LIBRARIES = f"{platform.machine()}-linux-gnu"


@dataclass
class RedisServer:
    """One server that listens on a socket in a folder of its own."""

    folder: Path

    @property
    def url(self) -> str:
        """For ``from_url`` of a client."""
        return f"unix://{self.folder}/redis.sock"

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """Start one, and remove it in the end."""
        server = cls(new_folder("redis"))
        process = server._start()
        try:
            server._await_ready(process)
            yield server
        finally:
            process.terminate()
            process.wait(30)
            shutil.rmtree(server.folder, ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        program = shutil.which("redis-server")
        environment = dict(os.environ)
        if program is None:
            program = str(_UNPACKED / "usr/bin/redis-server")
            assert os.path.exists(program), "no Redis here: run scripts/test once, which unpacks one"
            folders = (_UNPACKED / "usr/lib" / _LIBRARIES, _UNPACKED / "lib" / _LIBRARIES)
            environment["LD_LIBRARY_PATH"] = ":".join(map(str, folders))
        dies = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        options = ["--port", "0", "--unixsocket", f"{self.folder}/redis.sock", "--dir", str(self.folder)]
        with open(self.folder / "log", "wb") as log:
            return subprocess.Popen(
                [*dies, program, *options, "--save", "", "--appendonly", "no"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 60
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except Exception:
                if process.poll() is not None or time.monotonic() > until:
                    raise AssertionError((self.folder / "log").read_text()) from None
                time.sleep(0.02)

    def client(self, **options: Any) -> Any:
        """A new client, synchronous."""
        import redis

        return redis.Redis.from_url(self.url, **options)
