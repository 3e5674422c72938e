"""What must be so after an outage: by the log's rows, the participants' rows, and every call that they were sent."""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.faults.outage_participant import NAMES
from tests.faults.outage_plan import REPORTING, Asked, Form
from tests.faults.outage_site import (
    BROKER_BACK,
    POISON,
    PREFIX,
    STOCK_BACK,
    STOCK_KILLED,
    Place,
    now_us,
    tiers_us,
)
from tests.support.events import replay, told
from tests.support.kafka_queue import records_of
from txcoord.core.model import held_back
from txcoord_client.protocol.barrier import FIRST

PATIENCE_S: Final = 120.0
"""So long after the last client was told, all must have ended."""
_DONE: Final = 1
_NEVER: Final = 1 << 62
_CLOCKS_US: Final = 20_000
"""A node knows the log's clock this well."""
_REPEATED: Final = ("confirm", "cancel", "action", "compensate", "message", "notify")


@dataclass
class Found:
    """What was wrong, and figures."""

    wrong: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def told(self) -> str:
        """For people."""
        width = max(map(len, self.figures))
        return "\n".join(f"{name:{width}}  {value}" for name, value in self.figures.items())


@dataclass(frozen=True)
class Row:
    """A transaction, as the log has it."""

    tx_id: str
    gid: str
    decision: str
    state: str
    ended_us: int


class Wait(NamedTuple):
    """Of a branch, as the log was told."""

    at_us: int
    attempts: int
    due_us: int
    own: bool = False
    """Its time is its own: its participant asked for it. Else it failed, or was held back."""


@dataclass
class Rows:
    """All that is read."""

    txs: dict[str, Row]
    """By gid."""
    done: Counter[tuple[str, str, str]]
    """By gid, branch and op."""
    markers: set[tuple[str, str, str]]
    """By tx id, branch and op: those that say that it was done."""
    parked: int
    waits: dict[tuple[str, str], list[Wait]]
    """By tx id and branch, in order."""
    targets: dict[tuple[str, str], str]
    """By tx id and branch."""
    history: Counter[str]
    calls: list[dict[str, Any]]
    """With ``who``."""

    def told(self, marks: Mapping[str, int]) -> str:
        """What happened to each transaction, in order, in seconds: for whoever looks for the reason."""
        began = min(marks.values())
        lines = [(at, "", what) for what, at in marks.items()]
        gids = {row.tx_id: row.gid for row in self.txs.values()}
        lines += [(row.ended_us, row.gid, f"ended {row.state}") for row in self.txs.values()]
        for (tx_id, branch), waits in self.waits.items():
            for at, attempts, due, own in waits:
                wait = f"{branch} waits after {attempts} until {(due - began) / 1e6:.3f}{' as asked' * own}"
                lines.append((at, gids.get(tx_id, tx_id), wait))
        for call in self.calls:
            what = f"{call['branch']} {call['op']} {call['attempt']}"
            said = f"answered {call['kind']}" if "kind" in call else "called"
            lines.append(
                (call.get("at") or call["answered"], gids.get(call["tx"], call["tx"]), f"{what} {said}")
            )
        return "".join(f"{(at - began) / 1e6:9.3f} {gid:14} {what}\n" for at, gid, what in sorted(lines))


async def check(form: Form, asked: Sequence[Asked], answers: Mapping[str, str], place: Place) -> Found:
    """Wait until all has ended, and look at it."""
    found = Found()
    await _until_ended(place, found)
    place.mark("all has ended")
    rows = await _read(place)
    (place.folder / "rows.txt").write_text(rows.told(place.marks))
    outcomes(asked, answers, rows, found)
    effects(asked, rows, found)
    gone = {**_opened(place.folder), place.targets["stock"]: place.marks[STOCK_KILLED]}
    found.figures["targets whose breaker has opened"] = len(gone)
    times(tiers_us(place), place.marks, gone, rows, found)
    await _events(place, rows, found)
    if form.storms:
        await _poison(place, found)
    _figures(place, rows, answers, found)
    return found


async def _until_ended(place: Place, found: Found) -> None:
    log, until = place.databases["log"], time.monotonic() + PATIENCE_S
    open_ = "SELECT count(*) AS n FROM txcoord_tx WHERE ended_us = 0"
    waiting = "SELECT count(*) AS n FROM txcoord_outbox"
    while True:
        # The outbox is empty once all that it had is on the topic.
        counts = [(await place.fetch(log, query))[0]["n"] for query in (open_, waiting)]
        if not any(counts):
            return
        if time.monotonic() > until:
            found.wrong.append(f"not ended: {counts[0]} transactions, and {counts[1]} events not published")
            return
        await asyncio.sleep(0.1)


async def _read(place: Place) -> Rows:
    log = place.databases["log"]
    txs = await place.fetch(log, "SELECT tx_id, gid, decision, state, ended_us, parked FROM txcoord_tx")
    by_id = {row["tx_id"].hex: row["gid"] for row in txs}
    rows = Rows(
        {
            row["gid"]: Row(
                row["tx_id"].hex, row["gid"], row["decision"] or "", row["state"], row["ended_us"]
            )
            for row in txs
        },
        Counter(),
        set(),
        sum(row["parked"] for row in txs),
        defaultdict(list),
        {},
        Counter(),
        [],
    )
    assert len(by_id) == len(rows.txs)
    for name in (REPORTING, *NAMES):
        database = place.databases[name]
        for row in await place.fetch(database, "SELECT gid, branch, op FROM done"):
            rows.done[row["gid"], row["branch"], row["op"]] += 1
        for row in await place.fetch(
            database, f"SELECT tx_id, branch, op FROM txcoord_marker WHERE state = {_DONE}"
        ):
            rows.markers.add((row["tx_id"].hex, row["branch"], row["op"]))
        rows.calls += [{**call, "who": name} for call in place.calls(name)]
    for row in await place.fetch(log, "SELECT * FROM outage_due ORDER BY at_us"):
        own = not row["failures"] and not held_back(row["reason"])
        wait = Wait(row["at_us"], row["attempts"], row["due_us"], own)
        rows.waits[row["tx_id"].hex, row["branch"]].append(wait)
    for row in await place.fetch(log, "SELECT tx_id, id, resource FROM txcoord_branch"):
        rows.targets[row["tx_id"].hex, row["id"]] = row["resource"]
    for row in await place.fetch(log, "SELECT what, count(*) AS n FROM txcoord_history GROUP BY what"):
        rows.history[row["what"]] = row["n"]
    return rows


# ---- right, and once ----


def outcomes(asked: Sequence[Asked], answers: Mapping[str, str], rows: Rows, found: Found) -> None:
    """What clients were told is what the log says, and all is carried out."""
    for one in asked:
        answer = answers.get(one.gid, "unknown: no answer")
        row = rows.txs.get(one.gid)
        decision = (
            {"commit": "committed", "abort": "aborted"}.get(row.decision, "") if row is not None else ""
        )
        if answer in ("committed", "aborted") and answer != (decision or "aborted"):
            found.wrong.append(
                f"{one.gid}: its client was told {answer}, and the log says {decision or 'nothing'}"
            )
        if row is not None and row.state != decision:
            found.wrong.append(f"{one.gid}: decided {decision or 'nothing'}, and its state is {row.state}")


def effects(asked: Sequence[Asked], rows: Rows, found: Found) -> None:
    """All of it once, or nothing, or all of it undone once; and the markers say the same."""
    by_gid: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    came: Counter[str] = Counter()
    for (gid, branch, op), count in rows.done.items():
        by_gid[gid][branch][op] = count
    for one in asked:
        row = rows.txs.get(one.gid)
        committed = row is not None and row.decision == "commit"
        first, end, undo = ("try", "confirm", "cancel") if one.kind == "tcc" else ("action", "", "compensate")
        whole = {first: 1, end: 1} if end else {first: 1}
        right = [whole] if committed else [{}, {first: 1, undo: 1}]
        branches = by_gid.pop(one.gid, {})
        for number in range(1, len(one.parts) + 1):
            did = dict(branches.pop(str(number), {}))
            if did not in right:
                found.wrong.append(
                    f"{one.gid} branch {number}: {did}, {'committed' if committed else 'aborted'}"
                )
        for number, (what, whom) in enumerate(one.told, 3):
            did, wanted = dict(branches.pop(str(number), {})), {what: 1} if committed else {}
            came.update(did)
            if did != wanted:
                found.wrong.append(
                    f"{one.gid}: its {what} to {whom} is {did}, {'committed' if committed else 'aborted'}"
                )
        if branches:
            found.wrong.append(f"{one.gid}: nobody asked for branches {sorted(branches)}")
    if by_gid:
        found.wrong.append(f"nobody asked for {sorted(by_gid)[:5]}")
    found.figures["delivered, once each"] = ", ".join(
        f"{count} {what}" for what, count in sorted(came.items())
    )
    gids = {row.tx_id: row.gid for row in rows.txs.values()}
    marked = {
        (gids[tx_id], branch, op)
        for tx_id, branch, op in rows.markers
        # An undoing of what was never done has a marker, and does nothing.
        if tx_id in gids and (op not in FIRST or (tx_id, branch, FIRST[op]) in rows.markers)
    }
    in_log = {key for key in rows.done if key[0] in rows.txs}
    if marked != in_log:
        found.wrong.append(f"rows and markers differ: {sorted(marked ^ in_log)[:5]}")


# ---- in time ----


def _opened(folder: Path) -> dict[str, int]:
    """Targets that a node took for dead, on a busy machine also one that was not, and since when."""
    opened: dict[str, int] = {}
    for file in folder.glob("*.log"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if '"breaker.open"' in line:
                said = json.loads(line)
                at_us = round(datetime.fromisoformat(said["timestamp"]).timestamp() * 1e6)
                opened[said["target"]] = min(at_us, opened.get(said["target"], at_us))
    return opened


def times(
    tiers: Sequence[int], marks: Mapping[str, int], gone: Mapping[str, int], rows: Rows, found: Found
) -> None:
    """No call before its time, as it was in the log when the call came; none long after it.

    ``gone``: whose breaker was open, and since when.
    """
    all_back = max(marks[STOCK_BACK], marks[BROKER_BACK])
    late_all: list[int] = []
    late_after: list[int] = []
    beyond: list[int] = []
    early: list[str] = []
    pulled = waited = 0
    for call in rows.calls:
        if "at" not in call or call["op"] not in _REPEATED or call["attempt"] < 2:
            continue
        known = rows.waits.get((call["tx"], call["branch"]), [])
        at = call["at"]
        before = known[: bisect_right(known, at, key=lambda wait: wait.at_us)]
        fits = [wait for wait in before if wait.attempts == call["attempt"] - 1]
        if not fits:
            continue  # It waited for less than the log was told.
        waited += 1
        written_us, _, due_us, own = fits[-1]
        if (
            at < due_us
            and not own
            and at >= gone.get(rows.targets.get((call["tx"], call["branch"]), ""), _NEVER)
        ):
            pulled += 1  # It is back, or is asked whether it is: what waits for it goes on before its time.
            continue
        if at < due_us - _CLOCKS_US:
            early.append(f"{_shown(call)}: {(due_us - at) / 1e6:.3f} s early")
            continue
        late_us = at - max(due_us, written_us)
        late_all.append(late_us)
        since_back = at - max(due_us, written_us, all_back)
        if at >= all_back:
            tier = _tier(tiers, due_us - written_us)
            late_after.append(since_back)
            beyond.append(since_back - tier)
            if since_back > tier + 2_000_000:
                found.wrong.append(
                    f"late: {_shown(call)}: {since_back / 1e6:.3f} s, and its tier is {tier / 1e6:g} s"
                )
    early += _attempted_early(rows, gone)
    found.wrong += early
    f = found.figures
    f["repeated calls whose due time was in the log"] = waited
    f["early"] = len(early)
    f["pulled forward when a participant was back"] = pulled
    f["nearest to its time, s after it (min)"] = round(min(late_all, default=0) / 1e6, 6)
    f["late, all, s (p50 p99 max)"] = spread(late_all)
    f["late after all was back, s (p50 p99 max)"] = spread(late_after)
    f["of that beyond its tier, s (max)"] = round(max(beyond, default=0) / 1e6, 3)
    f["last end after all was back, s"] = round(
        max((row.ended_us - all_back for row in rows.txs.values() if row.ended_us), default=0) / 1e6, 3
    )


def _attempted_early(rows: Rows, gone: Mapping[str, int]) -> Iterator[str]:
    """Also attempts that never came to the participant: the next one's outcome was in the log before that was due."""
    for (tx_id, branch), waits in rows.waits.items():
        for (_, attempts, due_us, own), (at_us, then, _, _) in pairwise(waits):
            pulled = not own and at_us >= gone.get(rows.targets.get((tx_id, branch), ""), _NEVER)
            if then == attempts + 1 and at_us < due_us - _CLOCKS_US and not pulled:
                early_s = (due_us - at_us) / 1e6
                yield f"{tx_id} {branch} attempt {then}: its outcome was known {early_s:.3f} s early"


def _shown(call: Mapping[str, Any]) -> str:
    return f"{call['tx']} {call['branch']} {call['op']} attempt {call['attempt']}"


def _tier(tiers: Sequence[int], delay_us: int) -> int:
    return next((tier for tier in tiers if tier >= delay_us), tiers[-1])


def spread(values: Sequence[int]) -> str:
    """Median, 99th percentile and largest of microseconds, in seconds."""
    if not values:
        return "-"
    values = sorted(values)
    picked = (values[len(values) // 2], values[min(len(values) - 1, len(values) * 99 // 100)], values[-1])
    return " ".join(f"{value / 1e6:.3f}" for value in picked)


# ---- events ----


async def _events(place: Place, rows: Rows, found: Found) -> None:
    """Replaying the topic from its start gives each transaction's outcome."""
    events = await replay(place.kafka, f"{PREFIX}.events")
    seen = told(events)
    ends = ("txcoord.transaction.committed", "txcoord.transaction.aborted")
    for row in rows.txs.values():
        whats = [event.type for event in seen.pop(row.tx_id, [])]
        if (
            not whats
            or whats[0] != "txcoord.transaction.decided"
            or [w for w in whats if w in ends] != [f"txcoord.transaction.{row.state}"]
        ):
            found.wrong.append(f"{row.gid} is {row.state}, and its events are {whats}")
    if seen:
        found.wrong.append(f"events of transactions that the log does not know: {sorted(seen)[:5]}")
    found.figures["events on the topic"] = len(events)


async def _poison(place: Place, found: Found) -> None:
    """It is kept."""
    kept = Counter(record.value for record in await records_of(place.kafka, f"{PREFIX}.poison"))
    # Its offset may have been lost with the broker: then it is set aside once more.
    if set(kept) != set(POISON):
        found.wrong.append(f"the poison that was kept is {kept}")
    found.figures["poison kept"] = kept.total()


def _figures(place: Place, rows: Rows, answers: Mapping[str, str], found: Found) -> None:
    f = found.figures
    ends: Counter[str] = Counter(row.state for row in rows.txs.values())
    f["transactions"] = ", ".join(f"{count} {state}" for state, count in sorted(ends.items()))
    told_: Counter[str] = Counter(answer.partition(":")[0] for answer in answers.values())
    f["clients were told"] = ", ".join(f"{count} {what}" for what, count in sorted(told_.items()))
    unknown = Counter(
        answer.partition(": ")[2] for answer in answers.values() if answer.startswith("unknown")
    )
    for reason, count in unknown.most_common(5):
        f[f"unknown: {reason[:100]}"] = count
    f["parked"] = rows.parked
    calls = [call for call in rows.calls if "at" in call]
    f["calls that came"] = len(calls)
    f["of them again"] = sum(call["attempt"] > 1 for call in calls)
    f["repetitions that the barrier took"] = sum(bool(call.get("repeated")) for call in rows.calls)
    f["attempts that failed, by the log"] = rows.history["branch.failed"]
    f["attempts that were pending, by the log"] = rows.history["branch.pending"]
    f["late, timers of the clients' process, s (p50 p99 max)"] = spread(
        [round(late * 1e6) for late in place.lateness_s]
    )
    f["wall time, s"] = round((now_us() - place.marks["the first transaction"]) / 1e6, 1)
