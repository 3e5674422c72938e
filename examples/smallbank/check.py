"""The checker: what the clients were told against what the databases say. It knows nothing of txcoord."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import asyncpg


@dataclass(slots=True)
class Verdict:
    """What was found. ``anomalies`` must be empty."""

    money_before: int
    money_after: int
    checking: int
    savings: int
    in_both: int = 0
    one_phase: int = 0
    told: Counter[str] = field(default_factory=Counter)
    unknown_committed: int = 0
    unknown_aborted: int = 0
    prepared_left: int = 0
    foreign_left: int = 0
    anomalies: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Was nothing lost, doubled, torn or left behind?"""
        return not self.anomalies


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment that a client asked for, and the last thing it was told."""

    gid: str
    op: str
    cents: int
    told: str


async def check(
    checking: asyncpg.Connection,
    savings: asyncpg.Connection,
    payments: dict[str, Payment],
    money_before: int,
    foreign: list[str],
) -> Verdict:
    """Compare. ``foreign`` are prepared transactions of somebody else that must still be there."""
    sums = [int(await db.fetchval("SELECT sum(balance) FROM account")) for db in (checking, savings)]
    verdict = Verdict(money_before, sum(sums), *sums)
    if verdict.money_after != money_before:
        verdict.anomalies.append(f"money: {money_before} cents before, {verdict.money_after} after")
    rows: dict[str, list[tuple[str, int]]] = {}
    for name, db in (("checking", checking), ("savings", savings)):
        for gid, delta in await db.fetch("SELECT gid, delta FROM journal"):
            rows.setdefault(gid, []).append((name, delta))
    for gid, found in rows.items():
        if gid not in payments:
            verdict.anomalies.append(f"{gid}: nobody asked for it")
            continue
        complaint = _torn(payments[gid], sorted(found))
        if complaint:
            verdict.anomalies.append(f"{gid}: {complaint}: {found}")
    for gid, payment in payments.items():
        done = gid in rows
        verdict.told[payment.told] += 1
        if payment.told == "committed" and not done:
            verdict.anomalies.append(f"{gid}: told committed, and it is nowhere")
        elif payment.told in ("aborted", "refused", "failed") and done:
            verdict.anomalies.append(f"{gid}: told {payment.told}, and it is there")
        elif payment.told == "unknown":
            verdict.unknown_committed += done
            verdict.unknown_aborted += not done
        verdict.in_both += done and payment.op != "move_checking"
        verdict.one_phase += done and payment.op == "move_checking"
    await _prepared(verdict, checking, savings, foreign)
    return verdict


def _torn(payment: Payment, found: list[tuple[str, int]]) -> str:
    cents = payment.cents
    wanted = {
        "send_payment": [("checking", -cents), ("savings", cents)],
        "withdraw_savings": [("checking", cents), ("savings", -cents)],
        "move_checking": [("checking", -cents), ("checking", cents)],
    }[payment.op]
    return "" if found == sorted(wanted) else "half done, or done more than once"


async def _prepared(
    verdict: Verdict, checking: asyncpg.Connection, savings: asyncpg.Connection, foreign: list[str]
) -> None:
    left: list[str] = []
    for db in (checking, savings):
        left += [
            row[0]
            for row in await db.fetch("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
        ]
    verdict.prepared_left = sum(gid not in foreign for gid in left)
    verdict.foreign_left = sum(gid in foreign for gid in left)
    if verdict.prepared_left:
        verdict.anomalies.append(f"{verdict.prepared_left} left prepared: {left[:3]}")
    if verdict.foreign_left != len(foreign):
        verdict.anomalies.append("a foreign prepared transaction was touched")
