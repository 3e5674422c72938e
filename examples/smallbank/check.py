"""The checker: what the clients were told against what the databases say. It knows nothing of txcoord."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .databases import Database

COMMITTED = "committed"
ABORTED = "aborted"
REFUSED = "refused"
"""A business no; to whoever asks again the transaction is aborted."""
FAILED = "failed"
"""This call did nothing. (An earlier one, of which nothing was heard, may have.)"""
UNKNOWN = "unknown"
FINAL = frozenset({COMMITTED, ABORTED, REFUSED})


@dataclass(slots=True)
class Payment:
    """A payment that a client asked for, and everything that it was told, in order."""

    gid: str
    op: str
    source: int
    target: int
    cents: int
    answers: list[str] = field(default_factory=list)
    whys: list[str] = field(default_factory=list)
    """What came with each answer, for people."""

    @property
    def told(self) -> str:
        """What the client believes in the end: a fact if it ever was told one."""
        for answer in self.answers:
            if answer in FINAL:
                return answer
        return FAILED if self.answers and set(self.answers) == {FAILED} else UNKNOWN

    @property
    def doubted(self) -> bool:
        """Was there a time when the client did not know?"""
        return UNKNOWN in self.answers or not self.answers

    def wanted(self) -> list[tuple[str, int, int]]:
        """The journal rows that it leaves when it is done, once."""
        first, second = {
            "send_payment": ("checking", "savings"),
            "withdraw_savings": ("savings", "checking"),
            "move_checking": ("checking", "checking"),
            "move_savings": ("savings", "savings"),
        }[self.op]
        return sorted([(first, self.source, -self.cents), (second, self.target, self.cents)])


@dataclass(slots=True)
class Verdict:
    """What was found. ``anomalies`` must be empty."""

    money_before: int
    money_after: int
    sums: dict[str, int]
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
    anomalies: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Was nothing lost, doubled, torn or left behind?"""
        return not self.anomalies


def check(databases: Sequence[Database], payments: dict[str, Payment], cents_each: int) -> Verdict:
    """Compare. Each account had ``cents_each``; each database's foreign prepared transactions must still be there."""
    sums = {db.name: db.number("SELECT sum(balance) FROM account") for db in databases}
    accounts = sum(db.number("SELECT count(*) FROM account") for db in databases)
    verdict = Verdict(accounts * cents_each, sum(sums.values()), sums)
    if verdict.money_after != verdict.money_before:
        verdict.anomalies.append(f"money: {verdict.money_before} cents before, {verdict.money_after} after")
    rows: dict[str, list[tuple[str, int, int]]] = {}
    for db in databases:
        for gid, account, delta in db.rows("SELECT gid, account, delta FROM journal"):
            rows.setdefault(gid, []).append((db.name, int(account), int(delta)))
        _balances(verdict, db, cents_each)
    for gid, found in rows.items():
        if gid not in payments:
            verdict.anomalies.append(f"{gid}: nobody asked for it: {found}")
        elif sorted(found) != payments[gid].wanted():
            verdict.anomalies.append(f"{gid}: half done, or more than once: {found}")
    for payment in payments.values():
        _told(verdict, payment, done=payment.gid in rows)
    for db in databases:
        _prepared(verdict, db)
    return verdict


def _balances(verdict: Verdict, db: Database, cents_each: int) -> None:
    """Every account must hold what its journal says."""
    wrong = db.rows(
        "SELECT a.id, a.balance, coalesce(j.total, 0) FROM account a LEFT JOIN"
        " (SELECT account, sum(delta) AS total FROM journal GROUP BY account) j ON j.account = a.id"
        f" WHERE a.balance <> {cents_each} + coalesce(j.total, 0)"
    )
    for account, balance, total in wrong:
        verdict.anomalies.append(f"account {account} in {db.name}: {balance}, but its journal says {total}")


def _told(verdict: Verdict, payment: Payment, *, done: bool) -> None:
    told = payment.told
    verdict.told[told] += 1
    if payment.doubted:
        verdict.doubted[told] += 1
    verdict.done += done
    verdict.one_phase += done and payment.op.startswith("move_")
    verdict.unknown_done += done and told == UNKNOWN
    if told == COMMITTED and not done:
        verdict.anomalies.append(f"{payment.gid}: told committed, and it is nowhere")
    elif told in (ABORTED, REFUSED, FAILED) and done:
        verdict.anomalies.append(f"{payment.gid}: told {told}, and it is there")
    facts = {COMMITTED if answer == COMMITTED else ABORTED for answer in payment.answers if answer in FINAL}
    if len(facts) > 1:
        verdict.anomalies.append(f"{payment.gid}: told two stories: {payment.answers}")


def _prepared(verdict: Verdict, db: Database) -> None:
    left = db.prepared()
    ours = [gid for gid in left if gid not in db.foreign]
    verdict.prepared_left += len(ours)
    verdict.foreign_left += len(left) - len(ours)
    if ours:
        verdict.anomalies.append(f"{len(ours)} left prepared in {db.name}: {ours[:3]}")
    if sorted(set(left) & set(db.foreign)) != sorted(db.foreign):
        verdict.anomalies.append(f"a foreign prepared transaction in {db.name} was touched")
    if unlisted := db.unlisted():
        verdict.limbo_left += unlisted
        verdict.anomalies.append(f"{unlisted} left in limbo, or open, in {db.name}")
