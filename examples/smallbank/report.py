"""The report of a campaign, from its histories alone: one page of HTML with a picture of each run.

python -m examples.smallbank.report HISTORY.jsonl... > report.html
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from .check import (
    ABORTED,
    COMMITTED,
    FAILED,
    FINAL,
    REFUSED,
    UNKNOWN,
    Incomplete,
    Record,
    Verdict,
    check,
    read,
)
from .picture import Span, picture

_KILL, _STOP, _JAM = "#c62828", "#ef8e19", "#5e35b1"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1060px; margin: 2em auto;
  padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em 1em .2em 0; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: top }
td.n, th.n { text-align: right }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em }
.good { color: #1b7a34 } .bad { color: #c62828 }
svg { width: 100%; height: auto }
i { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -1px }
p.small { color: #555; font-size: 13px }
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One history, judged and counted."""

    file: Path
    plan: Record
    verdict: Verdict
    seconds: float
    kills: Counter[str]
    stops: int
    jams: int
    rows: list[str]
    spans: list[Span]
    settled: list[tuple[float, float]]
    """Of each payment: when its client was told a fact, and how long that took."""
    reasons: Counter[str]
    """Why payments were aborted."""

    @property
    def title(self) -> str:
        """What ran."""
        nodes = self.plan["nodes"]
        return (
            f"postgresql + {self.plan['savings']}, log on {self.plan['log']}, "
            f"{nodes} coordinator{'s' * (nodes > 1)}"
        )


def summed_up(file: Path) -> Run:
    """Read and judge a history. Raises Incomplete where it has no end."""
    history = read(file)
    world = next(record for record in history if record["kind"] == "world")
    over = next((record["t"] for record in history if record["kind"] == "over"), history[-1]["t"])
    faults = [record for record in history if record["kind"] == "fault"]
    what = Counter(record["what"] for record in faults)
    spans = list(_spans(faults, over))
    return Run(
        file,
        world["plan"],
        check(history),
        over - world["t"],
        Counter(name for record in faults if record["what"] == "kill" for name in record["on"]),
        what["stop"],
        what["jam"],
        sorted({span.row for span in spans}, key=lambda row: (row == "network", row)),
        [Span(s.row, s.begin - world["t"], s.end - world["t"], s.colour, s.text) for s in spans],
        [(t - world["t"], wait) for t, wait in _settled(history)],
        _reasons(history),
    )


def _reasons(history: Sequence[Record]) -> Counter[str]:
    """As the first who was told of each abort was told."""
    first: dict[str, str] = {}
    for record in history:
        if record["kind"] == "reply" and record["told"] == ABORTED:
            first.setdefault(record["gid"], record["why"] or "no reason was told")
    return Counter(first.values())


def _spans(faults: Sequence[Record], over: float) -> Iterator[Span]:
    """From each fault to its end; a kill while it is down already has none of its own."""
    ends = {"kill": "up", "stop": "go on", "jam": "mended"}
    for number, fault in enumerate(faults):
        what, t = fault["what"], fault["t"]
        if what not in ends:
            continue
        for name in ["network"] if what == "jam" else fault["on"]:
            later = (
                record["t"]
                for record in faults[number + 1 :]
                if record["what"] == ends[what] and (what == "jam" or name in record["on"])
            )
            end = next(later, over)
            match what:
                case "kill":
                    yield Span(name, t, end, _KILL, f"{t:.1f} s: SIGKILL, up after {end - t:.1f} s")
                case "stop":
                    yield Span(name, t, end, _STOP, f"{t:.1f} s: SIGSTOP for {end - t:.1f} s")
                case _:
                    text = f"{t:.1f} s: {fault['name']}: {fault['trouble']}, {end - t:.1f} s"
                    yield Span(name, t, end, _JAM, text)


def _settled(history: Sequence[Record]) -> Iterator[tuple[float, float]]:
    first: dict[str, float] = {}
    told: set[str] = set()
    for record in history:
        if record["kind"] == "call":
            first.setdefault(record["gid"], record["t"])
        elif record["kind"] == "reply" and record["told"] in FINAL and record["gid"] not in told:
            told.add(record["gid"])
            yield record["t"], record["t"] - first[record["gid"]]


# ---- the page ----


def page(runs: Sequence[Run]) -> str:
    """All of it."""
    anomalies = sum(len(run.verdict.anomalies) for run in runs)
    good = "good" if not anomalies else "bad"
    found = f"{anomalies} anomal{'y' if anomalies == 1 else 'ies'}"
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'><title>txcoord campaign</title>"
        f"<style>{_STYLE}</style>"
        f"<h1>txcoord campaign, seed {runs[0].plan['seed']}: <span class='{good}'>{found}</span></h1>"
        + "".join(f"<p class='small'>{escape(line)}</p>" for line in _origin(runs[0].plan))
        + _overview(runs)
        + "<p class='small'>An anomaly is: a payment in one database and not in the other, or twice; an answer, by "
        "whomever and whenever, that is not what the databases say; an outcome that changed, or was forgotten; money "
        "made or lost; anything of ours left prepared, open, undecided or parked; anything of somebody else's "
        "touched; an alarm of a coordinator.</p>" + "".join(map(_run, runs)) + "</html>\n"
    )


def _origin(plan: Record) -> Iterator[str]:
    """What has run, when, and by which command. Histories of before it was written down have none."""
    if plan.get("begun"):
        yield f"begun {plan['begun']}, commit {plan.get('commit') or 'unknown'}"
    if plan.get("command"):
        yield f"command: {plan['command']} (with --seed {plan['seed']} for the same again)"


def _overview(runs: Sequence[Run]) -> str:
    heads = (
        "run",
        "kills",
        "stops",
        "network faults",
        "payments",
        "calls",
        "observations",
        "minutes",
        "anomalies",
    )
    rows = [
        (
            run.title,
            run.kills.total(),
            run.stops,
            run.jams,
            run.verdict.payments,
            run.verdict.calls,
            run.verdict.observations,
            round(run.seconds / 60, 1),
            len(run.verdict.anomalies),
        )
        for run in runs
    ]
    if len(rows) > 1:
        rows.append(("together", *(round(sum(column), 1) for column in list(zip(*rows, strict=True))[1:])))
    head = "".join(f"<th{' class=n' if n else ''}>{name}</th>" for n, name in enumerate(heads))
    return f"<table><tr>{head}</tr>{''.join(map(_cells, rows))}</table>"


def _cells(row: Sequence[object]) -> str:
    return (
        "<tr>"
        + f"<td>{escape(str(row[0]))}</td>"
        + "".join(f"<td class=n>{value:,}</td>" for value in row[1:])
        + "</tr>"
    )


def _run(run: Run) -> str:
    verdict = run.verdict
    told, doubted = verdict.told, verdict.doubted
    waits = sorted(wait for _, wait in run.settled) or [0.0]
    facts = [
        ("told committed", f"{told[COMMITTED]:,}, of them {verdict.one_phase:,} in one database (one-phase)"),
        ("told aborted", f"{told[ABORTED]:,}; refused by the bank: {told[REFUSED]:,}"),
        (
            "why aborted",
            ", ".join(f"{why} {count:,}" for why, count in run.reasons.most_common()) or "none was",
        ),
        ("never told a fact", f"{told[UNKNOWN] + told[FAILED]:,}"),
        (
            "in doubt for a while",
            f"{doubted.total():,}: {doubted[COMMITTED]:,} turned out committed, "
            f"{doubted[ABORTED] + doubted[REFUSED]:,} aborted",
        ),
        (
            "waited for a fact",
            f"half of them less than {waits[len(waits) // 2] * 1000:,.0f} ms, 99 of 100 less than "
            f"{waits[len(waits) * 99 // 100]:,.1f} s, the longest {waits[-1]:,.1f} s",
        ),
        ("killed", ", ".join(f"{name} {count}" for name, count in sorted(run.kills.items()))),
        ("history", run.file.name),
    ]
    anomalies = "".join(f"<li class=bad>{escape(text)}</li>" for text in verdict.anomalies[:100])
    key = "".join(
        f"<i style='background:{colour}'></i>{text}"
        for colour, text in ((_KILL, "killed, until it is up"), (_STOP, "stopped"), (_JAM, "network fault"))
    )
    return (
        f"<h2>{escape(run.title)}</h2>"
        + (f"<ul>{anomalies}</ul>" if anomalies else "")
        + f"<p class='small'>{key}</p>"
        + picture(run.seconds, run.rows, run.spans, run.settled)
        + "<table>"
        + "".join(f"<tr><td>{name}</td><td>{escape(text)}</td></tr>" for name, text in facts)
        + "</table>"
    )


def write(histories: Sequence[Path], file: Path) -> Path:
    """Write the report on these histories, and answer where it is."""
    file.write_text(page([summed_up(history) for history in histories]))
    return file


def main(files: Sequence[str]) -> int:
    """Write the page to standard output. Exit status 2: there is a history that none can be made of."""
    if not files:
        print(__doc__)
        return 2
    runs = []
    for file in files:
        try:
            runs.append(summed_up(Path(file)))
        except (Incomplete, OSError, ValueError, KeyError, StopIteration) as error:
            print(f"{file}: no report: {type(error).__name__}: {error}", file=sys.stderr)
            return 2
    sys.stdout.write(page(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
