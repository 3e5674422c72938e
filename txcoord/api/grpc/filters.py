"""The filter of List: a part of AIP-160, terms joined by AND."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from txcoord_client._pb import admin_pb2
from txcoord_client.protocol import reasons

from ...core.model import Kind, TxState
from ...core.replaying import AuditQuery
from ...ports import Query
from .mapping import bad

_TERM = re.compile(
    r"""\s*(?P<field>[a-z_.]+)\s*(?:(?P<op>=|>|<)\s*(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+)))?\s*""",
    re.IGNORECASE,
)
# Not inside quotes: an even number of them follows.
_AND = re.compile(r"""\s+AND\s+(?=(?:[^"]*"[^"]*")*[^"]*$)""", re.IGNORECASE)
_UNIT_US = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_AGE = re.compile(r"(\d{1,6})(ms|s|m|h|d)")
KNOWN = (
    'state = COMMITTING, parked, heuristic, age > 10m, age < 1h, kind = tcc, resource = "x", reason = "X", name = "x", '
    'gid = "x", tx_id = "x"'
)
KNOWN_OF_AUDIT = (
    'tx_id = "x", actor = "x", action = "x", replay_id = "x", target = "x", node = "x", at_us > 1'
)


def parse(
    text: str, *, namespace: str | None, now_us: int, after_tx_id: str | None = None, limit: int = 100
) -> Query:
    """A query from a filter such as ``state = COMMITTING AND parked AND age > 10m``."""
    states: tuple[TxState, ...] = ()
    flags: dict[str, bool] = {}
    equal: dict[str, str] = {}
    kind: Kind | None = None
    before_us: int | None = None
    after_us: int | None = None
    for term in _AND.split(text.strip()) if text.strip() else []:
        match = _TERM.fullmatch(term)
        if match is None or "\0" in term:
            raise _bad(term)
        field, op = match["field"].lower(), match["op"]
        value = match["quoted"] if match["quoted"] is not None else match["bare"]
        if field in ("parked", "heuristic") and op is None:
            flags[field] = True
        elif field == "state" and op == "=":
            states = tuple(TxState(part.lower()) for part in _states(value, term))
        elif field == "age" and op in (">", "<"):
            age = _AGE.fullmatch(value)
            if age is None:
                raise _bad(term)
            at_us = now_us - int(age[1]) * _UNIT_US[age[2]]
            before_us, after_us = (at_us, after_us) if op == ">" else (before_us, at_us)
        elif field == "kind" and op == "=" and value.upper() in Kind.__members__:
            kind = Kind(value.lower())
        elif field in ("resource", "branch.target", "reason", "name", "gid", "tx_id") and op == "=":
            equal["resource" if field == "branch.target" else field] = value
        else:
            raise _bad(term)
    return Query(
        namespace=namespace,
        states=states,
        parked=flags.get("parked"),
        heuristic=flags.get("heuristic"),
        resource=equal.get("resource"),
        reason=equal.get("reason"),
        name=equal.get("name"),
        kind=kind,
        # Which of both it is, a person need not know.
        gid=equal.get("gid", equal.get("tx_id")),
        created_before_us=before_us,
        created_after_us=after_us,
        after_tx_id=after_tx_id,
        limit=limit,
    )


def parse_audit(text: str, *, namespace: str, before: tuple[int, int] | None, limit: int) -> AuditQuery:
    """A query of the audit trail."""
    equal: dict[str, str] = {}
    since_us = 0
    for term in _AND.split(text.strip()) if text.strip() else []:
        match = _TERM.fullmatch(term)
        if (after := _AFTER.fullmatch(term)) is not None:
            since_us = int(after[1]) + 1
            continue
        if match is None or match["op"] != "=" or match["field"] not in _OF_AUDIT or "\0" in term:
            raise _bad(term, KNOWN_OF_AUDIT)
        equal[_OF_AUDIT[match["field"]]] = match["quoted"] if match["quoted"] is not None else match["bare"]
    found = AuditQuery(namespace, since_us=since_us, before=before, limit=limit)
    return replace(found, **equal)  # type: ignore[arg-type]  # All of them are texts.


_OF_AUDIT = {name: name for name in ("tx_id", "actor", "action", "target", "node")} | {"replay_id": "replay"}
_AFTER = re.compile(r"\s*at_us\s*>\s*(\d{1,17})\s*")


@dataclass(frozen=True, slots=True)
class WantedTargets:
    """Which targets; what is empty is left open."""

    name: str = ""
    states: tuple[int, ...] = ()
    parked: bool = False
    backlog: bool = False

    def takes(self, target: admin_pb2.Target) -> bool:
        """Is it one of them?"""
        return (
            self.name in ("", target.name)
            and (not self.states or target.state in self.states)
            and (not self.parked or bool(target.parked))
            and (not self.backlog or bool(target.backlog))
        )


_TARGET_STATES = {
    name.removeprefix("TARGET_STATE_"): number for name, number in admin_pb2.TargetState.items() if number
}
KNOWN_OF_TARGETS = 'state = PAUSED|DISABLED, parked, backlog, name = "x"'


def parse_targets(text: str) -> WantedTargets:
    """Which targets are listed."""
    wanted = WantedTargets()
    for term in _AND.split(text.strip()) if text.strip() else []:
        match = _TERM.fullmatch(term)
        if match is None or "\0" in term:
            raise _bad(term, KNOWN_OF_TARGETS)
        field, op = match["field"].lower(), match["op"]
        value = match["quoted"] if match["quoted"] is not None else match["bare"]
        if field == "parked" and op is None:
            wanted = replace(wanted, parked=True)
        elif field == "backlog" and op is None:
            wanted = replace(wanted, backlog=True)
        elif field == "name" and op == "=":
            wanted = replace(wanted, name=value)
        elif field == "state" and op == "=" and {*value.upper().split("|")} <= _TARGET_STATES.keys():
            wanted = replace(wanted, states=tuple(_TARGET_STATES[part] for part in value.upper().split("|")))
        else:
            raise _bad(term, KNOWN_OF_TARGETS)
    return wanted


def _states(value: str, term: str) -> list[str]:
    names = value.split("|")
    if any(name.upper() not in TxState.__members__ for name in names):
        raise _bad(term)
    return names


def _bad(term: str, known: str = KNOWN) -> Exception:
    return bad(reasons.BAD_REQUEST, f"filter: cannot read {term[:80]!r}. Known, joined by AND: {known}")
