"""What a flush writes: items in rounds, each round with at most one change of a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from ...core.model import Change, ChangeKind, WriteResult


class Item:
    """One change on its way to the log."""

    __slots__ = ("change", "done", "doubtful", "forced", "future", "ordinal")

    def __init__(
        self,
        change: Change,
        ordinal: int,
        future: asyncio.Future[WriteResult] | None = None,
        done: Callable[[WriteResult], None] | None = None,
    ) -> None:
        self.change = change
        self.ordinal = ordinal
        """Tells apart what one process writes about a transaction in the same microsecond; a retry keeps it."""
        self.future = future
        """Of whoever waits for it."""
        self.done = done
        self.forced = future is not None and change.forced
        self.doubtful = False
        """An earlier try lost its reply: whether it was written is not known."""


class Round:
    """Changes of different transactions, by kind: one statement each."""

    __slots__ = ("amends", "inserts", "items", "orders", "progress", "releases")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.inserts: list[Item] = []
        self.amends: list[Item] = []
        self.progress: list[Item] = []
        """PROGRESS and OPERATE: the same statement, only what comes with it differs."""
        self.orders: list[Item] = []
        """OPERATE that a job has ordered: written only if that still runs."""
        self.releases: list[Item] = []

    def add(self, item: Item) -> None:
        self.items.append(item)
        match item.change.kind:
            case ChangeKind.INSERT:
                self.inserts.append(item)
            case ChangeKind.AMEND:
                self.amends.append(item)
            case ChangeKind.PROGRESS | ChangeKind.OPERATE:
                (self.progress if item.change.job is None else self.orders).append(item)
            case ChangeKind.RELEASE_GID:
                self.releases.append(item)


def rounds_of(items: Sequence[Item]) -> list[Round]:
    """Two changes of one transaction fall into rounds that follow each other, and so does an INSERT with a
    gid after a gid was given up."""
    rounds: list[Round] = []
    next_of: dict[str, int] = {}
    gids_free_from = 0
    for item in items:
        change = item.change
        at = next_of.get(change.tx.tx_id, 0)
        if change.kind is ChangeKind.INSERT and change.tx.gid:
            at = max(at, gids_free_from)
        if at == len(rounds):
            rounds.append(Round())
        rounds[at].add(item)
        next_of[change.tx.tx_id] = at + 1
        if change.kind is ChangeKind.RELEASE_GID:
            gids_free_from = max(gids_free_from, at + 1)
    return rounds


class Flushed:
    """What became of the items of a flush."""

    __slots__ = ("_by_item", "now_us")

    def __init__(self) -> None:
        self._by_item: dict[int, WriteResult] = {}
        self.now_us = 0

    def __getitem__(self, item: Item) -> WriteResult:
        return self._by_item[id(item)]

    def __setitem__(self, item: Item, result: WriteResult) -> None:
        self._by_item[id(item)] = result
        self.now_us = max(self.now_us, result.now_us)


def halves(items: list[Item]) -> Iterator[list[Item]]:
    """Two halves, in order."""
    middle = len(items) // 2
    yield items[:middle]
    yield items[middle:]
