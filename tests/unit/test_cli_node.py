"""What `txcoord node` says of nodes."""

from __future__ import annotations

from dataclasses import replace

from txcoord.api.grpc import nodes
from txcoord.cli import node as cli
from txcoord.ports import NodeOrder, NodeStatus

NOW_US = 1_800_000_000_000_000
WELL = NodeStatus("well", "worker", "", "1", started_us=NOW_US - 5_000_000, seen_us=NOW_US, live=3)
DEAD = replace(WELL, name="dead", seen_us=NOW_US - 72_000_000, live=7)


class Two:
    async def all(self) -> list[NodeStatus]:
        return [DEAD, WELL, replace(WELL, name="drained", draining=True)]

    async def order(self, name: str, draining: bool, order: NodeOrder) -> NodeStatus | None:
        return None

    def is_gone(self, status: NodeStatus, now_us: int) -> bool:
        return now_us - status.seen_us > 30_000_000


async def test_one_that_is_gone_is_not_called_well() -> None:
    found = (await nodes.listed(Two(), NOW_US)).nodes
    assert [(row[0], *row[-2:]) for row in (cli._row(n, NOW_US) for n in found)] == [
        ("dead", "-", "GONE 72 s"),
        ("well", "3", "ok"),
        ("drained", "3", "draining"),
    ]
    assert [(n["live"], n["gone"]) for n in map(cli._as_dict, found)] == [
        (None, True),
        (3, False),
        (3, False),
    ]
