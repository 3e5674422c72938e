"""What must be so when everything has come to rest, and what may never happen on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.model import transitions
from txcoord.core.model import BranchState, Change, ChangeKind, DecidedBy, Kind, WriteResult, Written
from txcoord_client.protocol import xid as xids

from .effects import Effects

if TYPE_CHECKING:
    from .world import World

QUIET_ALARMS = frozenset(
    {"in_limbo", "step_stuck"}
)  # The second: of a plan that was taken over, and is in doubt.
"""These tell of what the world itself has done; any other is a mistake of the code."""
CRASHES = frozenset(
    {
        "api.crashed",
        "branch.finish_crashed",
        "branch.look_crashed",
        "deadline.failed",
        "due.failed",
        "lane.crashed",
        "log.change_refused",
        "log.flush_failed",
        "log.listener_failed",
        "log.read_failed",
        "queue.carry_failed",
        "recovery.failed",
        "scan.failed",
        "takeover.failed",
        "task.crashed",
        "timer.crashed",
    }
)


_DECIDES = {
    DecidedBy.CLIENT: "Rollback",
    DecidedBy.BRANCH: "Rollback",
    DecidedBy.OPERATOR: "Rollback",
    DecidedBy.DATABASE: "Rollback",
    DecidedBy.DEADLINE: "DeadlinePassed",
    DecidedBy.SCANNER: "OrphanFound",
}
_COMMITS = {by: "OnePhaseDone" if by is DecidedBy.DATABASE else "Commit" for by in DecidedBy}


_ALWAYS = ("the foreign transaction", *CRASHES)


@dataclass
class Attempt:
    """One transaction as its initiator knows it."""

    op: str
    tx_id: str
    deadline_us: int
    gid: str = ""
    resources: tuple[str, ...] = ()
    rows: list[str] = field(default_factory=list)
    """What it has done, or was about to do: a row for each branch."""
    doomed: bool = False
    """Something of it has failed: it must not commit."""
    told: list[tuple[str, str]] = field(default_factory=list)
    """Who was told what."""


class Checker:
    """Keeps the history; the world's databases have the truth."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.attempts: dict[str, Attempt] = {}
        self.effects = Effects(world)
        self.violations: list[str] = []
        self.decisions: dict[str, str] = {}
        self.alarms: list[str] = []
        self.by_hand: set[str] = set()
        """Transactions of which a person has finished a branch."""
        self.asked_to_abort: set[str] = set()
        """Whose rollback somebody has sent."""
        self.surfaced: set[str] = set()
        """What a person did against the decision, and was alarmed."""
        self.running = 0
        """Operations of clients that have not ended."""
        self._stands: dict[str, tuple[int, int]] = {}
        self._inserted: set[str] = set()
        self._sealed: set[str] = set()

    def wrong(self, text: str) -> None:
        """Something that must not be."""
        self._world.note("WRONG", what=text)
        if self._world.plan.beyond and not text.startswith(_ALWAYS):
            return  # More than is promised was asked for. These are to be so even then.
        if text not in self.violations:
            self.violations.append(text)

    # ---- while it runs ----

    def changed(self, change: Change, result: WriteResult) -> None:
        """The log has seen a change: the decision of a transaction never changes."""
        tx_id = change.tx.tx_id
        if result.written is not Written.OK:
            return
        found = self._world.log.select(
            f"SELECT decision, decided_by, ended_us, epoch, deadline_us FROM txcoord_tx WHERE tx_id = '{tx_id}'"
        )
        decision, by, ended_us, epoch, deadline_us = found[0] if found else (None, "", 0, 0, 0)
        decision = decision or ""
        before = self.decisions.get(tx_id, "")
        if before and decision != before:
            self.wrong(f"{self._name(tx_id)}: the decision was {before}, and is {decision or 'none'} now")
        if decision and not before:
            self.decisions[tx_id] = decision
            self._world.note("decided", tx=tx_id, decision=decision, by=by)
            now_us = result.now_us
            if decision == "commit" and by == "client" and now_us > deadline_us:
                self.wrong(
                    f"{self._name(tx_id)}: commit was written {now_us - deadline_us} us after its deadline"
                )
            if (
                decision == "abort"
                and by == "client"
                and now_us > self._world.windows.abort_until(deadline_us)
            ):
                self.wrong(f"{self._name(tx_id)}: a requested abort was written after W")
        was_ended, was_epoch = self._stands.get(tx_id, (0, 0))
        if change.kind is ChangeKind.INSERT and tx_id in self._stands:
            # An INSERT finds no row: retention has deleted that one. A branch that was in limbo may come back later.
            if not was_ended:
                self.wrong(f"{self._name(tx_id)}: its row was deleted before it had ended")
            was_ended, was_epoch = 0, 0
        if was_ended and not ended_us and tx_id in self.decisions:
            self.wrong(f"{self._name(tx_id)}: it had ended, and is on its way again in the log")
        if epoch < was_epoch:
            self.wrong(f"{self._name(tx_id)}: its epoch went from {was_epoch} back to {epoch}")
        self._stands[tx_id] = (ended_us, epoch)
        self._acted(change, decision or "", before, bool(ended_us), bool(was_ended))

    def _acted(self, change: Change, decision: str, before: str, ended: bool, was_ended: bool) -> None:
        """The change as a step of the model."""
        tx, world = change.tx, self._world
        facts = {"deadline_us": tx.deadline_us}
        if change.kind is ChangeKind.INSERT:
            if tx.tx_id in self._inserted:
                world.acted("prune", tx.tx_id, **facts)
            self._inserted.add(tx.tx_id)
        if not decision:
            if change.kind is ChangeKind.INSERT:
                world.acted("Begin", tx.tx_id, node=tx.owner, **facts)
            for b in change.touched:
                if b.kind is not Kind.XA:
                    continue  # The model is one of XA; what participants do is checked by itself.
                world.acted("Enlist", tx.tx_id, b.id, tx.owner, **facts)
        elif not before or change.kind is ChangeKind.INSERT:
            listed = [b.id for b in tx.branches if b.kind is Kind.XA and b.state is not BranchState.READ_ONLY]
            by = DecidedBy.CLIENT if tx.decided_by is None else tx.decided_by
            name = _DECIDES[by] if decision == "abort" else _COMMITS[by]
            world.acted(name, tx.tx_id, node=tx.owner, branches=listed, **facts)
        if ended and not was_ended and not (decision == "commit" and tx.decided_by is DecidedBy.DATABASE):
            world.acted("BranchFinished", tx.tx_id, node=tx.owner, **facts)

    def rollback_sent(self, request: Any) -> None:
        """The initiator, or somebody else, asks for abort."""
        self.asked_to_abort.add(request.tx_id)
        if request.initiator and request.sealed and request.tx_id not in self._sealed:
            self._sealed.add(request.tx_id)
            self._world.acted("Rollback_unlogged", request.tx_id, deadline_us=request.deadline_us)

    def submit_sent(self, request: Any) -> None:
        """A whole plan is on its way to a coordinator."""
        tx_id = request.tx_id
        self.effects.plans.add(tx_id)
        self.effects.expect(tx_id, request.branches)
        self.attempts.setdefault(tx_id, Attempt(request.spec.name, tx_id, request.deadline_us, request.gid))

    def log_restarted(self) -> None:
        """What was not synced is gone. Only what a database has decided may be."""
        rows = dict(self._world.log.select("SELECT tx_id, decision FROM txcoord_tx"))
        ended = dict(self._world.log.select("SELECT tx_id, ended_us FROM txcoord_tx"))
        before = dict(self._stands)
        self._stands.clear()
        for tx_id, decision in list(self.decisions.items()):
            if (rows.get(tx_id) or "") != decision:
                # A lazy report of a one-phase commit, of which the database itself knows.
                self._world.note("lost with the log", tx=tx_id, decision=decision)
                del self.decisions[tx_id]
                self._inserted.discard(tx_id)
                self._world.acted("forget", tx_id)
            elif before.get(tx_id, (0, 0))[0] and not ended[tx_id]:
                self._world.acted("forget", tx_id)

    def branch_rolled_back(self, xid: str, by: str) -> None:
        """A prepared branch is rolled back: only after its ABORT is in the log, or its initiator has asked for it."""
        x = xids.parse(xid)
        if x is None or not by.startswith("n"):
            return
        decision = self.decisions.get(x.tx_id, "")
        if decision == "commit" and x.tx_id not in self.by_hand:
            self.wrong(f"{self._branch(xid)} was rolled back by {by}, and commit was decided")
        if not decision and x.tx_id not in self.asked_to_abort:
            self.wrong(f"{self._branch(xid)} was rolled back by {by} without an ABORT in the log")

    def told(self, tx_id: str, who: str, state: str) -> None:
        """Somebody was told how a transaction stands."""
        attempt = self.attempts.get(tx_id)
        if attempt is None:
            return
        attempt.told.append((who, state))
        what = {"ABORTING": "ABORTED"}.get(state, state)
        if what in ("COMMITTED", "COMMITTING", "ABORTED") and attempt.rows:
            self._world.acted("tell", tx_id, what=what, who=who, deadline_us=attempt.deadline_us)
        self._world.note("told", tx=tx_id, who=who, state=state)
        if tx_id not in self.by_hand:
            self.effects.told(tx_id, who, state)
        if state == "COMMITTED" and tx_id not in self.by_hand:
            missing = [row for row in attempt.rows if not self._world.has_row(row)]
            if missing:
                self.wrong(f"{attempt.op}: {who} was told COMMITTED while {_where(missing)} is not there")

    def event(self, name: str, facts: dict[str, object]) -> None:
        """A line of the logs."""
        if self._world.over:
            return  # Said by what is being buried.
        if name.startswith("alarm."):
            kind = name.removeprefix("alarm.")
            self.alarms.append(kind)
            self._world.note("alarm", what=kind, tx=facts.get("tx_id"), detail=facts.get("detail"))
            tx_id = str(facts.get("tx_id") or "")
            if tx_id in self.by_hand:
                self.surfaced.add(tx_id)
            elif kind not in QUIET_ALARMS:
                self.wrong(f"alarm {kind}: {facts.get('detail')}")
        elif name in CRASHES:
            error = facts.get("exc_info") or facts.get("reason")
            self.wrong(f"{name}: {_short(error)}")

    # ---- in the end ----

    def unsettled(self) -> list[str]:
        """Why it has not come to rest yet."""
        world = self._world
        out = []
        held = {tx_id for tx_id, _ in self.effects.held()}
        if world.net.late:
            out.append(f"{world.net.late} messages are still on their way")
        if self.running:
            out.append(f"{self.running} operations of clients have not ended")
        for row in world.log.select(
            "SELECT tx_id, state, owner, at_rest FROM txcoord_tx WHERE decision IS NULL OR ended_us = 0"
        ):
            if row[3] and row[0] in self.by_hand:
                continue  # Parked: an operator has to see to what a person has done.
            if row[1] == "committed" and row[0] in held:
                continue  # Its message comes after one of those.
            out.append(f"{self._name(row[0])} is {row[1]} in the log (owner {row[2] or 'nobody'})")
        for database in world.databases.values():
            out += [
                f"{self._branch(xid)} is prepared in {database.name}"
                for xid in database.prepared
                if not world.is_foreign(xid)
            ]
            out += [f"{self._branch(tx.xid)} is in limbo in {database.name}" for tx in database.limbo]
            out += [
                f"{s.id} of {database.name} has an open transaction"
                for s in database.sessions.values()
                if s.tx is not None
            ]
        return out

    def final(self) -> None:
        """Nothing happens any more."""
        world = self._world
        rows: Counter[str] = Counter(
            row for d in world.databases.values() for row in d.rows if not row.startswith("fx:")
        )
        log = {
            tx_id: decision or ""
            for tx_id, decision in world.log.select("SELECT tx_id, decision FROM txcoord_tx")
        }
        by_gid: dict[str, list[str]] = {}
        for tx_id, a in self.attempts.items():
            there = [row for row in a.rows if rows[row]]
            if tx_id in self.by_hand:
                wanted = len(a.rows) if log.get(tx_id) == "commit" else 0
                if len(there) != wanted and tx_id not in self.surfaced:
                    self.wrong(
                        f"{a.op}: a person has finished a branch against the decision, and nobody was alarmed"
                    )
                continue
            for row in a.rows:
                if rows[row] > 1:
                    self.wrong(f"{a.op}: {row} was done {rows[row]} times")
            if there and len(there) != len(a.rows):
                missing = [row for row in a.rows if not rows[row]]
                self.wrong(f"{a.op} is torn: {_where(there)} is there, {_where(missing)} is not")
            states = {state for _, state in a.told}
            told = " and ".join(sorted(states))
            if states & {"COMMITTED", "COMMITTING"} and len(there) != len(a.rows):
                self.wrong(f"{a.op}: told {told}, and {len(there)} of {len(a.rows)} rows are there")
            if states & {"COMMITTED", "COMMITTING"} and a.doomed:
                self.wrong(f"{a.op}: a statement of it had failed, and it was told {told}")
            if states & {"ABORTED", "ABORTING"} and there:
                self.wrong(f"{a.op}: told {told}, and {_where(there)} is there")
            if log.get(tx_id) == "commit" and len(there) != len(a.rows):
                self.wrong(f"{a.op}: the log says commit, and {len(there)} of {len(a.rows)} rows are there")
            if log.get(tx_id) == "abort" and there:
                self.wrong(f"{a.op}: the log says abort, and {_where(there)} is there")
            if (there or self.effects.of(tx_id)) and a.gid:
                by_gid.setdefault(a.gid, []).append(a.op)
        for gid, ops in by_gid.items():
            if len(ops) > 1:
                self.wrong(f"gid {gid} was done {len(ops)} times: {ops}")
        for database in world.databases.values():
            for xid in world.foreign:
                if xid not in database.prepared:
                    self.wrong(f"the foreign transaction {xid} in {database.name} was touched")
        self.effects.final(log)
        left_out = self.by_hand | self.effects.plans
        history = [step for step in world.actions if step["tx"] not in left_out]
        windows = transitions.Windows(world.windows.grace_us, world.windows.retention_us)
        for text in transitions.check(history, windows):
            self.wrong(f"the model does not allow it: {text}")
        known = {row for a in self.attempts.values() for row in a.rows}
        for row in rows:
            if row not in known:
                self.wrong(f"{row} was done by nobody")

    def missing(self, tx_id: str) -> list[str]:
        """What of a transaction's own work is in no database."""
        attempt = self.attempts.get(tx_id)
        if attempt is None or tx_id in self.by_hand:
            return []
        return [row for row in attempt.rows if not self._world.has_row(row)]

    def told_of(self, tx_id: str) -> list[tuple[str, str]]:
        """Who was told what of it."""
        attempt = self.attempts.get(tx_id)
        return attempt.told if attempt is not None else []

    def name_of(self, tx_id: str) -> str:
        """For people."""
        return self._name(tx_id)

    def _name(self, tx_id: str) -> str:
        attempt = self.attempts.get(tx_id)
        return f"{attempt.op} ({tx_id[-6:]})" if attempt is not None else tx_id[-6:]

    def _branch(self, xid: str) -> str:
        parts = xid.split(".", 4)
        return f"branch {parts[4]} of {self._name(parts[3])}" if len(parts) == 5 else xid


def _where(rows: list[str]) -> str:
    """Rows are named by transaction, database and who wrote them."""
    return "its row in " + " and ".join(row.split(".")[1] for row in rows)


def _short(error: object) -> str:
    if isinstance(error, BaseException):
        return f"{type(error).__name__}: {error}"
    return str(error)[:300]
