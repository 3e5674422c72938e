"""Named places where tests make the coordinator break. In production they cost one dictionary look-up.

``TXCOORD_FAILPOINTS="commit.before_write=kill@3"`` kills the process (SIGKILL) when it gets there for the
third time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping

NAMES = frozenset(
    {
        "begin.before_write",
        "begin.after_write",
        "release_gid.before_write",
        "release_gid.after_write",
        "enlist.before_write",
        "enlist.after_write",
        "submit.before_write",
        "submit.after_write",
        "decide.before_write",
        "decide.after_write",
        "commit.before_write",
        "commit.after_write",
        "rollback.before_write",
        "rollback.after_write",
        "report.before_write",
        "report.after_write",
        "deadline.before_write",
        "deadline.after_write",
        "operate.before_write",
        "operate.after_write",
        "call.before",
        "call.after",
        "finish.before",
        "finish.after",
        "finish_late.before",
        "finish_late.after",
        "orphan.before_fence",
        "orphan.after_fence",
        "probe.before",
        "probe.after",
        "replay.before_order",
        "replay.after_order",
        "scan.before_judge",
        "takeover.after_claim",
        "hand_off.before_put",
        "due.after_claim",
        "order.after_turn",
    }
)

Action = Callable[[str], Awaitable[None]]


class Switchboard:
    """Failpoints that tests switch on."""

    def __init__(self, actions: Mapping[str, Action] | None = None) -> None:
        self._actions = dict(actions or {})
        self.hits: dict[str, int] = {}
        self.counting = bool(actions)

    def on(self, name: str, action: Action) -> None:
        """Call ``action`` whenever ``name`` is reached."""
        if name not in NAMES:
            raise ValueError(f"no failpoint is called {name!r}")
        self._actions[name] = action
        self.counting = True

    async def reach(self, name: str) -> None:
        """Say that this point was reached."""
        if not self.counting:
            return
        self.hits[name] = self.hits.get(name, 0) + 1
        action = self._actions.get(name)
        if action is not None:
            await action(name)


def from_environment(text: str) -> Switchboard:
    """Failpoints from ``name=kill[@hit]`` items, separated by commas."""
    board = Switchboard()
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, what = item.partition("=")
        verb, _, hit = what.partition("@")
        if verb != "kill":
            raise ValueError(f"failpoint {item!r}: the only action is 'kill' (or 'kill@N')")
        board.on(name, _kill_at(board, int(hit or 1)))
    return board


def _kill_at(board: Switchboard, hit: int) -> Action:
    async def kill(name: str) -> None:
        if board.hits[name] >= hit:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill
