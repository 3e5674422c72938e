"""How findings are shown: for people, in a terminal or a pipe, and as JSON."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from . import console

if TYPE_CHECKING:
    from ..adapters.xa.checks import Finding
    from ..wiring.diagnosis import Diagnosis

_MARK = {"ok": "ok      ", "warning": "warning ", "error": "PROBLEM "}
_COLOUR = {"warning": "\033[33m", "error": "\033[1;31m"}
_INDENT = " " * 10


def show(found: Sequence[Diagnosis], *, json: bool) -> None:
    """All of it on standard output."""
    for number, one in enumerate(found):
        if json:
            console.emit({**asdict(one), "good": one.good})
            continue
        if number:
            console.out("")
        console.out(f"{one.name}  {one.url}".rstrip())
        for finding in one.findings:
            _show(finding)


def _show(finding: Finding) -> None:
    terminal = sys.stdout.isatty()
    bad = finding.severity != "ok" and not finding.fixed
    mark = "fixed   " if finding.fixed else _MARK[finding.severity]
    if terminal and bad:
        mark = f"{_COLOUR[finding.severity]}{mark}\033[0m"
    code = f"{finding.reason}: " if bad else ""
    first, *more = _lines(f"{code}{finding.fact}", terminal)
    console.out(f"  {mark}{first}")
    if finding.means:
        more += _lines(finding.means, terminal)
    for line in more:
        console.out(_INDENT + line)
    for line in finding.remedy:
        console.out(f"{_INDENT}    {line}")


def _lines(text: str, terminal: bool) -> list[str]:
    """Folded on a terminal only: what is in a pipe is searched by line."""
    if not terminal:
        return [text]
    width = max(40, min(shutil.get_terminal_size().columns, 110) - len(_INDENT))
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
