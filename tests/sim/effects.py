"""What participants have done, and in which order: the rules of TCC and saga, from their databases' rows alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from txcoord_client._pb import common_pb2 as c

if TYPE_CHECKING:
    from .world import World

_UNDOES = {"cancel": "try", "compensate": "action"}
_NEEDS = {"confirm": "commit", "cancel": "abort", "compensate": "abort"}
_FIRST = ("try", "action")
_LAST = {"tcc": "confirm", "saga": "action", "message": "message"}
_WANTED: dict[str, set[str]] = {"tcc": {"try", "confirm"}, "saga": {"action"}, "message": {"message"}}
_UNDONE: dict[str, set[str]] = {"tcc": {"try", "cancel"}, "saga": {"action", "compensate"}, "message": set()}


@dataclass
class Asked:
    """A branch, as it was asked for."""

    kind: str
    after: tuple[str, ...]
    forward: bool


@dataclass
class Story:
    """Of one transaction."""

    asked: dict[str, Asked] = field(default_factory=dict)
    done: dict[tuple[str, str], str] = field(default_factory=dict)
    """By branch and op: the row."""


class Effects:
    """Watches what is committed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_tx: dict[str, Story] = {}
        self.plans: set[str] = set()
        """Transactions that were submitted whole."""
        self.count = 0
        self.undone = 0
        """How many of them were cancels and compensations."""

    def expect(self, tx_id: str, branches: Iterable[Any]) -> None:
        """Branches are on their way to a coordinator."""
        for b in branches:
            if b.kind in (c.KIND_TCC, c.KIND_SAGA) and b.HasField("action"):
                kind = "tcc" if b.kind == c.KIND_TCC else "saga"
                self._story(tx_id).asked.setdefault(b.id, Asked(kind, tuple(b.after), b.action.forward))
            elif b.kind == c.KIND_MESSAGE and b.HasField("delivery"):
                self._story(tx_id).asked.setdefault(b.id, Asked("message", (), True))

    def of(self, tx_id: str) -> bool:
        """Has anything been done for it, and not undone?"""
        done = self._story(tx_id).done
        return any(
            op in _FIRST and (branch, "cancel") not in done and (branch, "compensate") not in done
            for branch, op in done
        )

    def asked(self, tx_id: str, branch: str, op: str) -> None:
        """A participant is called."""
        decision, needed = self._world.checker.decisions.get(tx_id, ""), _NEEDS.get(op, "")
        if needed and decision != needed:
            name = self._name(tx_id, branch)
            self._wrong(f"the {op} of {name} was asked for, and the log says {decision or 'nothing'}")

    def happened(self, row: str) -> None:
        """A participant's transaction is committed."""
        _, tx_id, place, branch, op = row.split(":")
        story, name = self._story(tx_id), f"{op} of {self._name(tx_id, branch)} at {place}"
        if (branch, op) in story.done:
            self._wrong(f"{name} was done twice")
        story.done[branch, op] = row
        self.count += 1
        decision = self._world.checker.decisions.get(tx_id, "")
        asked = story.asked.get(branch)
        if asked is None:
            self._wrong(f"{name} was done, and nobody has asked for it")
            return
        if op in _UNDOES:
            self.undone += 1
            if (branch, _UNDOES[op]) not in story.done:
                self._wrong(f"{name} was done, and there was nothing to undo")
            if decision != "abort":
                self._wrong(f"{name} was done, and the log says {decision or 'nothing'}")
        elif op == "message":
            self._delivered(tx_id, story, name)
            self._next_in_line(tx_id, branch, name)
        elif op == "confirm" and decision != "commit":
            self._wrong(f"{name} was done, and the log says {decision or 'nothing'}")
        self._in_order(story, branch, op, name)

    def _delivered(self, tx_id: str, story: Story, name: str) -> None:
        """By the databases alone: a log may have lost a lazy word of what one of them has committed."""
        for row in self._world.checker.missing(tx_id):
            self._wrong(f"{name} was delivered, and {row} is not there")
        for branch, asked in story.asked.items():
            last = _LAST[asked.kind]
            if asked.kind != "message" and (branch, last) not in story.done:
                self._wrong(f"{name} was delivered, and the {last} of {branch} is not done")

    def _next_in_line(self, tx_id: str, branch: str, name: str) -> None:
        """All that have taken their places before it have ended, or were delivered: the log may have lost that."""
        for other, number, over in self._world.log.before(tx_id, branch):
            if not over and (number, "message") not in self._story(other).done:
                self._wrong(f"{name} was delivered before that of {self._name(other, number)}")

    def _in_order(self, story: Story, branch: str, op: str, name: str) -> None:
        if op == "action":
            for other in story.asked[branch].after:
                if (other, "action") not in story.done:
                    self._wrong(f"{name} was done before that of {other}")
                if (other, "compensate") in story.done:
                    self._wrong(f"{name} was done after {other} was compensated")
        if op == "compensate":
            for other, asked in story.asked.items():
                if branch in asked.after and self._stands(story, other):
                    self._wrong(f"{name} was done before that of {other}")

    @staticmethod
    def _stands(story: Story, branch: str) -> bool:
        return (branch, "action") in story.done and (branch, "compensate") not in story.done

    def told(self, tx_id: str, who: str, state: str) -> None:
        """Somebody was told how it stands."""
        story = self._story(tx_id)
        if state == "COMMITTED":
            for branch, asked in story.asked.items():
                last = _LAST[asked.kind]
                if asked.kind != "message" and (branch, last) not in story.done:
                    self._wrong(
                        f"{who} was told COMMITTED, and the {last} of {self._name(tx_id, branch)} is not done"
                    )
        elif state == "ABORTED" and tx_id in self.plans:
            for branch in story.asked:
                if self._stands(story, branch):
                    self._wrong(f"{who} was told ABORTED, and {self._name(tx_id, branch)} is not compensated")

    def held(self) -> set[tuple[str, str]]:
        """Messages, with their transactions, that wait for one before them which waits for a person."""
        return set(
            self._world.log.select(
                "SELECT o.tx_id, o.branch FROM txcoord_ordering o"
                " JOIN txcoord_ordering h ON h.line = o.line AND h.turn = 1 JOIN txcoord_tx t ON t.tx_id = h.tx_id"
                " WHERE t.parked > 0 AND o.tx_id <> h.tx_id"
            )
        )

    def final(self, log: dict[str, str]) -> None:
        """Nothing happens any more."""
        held = self.held()
        for tx_id, story in self._by_tx.items():
            decision = self._world.checker.decisions.get(tx_id) or log.get(tx_id, "")
            states = {state for _, state in self._world.checker.told_of(tx_id)}
            for branch, asked in story.asked.items():
                name = f"branch {self._name(tx_id, branch)}"
                ops = {op for b, op in story.done if b == branch}
                wanted, undone = _WANTED[asked.kind], (_UNDONE[asked.kind], set())
                if asked.kind == "message" and decision == "commit" and not ops and self._is_parked(tx_id):
                    continue  # A person has finished a branch otherwise: that holds deliveries back.
                if decision == "commit" and not ops and (tx_id, branch) in held:
                    continue  # And those that come after them in order.
                if decision == "commit" and ops != wanted:
                    self._wrong(f"{name} was to be committed, and {_list(ops)} was done")
                elif decision != "commit" and ops not in undone:
                    self._wrong(f"{name} was to be undone, and {_list(ops)} was done")
                if states & {"COMMITTED", "COMMITTING"} and ops != wanted:
                    self._wrong(f"{name}: told {' and '.join(sorted(states))}, and {_list(ops)} was done")
                if states & {"ABORTED", "ABORTING"} and ops not in undone:
                    self._wrong(f"{name}: told {' and '.join(sorted(states))}, and {_list(ops)} was done")

    def _is_parked(self, tx_id: str) -> bool:
        return bool(
            self._world.log.select(f"SELECT 1 FROM txcoord_tx WHERE tx_id = '{tx_id}' AND parked > 0")
        )

    def _story(self, tx_id: str) -> Story:
        return self._by_tx.setdefault(tx_id, Story())

    def _name(self, tx_id: str, branch: str) -> str:
        return f"{branch} of {self._world.checker.name_of(tx_id)}"

    def _wrong(self, text: str) -> None:
        self._world.checker.wrong(text)


def _list(ops: set[str]) -> str:
    return " and ".join(sorted(ops)) or "nothing"
