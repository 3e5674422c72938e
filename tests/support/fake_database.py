"""A resource in memory: prepared branches, markers, and the ways in which a database can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from txcoord.core.model import Windows
from txcoord.ports import Finished, FinishResult, PreparedBranch, Probed, ResourceTrouble
from txcoord_client.protocol import marker
from txcoord_client.protocol import xid as xids

Key = tuple[str, str, str]


@dataclass
class FakeDatabase:
    """``ports.Finisher`` with the rules of the PostgreSQL one."""

    name: str
    clock: Callable[[], int]
    windows: Windows = field(default_factory=Windows)
    engine: str = "fake"
    lists_server: bool = False
    beside: FakeDatabase | None = None
    """Another database on the same server: its branches are listed too."""
    limbo: int = 0
    says: str = ""
    """What every attempt is answered with."""
    prepared: dict[str, int] = field(default_factory=dict)
    markers: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """State and time."""
    committed: list[str] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)
    open_keys: set[Key] = field(default_factory=set)
    """Held by a local transaction that is still open."""
    attempts: list[tuple[str, int]] = field(default_factory=list)
    down: bool = False
    busy: set[str] = field(default_factory=set)
    lose_replies: int = 0
    crash_on: str = ""
    """Raises something unforeseen for this xid."""
    latency_s: float = 0.001
    hold: asyncio.Event | None = None
    """While it is there and not set, every statement hangs."""
    pruned: list[tuple[int, int]] = field(default_factory=list)

    async def _statement(self) -> None:
        await asyncio.sleep(self.latency_s)
        if self.hold is not None:
            await self.hold.wait()
        if self.down:
            raise ResourceTrouble(self.name, "RESOURCE_UNREACHABLE", "it is down")

    # ---- what the service does ----

    def prepare(self, xid: str) -> None:
        x = xids.parse(xid)
        assert x is not None
        key = (x.tx_id, x.branch, marker.XA)
        assert key not in self.markers, "the marker's key is taken: PREPARE fails"
        self.prepared[xid] = self.clock()

    def commit_by_hand(self, xid: str) -> None:
        x = xids.parse(xid)
        assert x is not None
        del self.prepared[xid]
        self.markers[x.tx_id, x.branch, marker.XA] = (marker.DONE, self.clock())
        self.committed.append(xid)

    def roll_back_by_hand(self, xid: str) -> None:
        del self.prepared[xid]
        self.rolled_back.append(xid)

    def commit_one_phase(self, tx_id: str, deadline_us: int) -> bool:
        key = (tx_id, marker.ONE_BRANCH, marker.ONE)
        if key in self.markers or self.clock() > self.windows.marker_until(deadline_us):
            return False
        self.markers[key] = (marker.DONE, self.clock())
        return True

    # ---- ports.Finisher ----

    async def identity(self) -> str:
        await self._statement()
        return self.name.encode().hex().rjust(32, "0")

    async def finish(self, xid: str, commit: bool) -> FinishResult:
        self.attempts.append((xid, self.clock()))
        if xid == self.crash_on:
            raise RuntimeError("unforeseen")
        try:
            await self._statement()
        except ResourceTrouble as trouble:
            return FinishResult(Finished.RETRY, f"{trouble.reason}: {trouble.message}")
        if self.says:
            return FinishResult(Finished.RETRY, self.says)
        if xid in self.busy:
            return FinishResult(Finished.RETRY, "BUSY: 55000")
        result = self._finish(xid, commit)
        if self.lose_replies:
            self.lose_replies -= 1
            return FinishResult(Finished.RETRY, "UNREACHABLE: the reply was lost")
        return result

    def _finish(self, xid: str, commit: bool) -> FinishResult:
        x = xids.parse(xid)
        assert x is not None
        key = (x.tx_id, x.branch, marker.XA)
        if xid in self.prepared:
            if commit:
                self.commit_by_hand(xid)
            else:
                self.roll_back_by_hand(xid)
            return FinishResult(Finished.DONE)
        if not commit:
            done = self.markers.get(key, (0, 0))[0] == marker.DONE
            return FinishResult(Finished.HEURISTIC, "HEURISTIC: committed") if done else _DONE
        answer = self._probe(key, self.windows.abort_until(x.deadline_us))
        if answer is Probed.COMMITTED:
            return _DONE
        if answer is Probed.OPEN:
            return FinishResult(Finished.RETRY, "BUSY: the key is locked")
        return FinishResult(Finished.HEURISTIC, "HEURISTIC: rolled back")

    def _probe(self, key: Key, not_after_us: int) -> Probed:
        found = self.markers.get(key)
        if found is not None:
            return Probed.COMMITTED if found[0] == marker.DONE else Probed.NEVER
        if key in self.open_keys:
            return Probed.OPEN
        if self.clock() > not_after_us:
            return Probed.TOO_LATE
        self.markers[key] = (marker.TOMBSTONE, self.clock())
        return Probed.NEVER

    async def list_prepared(self, log_ids: Sequence[str]) -> list[PreparedBranch]:
        await self._statement()
        listed = {**self.prepared, **(self.beside.prepared if self.beside is not None else {})}
        return [
            PreparedBranch(xid, "app", at_us)
            for xid, at_us in listed.items()
            if (x := xids.parse(xid)) is not None and x.log_id in log_ids
        ]

    async def has_ended(self, xid: str, commit: bool) -> bool:
        await self._statement()
        return xid not in self.prepared

    async def owns(self, xid: str) -> bool:
        await self._statement()
        return xid in self.prepared

    async def in_limbo(self) -> int:
        await self._statement()
        return self.limbo

    async def probe_one_phase(self, tx_id: str, not_after_us: int) -> Probed:
        await self._statement()
        return self._probe((tx_id, marker.ONE_BRANCH, marker.ONE), not_after_us)

    async def prune_markers(self, not_after_us: int, limit: int) -> int:
        await self._statement()
        self.pruned.append((not_after_us, limit))
        old = [key for key, (_, at_us) in self.markers.items() if at_us < not_after_us][:limit]
        for key in old:
            del self.markers[key]
        return len(old)

    def by_hand(self, xid: str, commit: bool) -> str:
        return f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED '{xid}'"

    async def close(self) -> None:
        pass


_DONE = FinishResult(Finished.DONE)
