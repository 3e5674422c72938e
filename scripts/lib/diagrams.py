"""Write what the docs take from the code. See scripts/diagrams.

A page holds generated parts between ``<!-- from the code: NAME -->`` and ``<!-- end: NAME -->``; the rest of it
is written by hand.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from txcoord.config import Settings, show_duration
from txcoord.core.lifecycle import BRANCH_NEXT, TX_NEXT, BranchEvent, TxEvent
from txcoord.core.model import BranchState, Kind, TxState
from txcoord.observe import metrics
from txcoord_client.protocol import reasons

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
_PART = re.compile(r"(<!-- from the code: (\S+) -->\n)(.*?)(<!-- end: \2 -->\n)", re.DOTALL)

Transitions = Mapping[tuple[StrEnum, StrEnum], StrEnum]


def diagram(table: Transitions, states: type[StrEnum], events: type[StrEnum]) -> list[str]:
    """A mermaid state diagram of a table, in the order of the enums."""
    order = {s: i for i, s in enumerate(states)}
    rank = {e: i for i, e in enumerate(events)}
    edges: dict[tuple[StrEnum, StrEnum], list[StrEnum]] = {}
    for (state, event), after in table.items():
        edges.setdefault((state, after), []).append(event)
    used = sorted({state for edge in edges for state in edge}, key=order.__getitem__)
    moving = {state for state, after in edges if state is not after}
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {used[0]}"]
    for state, after in sorted(edges, key=lambda edge: (order[edge[0]], order[edge[1]])):
        label = ", ".join(sorted(edges[state, after], key=rank.__getitem__))
        lines.append(f"    {state} --> {after}: {label}")
    lines += [f"    {state} --> [*]" for state in used if state not in moving]
    return [*lines, "```"]


def as_table(table: Transitions, states: type[StrEnum], events: type[StrEnum]) -> list[str]:
    """The same as text, for search and for screen readers."""
    order = {s: i for i, s in enumerate(states)}
    rank = {e: i for i, e in enumerate(events)}
    rows = sorted(table.items(), key=lambda item: (order[item[0][0]], rank[item[0][1]]))
    lines = ["| state | event | next |", "|---|---|---|"]
    return lines + [f"| {state} | {event} | {after} |" for (state, event), after in rows]


def _state_part(name: str) -> list[str]:
    if name == "transaction":
        return [*diagram(TX_NEXT, TxState, TxEvent), "", *as_table(TX_NEXT, TxState, TxEvent)]
    table = BRANCH_NEXT[Kind(name)]
    return [*diagram(table, BranchState, BranchEvent), "", *as_table(table, BranchState, BranchEvent)]


def codes() -> list[str]:
    """The reason codes, in the order of their module."""
    return [
        value
        for name, value in vars(reasons).items()
        if name.isupper() and isinstance(value, str) and name == value
    ]


def _reason_part(name: str) -> list[str]:
    texts = tomllib.loads((REFERENCE / "reasons.toml").read_text(encoding="utf-8"))
    known = codes()
    told = [code for group in texts["group"] for code in group["codes"]]
    if sorted(told) != sorted(known):
        wrong = sorted(set(told) ^ set(known)) or "a code is there twice"
        raise SystemExit(f"docs/reference/reasons.toml and protocol/reasons.py differ: {wrong}")
    lines: list[str] = []
    for group in texts["group"]:
        lines += [f"## {group['title']}", "", group["text"], "", "| code | what it means | what to do |"]
        lines.append("|---|---|---|")
        for code in sorted(group["codes"], key=known.index):
            again = " ↻" if code in reasons.RETRYABLE_ABORTS else ""
            lines.append(
                f"| `{code}`{again} | {group['codes'][code]['means']} | {group['codes'][code]['do']} |"
            )
        lines.append("")
    return lines[:-1]


# What a setting's own description leaves to its name.
_SETTINGS = {
    "log_level": "Least level that is logged.",
    "backoff.first": "Longest pause before the second attempt.",
    "backoff.factor": "Growth from one attempt to the next.",
    "backoff.cap": "Longest pause of all.",
    "limits.payload": "Bytes of one payload or result.",
    "limits.message": "Bytes of one gRPC message.",
}


def settings() -> list[tuple[str, str, str]]:
    """Every setting: its dotted name, its default, what it is for."""
    return list(_settings(Settings, ""))


def _settings(model: type[BaseModel], above: str) -> Iterable[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        key, kind = above + (field.alias or name), field.annotation
        if get_origin(kind) is dict:
            key, kind = f"{key}.NAME", get_args(kind)[1]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{key}.")
        else:
            yield key, _default(field), field.description or _SETTINGS.get(key, "")


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.is_required():
        return "must be given"
    if isinstance(value, timedelta):
        return f"`{show_duration(value)}`"
    if isinstance(value, SecretStr):
        return f"`{value.get_secret_value()}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 1024 and not value % 1024:
        return f"`{value // 1024}KiB`"
    return f"`{value}`" if value != "" else ""


def variable(key: str) -> str:
    """The environment variable of a setting."""
    return "TXCOORD_" + key.upper().replace(".", "__")


def _setting_part(name: str) -> list[str]:
    lines = ["| setting | variable | default | what it is |", "|---|---|---|---|"]
    return lines + [
        f"| `{key}` | `{variable(key)}` | {default} | {text} |" for key, default, text in settings()
    ]


def _metric_part(name: str) -> list[str]:
    lines = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    return lines + [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.text} |"
        for m in metrics.ALL
    ]


PAGES: Mapping[str, Callable[[str], list[str]]] = {
    "states.md": _state_part,
    "reasons.md": _reason_part,
    "settings.md": _setting_part,
    "metrics.md": _metric_part,
}


def current(text: str, part: Callable[[str], Iterable[str]]) -> str:
    """The page with its generated parts as the code is now."""
    return _PART.sub(lambda m: m[1] + "\n" + "\n".join(part(m[2])) + "\n\n" + m[4], text)


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    if arguments not in ([], ["--check"]):
        print("usage: scripts/diagrams [--check]", file=sys.stderr)
        return 2
    stale = []
    for name, part in PAGES.items():
        page = REFERENCE / name
        text = page.read_text(encoding="utf-8")
        wanted = current(text, part)
        if text == wanted:
            continue
        if arguments:
            stale.append(name)
        else:
            page.write_text(wanted, encoding="utf-8")
            print(f"wrote docs/reference/{name}", file=sys.stderr)
    for name in stale:
        print(f"docs/reference/{name} is not current: run scripts/diagrams", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
