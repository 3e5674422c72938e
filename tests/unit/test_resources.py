"""Which database a name leads to, compared with the log's memory while other nodes start."""

from __future__ import annotations

from typing import Any, cast

from txcoord.adapters.xa.postgresql import PostgresFinisher
from txcoord.ports import Clock
from txcoord.testing.memory_log import MemoryLog, Storage
from txcoord.wiring.resources import ManagedResource, Resources, Seen
from txcoord_client.protocol import reasons

MINE, OTHER = "1" * 32, "2" * 32


class Finisher:
    """As much of one as is asked for here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.engine = "postgresql"
        self.expected_identity = ""


class NodesStartAtOnce(MemoryLog):
    """Just after this node has found nothing in the log's memory, another one writes there."""

    def __init__(self, storage: Storage, identity: str) -> None:
        super().__init__(storage)
        self._identity = identity

    async def resource_identity(self, name: str) -> str | None:
        found = await super().resource_identity(name)
        await self.remember_resource(name, self._identity)
        return found


def no_look(name: str) -> Any:
    raise AssertionError(f"{name} is not looked at here")


def resources(*names: str) -> dict[str, ManagedResource]:
    return {name: ManagedResource(cast(PostgresFinisher, Finisher(name)), no_look) for name in names}


async def test_two_nodes_that_start_at_once_remember_the_same() -> None:
    log = NodesStartAtOnce(Storage(lambda: 0), MINE)
    both = resources("accounts", "ledger")
    await both["accounts"].judge(Seen(MINE), log, both)
    assert both["accounts"].trouble is None
    assert both["accounts"].status.problem == ""


async def test_two_nodes_that_start_at_once_with_other_databases() -> None:
    log = NodesStartAtOnce(Storage(lambda: 0), OTHER)
    both = resources("accounts", "ledger")
    await both["accounts"].judge(Seen(MINE), log, both)
    assert both["accounts"].trouble is not None
    assert both["accounts"].trouble.reason == reasons.RESOURCE_MISMATCH


async def test_the_url_of_another_resource() -> None:
    storage = Storage(lambda: 0)
    storage.resources["ledger"] = MINE
    both = resources("accounts", "ledger")
    await both["accounts"].judge(Seen(MINE), MemoryLog(storage), both)
    assert both["accounts"].trouble is not None
    assert "look swapped" in both["accounts"].trouble.message


async def test_which_database_it_must_be_is_known_before_it_is_seen_and_whatever_is_seen() -> None:
    storage = Storage(lambda: 0)
    log = MemoryLog(storage)
    of_node = Resources([cast(PostgresFinisher, Finisher("accounts"))], log, cast(Clock, None), no_look)
    accounts = of_node.by_name["accounts"]
    assert await of_node.expected_identity("accounts") == ""
    storage.resources["accounts"] = MINE
    assert await of_node.expected_identity("accounts") == MINE
    for seen in (OTHER, MINE, OTHER):
        await accounts.judge(Seen(seen), log, of_node.by_name)
        assert accounts.status.identity == seen
        assert await of_node.expected_identity("accounts") == MINE
