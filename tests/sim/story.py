"""What happened in a world, in words: the lines of its trace that a person wants to read."""

from __future__ import annotations

import re

from .world import Result

_LINE = re.compile(r"\s*([\d.]+) (.*)")
_FACT = re.compile(r"(\w+)=(.*?)(?= \w+=|$)")


def of(result: Result) -> list[str]:
    """The plan, what happened, and what is wrong."""
    out = [*result.plan.story(), "what happened:"]
    names: dict[str, str] = {}
    for line in result.trace:
        match = _LINE.match(line)
        if match is None:
            continue
        said = _said(match[2], names)
        if said:
            out.append(f"{float(match[1]):6.2f} s  {said}")
    out.append("what is wrong:")
    out += [f"  {violation}" for violation in result.violations] or ["  nothing"]
    return out


def _said(text: str, names: dict[str, str]) -> str:
    event = text.split(" ", 1)[0]
    facts = dict(_FACT.findall(text))
    tx = names.get(facts.get("tx", ""), "")
    if text.startswith("FAULT"):
        return f"!! {text.partition('what=')[2].strip()}"
    match event:
        case "begun":
            names[facts["tx"]] = facts["op"]
            return f"{facts['op']} has begun"
        case "submitted":
            names[facts["tx"]] = facts["op"]
            return f"{facts['op']} is submitted"
        case "prepared":
            return f"{_branch(facts['xid'], names)} is prepared in {facts['at']}"
        case "decided":
            return f"{tx or 'somebody'}: {facts['decision']} is decided by {facts['by']}"
        case "committed":
            return f"{_row(facts['row'], names)} is committed in {facts['at']}"
        case "told":
            return f"{facts['who']} is told that {tx} is {facts['state']}"
        case "killed":
            return f"{facts['who']} is killed"
        case "woke":
            return f"{facts['who']} wakes"
        case "started":
            return f"{facts['who']} is started again"
        case "limbo":
            return f"{_branch(facts['xid'], names)} is in limbo in {facts['at']}: OK was answered, nothing was done"
        case "alarm":
            return f"alarm: {facts['what']} {facts.get('detail', '')}"
        case "WRONG":
            return f"WRONG: {text.partition('what=')[2]}"
    if text.startswith("server "):
        return f"{facts['who']} {'is killed' if 'killed' in text.split('who=')[0] else 'is started again'}"
    if text.startswith("by hand"):
        return f"a person finishes {_branch(facts['xid'], names)} in {facts['at']}"
    if text.startswith("the operator"):
        return f"the operator restarts {facts['who']}"
    return ""


def _branch(xid: str, names: dict[str, str]) -> str:
    parts = xid.split(".", 4)
    return f"branch {parts[4]} of {names.get(parts[3], parts[3][-6:])}" if len(parts) == 5 else xid


def _row(row: str, names: dict[str, str]) -> str:
    if row.startswith("fx:"):
        _, tx_id, place, branch, op = row.split(":")
        return f"{op} of {branch} of {names.get(tx_id, tx_id[-6:])} at {place}"
    tx_id, _, rest = row.partition(".")
    return f"the row of {names.get(tx_id, tx_id[-6:])} ({rest})"
