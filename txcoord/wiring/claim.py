"""A log on SQLite belongs to one coordinator at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

from .errors import ExitCode, StartError


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
