"""What a node has to itself: a log on SQLite its file, any other node its name."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
from pathlib import Path
from typing import IO

from ..adapters.sql.leases import SqlLeases
from ..observe import logs
from ..ports import LogUnavailable
from .errors import ExitCode, StartError

log = logs.get("txcoord.node")


class FileClaim:
    """A lock beside the log's file; the system gives it back when the process ends, however it ends."""

    def __init__(self, log_file: Path) -> None:
        self._log_file = log_file
        self._lock: IO[str] | None = None

    def take(self) -> None:
        """Take it. Raises StartError with who has it."""
        path = self._log_file.with_name(self._log_file.name + "-node")
        try:
            lock = path.open("a+")
        except OSError as error:
            raise StartError(
                ExitCode.UNAVAILABLE, "LOG_UNAVAILABLE", f"{path} cannot be written: {error.strerror}"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "?"
            lock.close()
            raise StartError(
                ExitCode.UNAVAILABLE,
                "LOG_IN_USE",
                f"the log {self._log_file} is in use by another coordinator (process {holder}). A log on SQLite "
                "serves one coordinator",
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        """Give it back."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock.truncate(0)
            self._lock.close()
            self._lock = None


class NameClaim:
    """The name of a node, by a lease in the log. A node takes the rows of its name back when it starts: a twin would
    lose them, though it lives.

    The lease of a process that is seen to be gone from this machine is not waited for.
    """

    def __init__(self, leases: SqlLeases, name: str, lease_s: float) -> None:
        self._leases = leases
        self._name = name
        self._duty = f"node:{name}"
        self._lease_s = lease_s
        self._instance = this_process()
        self._held = False
        self.lost = asyncio.Event()
        """Another process has it now: this one was stopped, or could not reach the log, for longer than the lease."""

    async def take(self) -> None:
        """Take it, waiting for the lease of one that does not renew it. Raises StartError when it is in use."""
        seen: tuple[str, int] | None = None
        while not await self._acquire():
            found = await self._leases.holder(self._duty)
            if found is None or not found[0]:
                continue
            if is_gone(found[0]):
                log.info("node.name_freed", node=self._name, by=found[0])
                await self._leases.release(self._duty, found[0])
                continue
            if seen is None:
                seen = found
                log.warning("node.name_held", node=self._name, by=found[0], waiting_s=self._lease_s)
            elif found != seen:
                raise StartError(
                    ExitCode.UNAVAILABLE,
                    "NODE_NAME_IN_USE",
                    f"another node of this log is called {self._name!r} ({_shown(found[0])}) and lives: give each its "
                    "own name, TXCOORD_NODE__NAME",
                )
            await asyncio.sleep(self._lease_s / 20)

    async def keep(self) -> None:
        """Renew it for ever; returns when it is lost."""
        while True:
            await asyncio.sleep(self._lease_s / 4)
            try:
                held = await self._acquire()
            except LogUnavailable:
                continue  # What counts is who has it when the log is back.
            except Exception:
                log.exception("node.name_not_renewed", node=self._name)
                continue
            if not held:
                log.error("node.name_lost", node=self._name)
                self._held = False
                self.lost.set()
                return

    async def release(self) -> None:
        """Give it back: whoever is called so next starts at once."""
        if self._held:
            self._held = False
            await self._leases.release(self._duty, self._instance)

    async def _acquire(self) -> bool:
        token = await self._leases.acquire(self._duty, self._instance, int(self._lease_s * 1_000_000))
        self._held = self._held or token is not None
        return token is not None

    def why_lost(self) -> StartError:
        """What to tell when it is lost."""
        return StartError(
            ExitCode.UNAVAILABLE,
            "NODE_NAME_IN_USE",
            f"another node took the name {self._name!r} while this one was stopped or cut off from the log for longer "
            "than the lease: this one ends. Nothing is lost",
        )


_UNKNOWN = "-"


def this_process() -> str:
    """A name that no other process has, now or later, and that another one of this machine can look for."""
    parts = (socket.gethostname()[:64], *_world(), str(os.getpid()), _started(os.getpid()) or _UNKNOWN)
    return " ".join((*parts, secrets.token_hex(4)))


def is_gone(instance: str) -> bool:
    """Is it sure that this process has ended? Only one of the same machine and the same process numbers can tell."""
    parts = instance.split(" ")
    if len(parts) != 6 or _UNKNOWN in parts[1:5]:
        return False
    _, boot, numbers, pid, started, _ = parts
    if (boot, numbers) != _world() or not pid.isdigit():
        return False
    # /proc may be mounted so that others' processes are not shown (hidepid): then the first one isn't, either.
    return _started(1) not in ("", _UNKNOWN) and _started(int(pid)) not in (started, _UNKNOWN)


def _shown(instance: str) -> str:
    parts = instance.split(" ")
    return f"process {parts[3]} on {parts[0]}" if len(parts) == 6 else instance


def _world() -> tuple[str, str]:
    """The boot of this machine, and the space of its process numbers: a container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return _UNKNOWN, _UNKNOWN


def _started(pid: int) -> str:
    """When that process began, in the kernel's ticks; empty when there is none, or it has ended."""
    try:
        # After the command, which may contain anything: the state, ..., and as the 20th the start.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):
        return _UNKNOWN
    return "" if state in "ZX" else rest[18]
