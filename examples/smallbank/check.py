"""The checker: what was told and seen, against what the databases say. It knows nothing of txcoord.

It reads a history, which is a list of records, and needs nothing else: no database, no package but the standard
library. As a command it reads saved ones, a record of JSON on each line:

    python examples/smallbank/check.py HISTORY.jsonl...

Records have a `kind`, and `t`, seconds since the run began (one clock for all):

    world   databases: {name: {accounts, each, foreign}}, nodes: [name]           how it was before
    call    call, gid, rows: [[database, account, cents]], xa: [database]         a client asks for a payment
    reply   call, gid, told, why                                                  and is answered
    seen    asked, node, gid, tx, outcome, ended, note, last                      what a node says of a gid
    read    asked, gid, database, rows                                            how many rows of it are there now
    rows    database, accounts: [[id, cents]], journal: [[gid, account, cents]],
            markers: [[tx, done]], prepared: [xid], limbo,
            calls: [[tx, branch, op, done]]                                       a database in the end
    alarm   node, text                                                            what a person must see
    fault … whatever else there is: for people

`rows` of a call is what it leaves when it is done, once, and nothing otherwise; `xa` (without it: all of them) names
the databases in which it leaves a marker. `calls` is what participants say that they did: try, confirm, cancel, action,
compensate. `told` is one of the words below.
`outcome` is committed, aborted or "" (undecided, or never heard of); `last` marks what was asked when all was over.
Of several `rows` of a database the last one counts.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMITTED = "committed"
ABORTED = "aborted"
REFUSED = "refused"
"""A business no; to whoever asks again the transaction is aborted."""
FAILED = "failed"
"""This call did nothing. (An earlier one, of which nothing was heard, may have.)"""
UNKNOWN = "unknown"
COMMITTING = "committing"
"""It will be, for certain; it may not be in all databases yet."""
FINAL = frozenset({COMMITTED, ABORTED, REFUSED})
_FACTS = FINAL | {COMMITTING}

Record = Mapping[str, Any]
Row = tuple[str, int, int]


class Incomplete(Exception):
    """The history lacks what a verdict needs. No verdict is better than one on half of the evidence."""


@dataclass(slots=True)
class Payment:
    """A payment that a client asked for, and everything that was said of it."""

    gid: str
    rows: list[Row]
    xa: set[str]
    """Where it is a branch; elsewhere a participant does it."""
    asked: dict[int, float] = field(default_factory=dict)
    """When each call was made."""
    answers: list[tuple[float, int, str]] = field(default_factory=list)
    """When, to which call, and what."""
    seen: list[Record] = field(default_factory=list)
    reads: list[Record] = field(default_factory=list)

    @property
    def told(self) -> str:
        """What the client believes in the end: a fact if it ever was told one."""
        words = [told for _, _, told in self.answers]
        for told in words:
            if told in _FACTS:
                return COMMITTED if told == COMMITTING else told
        return FAILED if len(words) == len(self.asked) and set(words) == {FAILED} else UNKNOWN

    @property
    def doubted(self) -> bool:
        """Was there a time when the client did not know?"""
        return len(self.answers) < len(self.asked) or any(told == UNKNOWN for _, _, told in self.answers)


@dataclass(slots=True)
class Verdict:
    """What was found. ``anomalies`` must be empty."""

    money_before: int = 0
    money_after: int = 0
    sums: dict[str, int] = field(default_factory=dict)
    payments: int = 0
    calls: int = 0
    observations: int = 0
    done: int = 0
    one_phase: int = 0
    """Done within one database."""
    told: Counter[str] = field(default_factory=Counter)
    doubted: Counter[str] = field(default_factory=Counter)
    """Payments of which a client once knew nothing, by what it was told in the end."""
    unknown_done: int = 0
    prepared_left: int = 0
    limbo_left: int = 0
    """Held by a database that has forgotten their names."""
    foreign_left: int = 0
    branches: int = 0
    """Reservations and steps of participants."""
    anomalies: list[str] = field(default_factory=list)
    """Each begins with its kind: MONEY, BALANCE, NOBODY_ASKED, TORN, TWICE, WRONG_ROWS, LOST, UNDEAD, TWO_STORIES,
    CHANGED, FORGOTTEN, TOO_EARLY, LIE, NOT_ENDED, HEURISTIC, MARKER, HALF, PREPARED, LIMBO, FOREIGN, ALARM."""

    @property
    def good(self) -> bool:
        """Was nothing lost, doubled, torn or left behind, and nobody told a false answer?"""
        return not self.anomalies

    def bad(self, kind: str, text: str) -> None:
        """Something that must not be."""
        self.anomalies.append(f"{kind} {text}")


def check(history: Iterable[Record]) -> Verdict:
    """Judge a history. Raises Incomplete where it has no end."""
    world: Record | None = None
    ends: dict[str, Record] = {}
    payments: dict[str, Payment] = {}
    verdict = Verdict()
    for record in history:
        match record["kind"]:
            case "world":
                world = record
            case "rows":
                ends[record["database"]] = record
            case "call":
                rows = sorted((str(db), int(account), int(cents)) for db, account, cents in record["rows"])
                xa = set(record.get("xa", [db for db, _, _ in rows]))
                payment = payments.setdefault(record["gid"], Payment(record["gid"], rows, xa))
                if payment.rows != rows:
                    raise Incomplete(f"{payment.gid} was asked for with two contents")
                payment.asked[record["call"]] = record["t"]
                verdict.calls += 1
            case "reply":
                answer = (record["t"], record["call"], record["told"])
                _known(payments, record).answers.append(answer)
            case "seen":
                _known(payments, record).seen.append(record)
                verdict.observations += 1
            case "read":
                _known(payments, record).reads.append(record)
                verdict.observations += 1
            case "alarm":
                verdict.bad("ALARM", f"{record['node']}: {record['text']}")
    if world is None or set(ends) != set(world["databases"]):
        raise Incomplete(f"no end of the databases in it: {sorted(ends)}")
    verdict.payments = len(payments)
    _money(verdict, world["databases"], ends)
    done = _journal(verdict, payments, ends)
    markers = {name: {tx for tx, marked in end["markers"] if marked} for name, end in ends.items()}
    for payment in payments.values():
        _told(verdict, payment, done=payment.gid in done)
        _one_story(verdict, payment)
        _at_once(verdict, payment)
        _in_the_end(verdict, payment, list(world["nodes"]), markers, done=payment.gid in done)
    outcomes = {r["tx"]: r["outcome"] for p in payments.values() for r in p.seen if r["last"]}
    known = {record["tx"] for payment in payments.values() for record in payment.seen}
    for name, end in ends.items():
        if strange := markers[name] - known:
            verdict.bad("MARKER", f"{sorted(strange)[:3]} in {name}: of no transaction that a node knows")
        _calls(verdict, end, outcomes)
        _left(verdict, end, set(world["databases"][name]["foreign"]))
    return verdict


def _known(payments: Mapping[str, Payment], record: Record) -> Payment:
    if record["gid"] not in payments:
        raise Incomplete(f"a {record['kind']} of {record['gid']}, for which nobody had asked")
    return payments[record["gid"]]


def _money(verdict: Verdict, databases: Mapping[str, Record], ends: Mapping[str, Record]) -> None:
    """None is made, none is lost, and every account holds what its journal says."""
    for name, end in ends.items():
        before = databases[name]
        accounts = {int(account): int(cents) for account, cents in end["accounts"]}
        verdict.money_before += before["accounts"] * before["each"]
        verdict.sums[name] = sum(accounts.values())
        totals: Counter[int] = Counter()
        for _, account, cents in end["journal"]:
            totals[int(account)] += int(cents)
        if len(accounts) != before["accounts"] or not totals.keys() <= accounts.keys():
            verdict.bad("BALANCE", f"{name} has {len(accounts)} accounts, and had {before['accounts']}")
        for account, cents in accounts.items():
            if cents != before["each"] + totals[account]:
                verdict.bad(
                    "BALANCE",
                    f"account {account} in {name}: {cents}, by its journal {before['each'] + totals[account]}",
                )
    verdict.money_after = sum(verdict.sums.values())
    if verdict.money_after != verdict.money_before:
        verdict.bad("MONEY", f"{verdict.money_before} cents before, {verdict.money_after} after")


def _journal(verdict: Verdict, payments: Mapping[str, Payment], ends: Mapping[str, Record]) -> set[str]:
    """In all its databases or in none, and once. Answers what is there."""
    there: dict[str, list[Row]] = {}
    for name, end in ends.items():
        for gid, account, cents in end["journal"]:
            there.setdefault(gid, []).append((name, int(account), int(cents)))
    for gid, rows in there.items():
        if gid not in payments:
            verdict.bad("NOBODY_ASKED", f"for {gid}: {rows}")
            continue
        wanted = payments[gid].rows
        if sorted(rows) == wanted:
            continue
        missing, extra = Counter(wanted) - Counter(rows), Counter(rows) - Counter(wanted)
        if missing and not extra:
            verdict.bad("TORN", f"{gid}: {sorted(rows)}, and not {sorted(missing)}")
        elif extra.keys() <= set(wanted) and not missing:
            verdict.bad("TWICE", f"{gid}: {sorted(rows)}")
        else:
            verdict.bad("WRONG_ROWS", f"{gid}: {sorted(rows)} instead of {wanted}")
    return set(there)


def _told(verdict: Verdict, payment: Payment, *, done: bool) -> None:
    """What the client was told is so."""
    told = payment.told
    verdict.told[told] += 1
    if payment.doubted:
        verdict.doubted[told] += 1
    verdict.done += done
    verdict.one_phase += done and len({db for db, _, _ in payment.rows}) == 1
    verdict.unknown_done += done and told == UNKNOWN
    if told == COMMITTED and not done:
        verdict.bad("LOST", f"{payment.gid}: told committed, and it is nowhere")
    elif told in (ABORTED, REFUSED, FAILED) and done:
        verdict.bad("UNDEAD", f"{payment.gid}: told {told}, and it is there")


def _fact(told: str) -> str:
    return COMMITTED if told in (COMMITTED, COMMITTING) else ABORTED


def _one_story(verdict: Verdict, payment: Payment) -> None:
    """Whoever was told an outcome, by whom and whenever: it is the same one, and it is not forgotten."""
    told = {_fact(told) for _, _, told in payment.answers if told in _FACTS}
    if len(told) > 1:
        verdict.bad("TWO_STORIES", f"{payment.gid}: {[told for _, _, told in payment.answers]}")
    seen = {record["outcome"] for record in payment.seen if record["outcome"]}
    if len(seen | told) > 1 and len(told) < 2:
        nodes = {record["node"]: record["outcome"] for record in payment.seen if record["outcome"]}
        verdict.bad("CHANGED", f"{payment.gid}: clients were told {sorted(told)}, nodes say {nodes}")
    known = min((record["t"] for record in payment.seen if record["outcome"]), default=None)
    for record in payment.seen:
        if known is not None and record["asked"] > known and not record["outcome"]:
            when = f"asked at {record['asked']:.3f}, decided before {known:.3f}"
            verdict.bad("FORGOTTEN", f"{payment.gid}: {record['node']} says {record['note']}, {when}")


def _at_once(verdict: Verdict, payment: Payment) -> None:
    """Whoever was told a fact finds it so from then on."""
    facts = [(t, _fact(told)) for t, _, told in payment.answers if told in FINAL]
    if not facts:
        return
    since, fact = min(facts)
    if fact == ABORTED and not payment.xa:
        return  # What a saga has done may be seen until it is undone.
    for record in payment.reads:
        wanted = sum(db == record["database"] for db, _, _ in payment.rows) if fact == COMMITTED else 0
        if record["asked"] > since and record["rows"] != wanted:
            verdict.bad(
                "TOO_EARLY",
                f"{payment.gid}: told {fact} at {since:.3f}, at {record['asked']:.3f} {record['rows']} of its rows, "
                f"and not {wanted}, are in {record['database']}",
            )


def _in_the_end(
    verdict: Verdict, payment: Payment, nodes: Sequence[str], markers: Mapping[str, set[str]], *, done: bool
) -> None:
    """All nodes say of it what its databases say, and it has ended."""
    last = [record for record in payment.seen if record["last"]]
    asked = {record["node"] for record in last}
    if asked != set(nodes):
        raise Incomplete(f"{payment.gid}: in the end only {sorted(asked)} of {sorted(nodes)} were asked")
    for record in last:
        node = record["node"]
        if (record["outcome"] == COMMITTED) != done:
            where = "there" if done else "nowhere"
            verdict.bad(
                "LIE", f"{payment.gid}: {node} says {record['outcome'] or record['note']}, it is {where}"
            )
        if record["tx"] and not record["ended"]:
            verdict.bad("NOT_ENDED", f"{payment.gid}: {node} says {record['note']}")
        elif record["tx"] and record["note"]:
            verdict.bad("HEURISTIC", f"{payment.gid}: {node} says {record['note']}")
    here = {record["tx"] for record in last if record["tx"]}
    if len(here) > 1:
        verdict.bad("LIE", f"{payment.gid}: it is {sorted(here)} at once")
    wanted = payment.xa if done else set()
    found = {db for db, marked in markers.items() if here & marked}
    if here and found != wanted:
        verdict.bad("MARKER", f"{payment.gid}: marked as done in {sorted(found)}, done in {sorted(wanted)}")


_KEPT = ({"try", "confirm"}, {"action"})
_UNDONE = (set(), {"cancel"}, {"try", "cancel"}, {"compensate"}, {"action", "compensate"})
"""What of one branch a participant has done. A cancel or compensation of nothing does nothing, and is noted."""


def _calls(verdict: Verdict, end: Record, outcomes: Mapping[str, str]) -> None:
    """Each reservation and step is done and kept, or undone, as its transaction was decided."""
    did: dict[tuple[str, str], set[str]] = {}
    for tx, branch, op, done in end.get("calls", ()):
        did.setdefault((tx, branch), set()).update([op] if done else [])
    verdict.branches += len(did)
    for (tx, branch), ops in did.items():
        outcome = outcomes.get(tx, "")
        if ops not in (_KEPT if outcome == COMMITTED else _UNDONE if outcome == ABORTED else ()):
            verdict.bad(
                "HALF", f"branch {branch} of {tx} in {end['database']}: {sorted(ops)}, it is {outcome}"
            )


def _left(verdict: Verdict, end: Record, foreign: set[str]) -> None:
    """Nothing of ours is prepared or in limbo; what is somebody else's is as it was."""
    name, left = end["database"], list(end["prepared"])
    ours = [xid for xid in left if xid not in foreign]
    verdict.prepared_left += len(ours)
    verdict.foreign_left += len(left) - len(ours)
    if ours:
        verdict.bad("PREPARED", f"{len(ours)} left in {name}: {ours[:3]}")
    if missing := foreign - set(left):
        verdict.bad("FOREIGN", f"{sorted(missing)} in {name} was touched")
    if end["limbo"]:
        verdict.limbo_left += end["limbo"]
        verdict.bad("LIMBO", f"{end['limbo']} transactions in {name} are open, or held without a name")


def read(file: Path) -> list[Record]:
    """A saved history. Raises Incomplete where it is none, or was cut off."""
    records: list[Record] = []
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                text = f"line {number} is no JSON ({error.msg}): its run was killed as it wrote, or it is no history"
                raise Incomplete(text) from None
    if not records:
        raise Incomplete("it is empty: its run was ended before it wrote anything")
    return records


def main(files: Sequence[str]) -> int:
    """Judge saved histories. Exit status 0: no anomaly; 1: anomalies; 2: no verdict."""
    if not files:
        print(__doc__)
        return 2
    status = 0
    for file in files:
        try:
            verdict = check(read(Path(file)))
        except (Incomplete, OSError, ValueError, KeyError) as error:
            print(f"{file}: no verdict: {type(error).__name__}: {error}")
            return 2
        print(
            f"{file}: {verdict.payments:,} payments, {verdict.calls:,} calls, {verdict.observations:,} observations: "
            f"{len(verdict.anomalies)} anomalies"
        )
        for anomaly in verdict.anomalies:
            print(f"  {anomaly}")
        status = status or int(not verdict.good)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
