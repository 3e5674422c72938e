"""Processes that tests, the demo and the bench start, kill and start again.

A process started here ends with its owner: it is told to die when its parent does (Linux), and ended at exit.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# Child processes are started while gRPC's threads run; its fork handlers can crash the child before it execs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Told to die with its parent by a launcher, not by a preexec_fn: that would fork, and a process with live gRPC
# threads must not. 1 is PR_SET_PDEATHSIG (Linux; elsewhere nothing is asked for).
_LAUNCHER = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
except (OSError, AttributeError):
    pass
os.execvp(sys.argv[1], sys.argv[1:])
"""


class NotReady(Exception):
    """A process ended, or did not get ready in time."""


class Process(Protocol):
    """What is used of ``subprocess.Popen``."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int, /) -> None: ...

    def kill(self) -> None: ...


def start_process(
    command: Sequence[str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    env: Mapping[str, str],
    cwd: Path | None,
) -> Process:
    """Start a command with these descriptors, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        env=env,
        cwd=cwd,
    )


starter: Callable[..., Process] = start_process
"""How processes are started. The tests of txcoord have a faster way."""


class Managed:
    """A child process that can be killed and started again with the same command line."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        address: str,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.env = dict(env or {})
        self.log = log
        self.address = address
        """Where it serves gRPC health."""
        self.cwd = cwd
        self.kills = 0
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        if self._process is None:
            raise NotReady(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Is it alive?"""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait_s: float = 30.0) -> None:
        """Start it; wait until its health says SERVING (``wait_s`` 0: don't wait)."""
        if self.running:
            return
        with self.log.open("ab") as out, open(os.devnull, "rb") as nothing:
            self._process = starter(
                self.command,
                stdin=nothing.fileno(),
                stdout=out.fileno(),
                stderr=out.fileno(),
                env={**os.environ, **self.env},
                cwd=self.cwd,
            )
        _started.add(self)
        if wait_s:
            self.wait_ready(wait_s)

    def wait_ready(self, wait_s: float = 30.0) -> None:
        """Wait until its health says SERVING. Raises NotReady with the end of its log."""
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            if not self.running:
                raise NotReady(f"{self.name} ended with {self.exit_code}:\n{self.tail()}")
            if serving(self.address):
                return
            time.sleep(0.02)
        raise NotReady(f"{self.name} was not ready within {wait_s:.0f} s:\n{self.tail()}")

    @property
    def exit_code(self) -> int | None:
        """How it ended, once it has."""
        return None if self._process is None else self._process.poll()

    def kill9(self) -> None:
        """SIGKILL; it is gone when this returns."""
        if self._process is not None and self._process.poll() is None:
            self.kills += 1
            self._process.kill()
        self.wait()

    def signal(self, number: int) -> None:
        """Send it a signal, such as SIGSTOP; it must be running."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, wait_s: float = 20.0) -> int | None:
        """SIGTERM, then wait. Answers the exit code."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
            if self._process.poll() is None:
                self._process.kill()
        self.wait()
        return self.exit_code

    def wait(self, wait_s: float | None = None) -> int | None:
        """Wait until it has ended."""
        if self._process is not None:
            self._process.wait(wait_s)
            _started.discard(self)
        return self.exit_code

    def tail(self, characters: int = 2000) -> str:
        """The end of what it logged."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-characters:]
        return ""


def coordinator(
    folder: Path,
    *,
    resources: Mapping[str, str],
    log_url: str | None = None,
    port: int | None = None,
    name: str = "coordinator",
    settings: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Managed:
    """A coordinator process, not started. ``settings`` are ``TXCOORD_*`` variables without the prefix."""
    port = port or free_port()
    variables = {
        "TXCOORD_LISTEN": f"127.0.0.1:{port}",
        "TXCOORD_LOG__URL": log_url or f"sqlite+aiosqlite:///{folder / (name + '.db')}",
        "TXCOORD_NODE__NAME": name,
        **{f"TXCOORD_RESOURCES__{key}__URL": url for key, url in resources.items()},
        **{f"TXCOORD_{key}": value for key, value in (settings or {}).items()},
        **(env or {}),
    }
    return Managed(
        name,
        [*TXCOORD, "serve"],
        log=folder / f"{name}.log",
        env=variables,
        address=f"127.0.0.1:{port}",
        cwd=folder,
    )


TXCOORD = (os.environ.get("TXCOORD_PYTHON") or sys.executable, "-c", "from txcoord.cli import main; main()")
"""The command line tool of this very installation, or of the one whose interpreter TXCOORD_PYTHON names: tests of the
SDK may run where the server cannot."""


def run_txcoord(*arguments: str, env: Mapping[str, str], cwd: Path) -> str:
    """Run the command line tool to its end and answer what it printed. Raises NotReady when it failed."""
    code, out, err = run([*TXCOORD, *arguments], env={**os.environ, **env}, cwd=cwd)
    if code:
        raise NotReady(f"txcoord {' '.join(arguments)}: exit {code}\n{out}{err}")
    return out


def run(command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> tuple[int, str, str]:
    """Run a command to its end: its exit code, and what it wrote on the standard output and on the other."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        process = starter(
            command, stdin=nothing.fileno(), stdout=out.fileno(), stderr=err.fileno(), env=env, cwd=cwd
        )
        try:
            code = process.wait()
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(), err.read().decode()


def free_port() -> int:
    """A port that nobody listens on now, below the range that outgoing connections take theirs from."""
    while True:
        port = 20000 + int.from_bytes(os.urandom(2), "big") % 12000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def serving(address: str, timeout_s: float = 1.0) -> bool:
    """Does the gRPC server there say that it is SERVING?"""
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        probe.settimeout(timeout_s)
        if probe.connect_ex((host, int(port))):
            return False
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


_started: set[Managed] = set()


@atexit.register
def _end_all() -> None:
    for managed in list(_started):
        if managed._process is not None and managed._process.poll() is None:
            managed._process.kill()
