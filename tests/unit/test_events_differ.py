"""A node that tells no events says so while another one publishes them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from tests.support.virtual import VirtualClock, run
from txcoord.ports import LogUnavailable
from txcoord.wiring.events import _watch_others


class Fleet:
    """What the log says of the lease, and who hears alarms."""

    def __init__(self) -> None:
        self.holds: tuple[str, int] | None = None
        self.renews = False
        self.down = False
        self.alarms: list[str] = []

    async def holder(self, duty: str) -> tuple[str, int] | None:
        if self.down:
            raise LogUnavailable("away")
        if self.renews and self.holds is not None:
            self.holds = (self.holds[0], self.holds[1] + 1)
        return self.holds

    def alarm(self, kind: str, _tx_id: str, _branch: str, detail: str) -> None:
        self.alarms.append(f"{kind}: {detail}")


def test_once_for_each_time_that_another_node_publishes() -> None:
    async def main() -> None:
        fleet = Fleet()
        watching = asyncio.ensure_future(_watch_others(cast(Any, fleet), cast(Any, fleet), VirtualClock()))
        await asyncio.sleep(100)
        fleet.holds = ("n2", 7)  # As one that died long ago has left it.
        await asyncio.sleep(100)
        assert not fleet.alarms
        fleet.renews = True
        await asyncio.sleep(200)
        assert fleet.alarms == ["events_differ: n2 publishes events, and this node writes none"]
        fleet.down = True
        await asyncio.sleep(100)
        fleet.down = fleet.renews = False
        await asyncio.sleep(100)
        assert len(fleet.alarms) == 1
        watching.cancel()

    run(main())
