"""Starts commands in no time: a process that has loaded all of txcoord forks them.

To load it takes a coordinator more than a second of a processor, and the tests start hundreds. What a process does
after that is the same. That commands also start from nothing is shown by the tests that run them by themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

from txcoord.testing import processes

_PROGRAM = Path(__file__).with_name("forge_main.py")
_OF_TXCOORD = (
    "txcoord.cli",
    "txcoord.wiring",
    "txcoord.wiring.doctor",
    "txcoord.wiring.examiners",
    "txcoord.adapters.calling.http_",
    "txcoord.adapters.calling.sql_",
    "txcoord.adapters.kafka",
    "txcoord.adapters.kafka.publishing",
    "txcoord.adapters.redis.gate",
    "txcoord.adapters.redis.leases",
    "txcoord.adapters.redis.link",
    "txcoord.adapters.redis.registry",
    "txcoord.adapters.redis.wakeups",
    "txcoord.adapters.sql.mariadb",
    "txcoord.adapters.sql.migrate",
    "txcoord.adapters.sql.postgresql",
    "txcoord.adapters.xa.checks_mariadb",
    "txcoord.adapters.xa.checks_postgresql",
    "txcoord.adapters.xa.mariadb",
    "txcoord.adapters.xa.postgresql",
    "txcoord.api.http.metrics",
    "txcoord.api.http.server",
    "uvloop",
)
_OF_SERVICES = ("txcoord_client", "grpc_health.v1.health", "sqlalchemy.ext.asyncio", "asyncpg")


_LOOK_S = 0.2


class Forked:
    """What `subprocess.Popen` is, for a process that another one forked and reaps."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self._text = ""
        self._reading = threading.Lock()
        self.returncode: int | None = None
        self.pid = int(self._line() or -1)
        told.setblocking(False)
        if self.pid < 0:
            raise processes.NotReady("the process that forks commands has ended")

    def poll(self) -> int | None:
        """Its exit code, once it has ended: negative for a signal."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended. Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        """Its exit code. Whoever waits keeps nobody else from asking."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._reading:
                if self.returncode is None and (line := self._line()) is not None:
                    # The forge itself was killed: so are all that it forked.
                    self.returncode = int(line) if line else -signal.SIGKILL
                    self._told.close()
                if self.returncode is not None:
                    return self.returncode
                poll = select.poll()  # select.select knows few descriptors only
                poll.register(self._told, select.POLLIN)
            left = _LOOK_S if until is None else min(_LOOK_S, until - time.monotonic())
            if left <= 0:
                return None
            poll.poll(left * 1000)  # In vain if another thread reads it, and closes it.

    def _line(self) -> str | None:
        """The next line that was told. Empty: nobody tells any more; None: not yet."""
        while "\n" not in self._text:
            try:
                data = self._told.recv(64)
            except BlockingIOError:
                return None
            if not data:
                return ""
            self._text += data.decode()
        line, _, self._text = self._text.partition("\n")
        return line


class Forge:
    """A process of one interpreter that has these modules loaded, and forks commands."""

    def __init__(self, python: str, modules: Sequence[str]) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._one_by_one = threading.Lock()
        with theirs:
            # It ends when nobody can ask it any more.
            self._process = subprocess.Popen(
                [python, "-P", str(_PROGRAM), str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._owner = os.getpid()

    def close(self) -> None:
        """End it, and what it has forked."""
        self._requests.close()
        if self._owner == os.getpid():
            self._process.wait()

    def start(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        env: Mapping[str, str],
        cwd: Path | None,
    ) -> Forked:
        """Fork this interpreter's command, `-c` or `-m` and what follows, with these descriptors."""
        wanted = {"command": list(command), "env": dict(env), "cwd": str(cwd or Path.cwd())}
        ours, theirs = socket.socketpair()
        with theirs, self._one_by_one:
            socket.send_fds(
                self._requests, [json.dumps(wanted).encode()], [stdin, stdout, stderr, theirs.fileno()]
            )
        return Forked(ours)


@lru_cache
def _forge(python: str) -> Forge:
    made = Forge(python, (*_OF_SERVICES, *(_OF_TXCOORD if python == processes.TXCOORD[0] else ())))
    atexit.register(made.close)
    return made


def start(
    command: Sequence[str], *, stdin: int, stdout: int, stderr: int, env: Mapping[str, str], cwd: Path | None
) -> processes.Process:
    """Start a command: forked, if it is one of txcoord or a service of tests or examples."""
    of_txcoord = tuple(command[: len(processes.TXCOORD)]) == processes.TXCOORD
    of_ours = command[:2] == [sys.executable, "-m"] and command[2].startswith(("tests.", "examples."))
    known = sys.platform == "linux" and (of_txcoord or of_ours)
    begin = (
        partial(_forge(command[0]).start, command[1:]) if known else partial(processes.start_process, command)
    )
    return begin(stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd)


def install() -> None:
    """From now on `txcoord.testing.processes` starts commands like this, in this process."""
    processes.starter = start
