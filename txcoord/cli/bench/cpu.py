"""CPU time of processes, which a busy machine distorts less than wall time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class Used:
    """What some processes have used while one contender was at work."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._seconds = dict.fromkeys(pids, 0.0)

    @contextmanager
    def counted(self, yes: bool = True) -> Iterator[None]:
        """Add what is used inside, unless it is not to be counted."""
        before = {name: _cpu_s(pid) for name, pid in self._pids.items()}
        yield
        for name, pid in self._pids.items():
            self._seconds[name] += (_cpu_s(pid) - before[name]) * yes

    def per(self, count: int) -> dict[str, float]:
        """Milliseconds for each of so many transactions, by process; empty where the system does not tell."""
        if not count or not any(self._seconds.values()):
            return {}
        return {name: round(seconds / count * 1000, 3) for name, seconds in self._seconds.items()}


def _cpu_s(pid: int) -> float:
    """Seconds, all threads. Only Linux tells."""
    try:
        # The name, in brackets, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
