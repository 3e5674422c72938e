"""What all commands share: data on stdout, messages on stderr, one readable line for an error, exit codes."""

from __future__ import annotations

import json as _json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import typer

OK, CRASHED, USAGE, CONFIG, UNAVAILABLE, SCHEMA, REFUSED, PROBLEMS = range(8)
"""Exit codes, as in :class:`txcoord.wiring.ExitCode`; repeated here because that import is not quick."""
INTERRUPTED = 130

EXIT_CODES = """Exit codes: 0 done · 1 a bug · 2 wrong command line · 3 wrong settings · 4 log, coordinator or
address not available · 5 log schema not this version's · 6 refused by the coordinator · 7 a check found problems
· 130 interrupted"""


def out(text: str) -> None:
    """A line of data."""
    print(text)


def say(text: str) -> None:
    """A message to the person at the terminal."""
    print(text, file=sys.stderr)


def emit(value: Any) -> None:
    """Data as JSON, one object a line."""
    print(_json.dumps(value, ensure_ascii=False))


def fail(code: int, *lines: str) -> NoReturn:
    """End with an error: one line each, no traceback."""
    for line in lines:
        say(f"txcoord: {line}")
    raise typer.Exit(code)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that changes things, unless ``--yes``."""
    if yes:
        return
    if not sys.stdin.isatty():
        fail(USAGE, f"{question} Say --yes, there is no terminal to ask.")
    if not typer.confirm(question, err=True):
        fail(INTERRUPTED, "nothing was done")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns side by side; on a terminal with a bold head. Nothing is cut off."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    out(bold + "  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)).rstrip() + plain)
    for line in cells:
        out("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def moment(us: int) -> str:
    """A time in UTC; empty for none."""
    if not us:
        return ""
    at = datetime.fromtimestamp(us / 1_000_000, UTC)
    return at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def since(us: int, now_us: int) -> str:
    """A time as people say it: ``3 min ago``, ``in 12 s``."""
    if not us:
        return ""
    away = now_us - us
    return f"{length(away)} ago" if away >= 0 else f"in {length(-away)}"


def length(us: int) -> str:
    """A duration, roughly."""
    seconds = us / 1_000_000
    if seconds < 1:
        return f"{us // 1000} ms"
    for unit, size, upto in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < upto:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def plural(count: int, noun: str) -> str:
    """``1 branch``, ``2 branches``."""
    if count != 1 and noun.endswith("ry"):
        return f"{count} {noun[:-1]}ies"
    ending = "" if count == 1 else "es" if noun.endswith(("ch", "s")) else "s"
    return f"{count} {noun}{ending}"
