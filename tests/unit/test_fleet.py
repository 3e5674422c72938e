"""A node among others: it says that it is there, at once or when the log is back."""

from __future__ import annotations

import asyncio
from typing import Any

from txcoord.ports import LogUnavailable, NodeStatus
from txcoord.wiring.fleet import Fleet


class Nodes:
    def __init__(self) -> None:
        self.away = True
        self.joined: list[NodeStatus] = []

    async def join(self, status: NodeStatus) -> None:
        if self.away:
            raise LogUnavailable("it was killed")
        self.joined.append(status)

    async def seen(self, *_: Any) -> bool:
        return False


def test_who_serves_already_does_not_end_for_a_log_that_is_away() -> None:
    async def main() -> None:
        nodes: Any = Nodes()

        async def drain(_: bool) -> None:
            return

        fleet = Fleet(
            nodes, "n1", "coordinator", lease_s=10, live=lambda: 0, clock_offset_us=lambda: 0, drain=drain
        )
        await fleet.join("127.0.0.1:1")
        assert nodes.joined == []
        nodes.away = False
        for _ in range(2):
            await fleet.look()
        assert [(status.name, status.address) for status in nodes.joined] == [("n1", "127.0.0.1:1")]

    asyncio.run(main())
