"""The column ``action`` of a branch: JSON of what only branches with a participant have, empty for the others."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, fields
from typing import Any

from ...core.action import Action, Delivery, Event, Retry
from ...core.model import Branch

_ACTION = {f.name: f.default for f in fields(Action)}
_PARTS = {
    "retry": {f.name: f.default for f in fields(Retry)},
    "delivery": {f.name: f.default for f in fields(Delivery)},
}
_BESIDE = ("result_type", "failures", "since_us")


def to_text(branch: Branch) -> str:
    """What is written. What is as it is by default is left out, so that older rows can be read for ever."""
    action = branch.action
    if action is None:
        return ""
    out: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, default in _ACTION.items()
        if name not in _PARTS and name != "headers" and (value := getattr(action, name)) != default
    }
    if action.headers:
        out["headers"] = dict(action.headers)
    for part, defaults in _PARTS.items():
        said = {n: value for n, d in defaults.items() if (value := getattr(getattr(action, part), n)) != d}
        if isinstance(event := said.get("event"), Event):
            said["event"] = asdict(event)
        if "partition_key" in said:
            said["partition_key"] = base64.b64encode(said["partition_key"]).decode()
        if said:
            out[part] = said
    out.update({name: value for name in _BESIDE if (value := getattr(branch, name))})
    if branch.edited is not None:
        out["edited"] = base64.b64encode(branch.edited).decode()
    return json.dumps(out, ensure_ascii=False, separators=(",", ":"))


def from_text(text: str) -> dict[str, Any]:
    """The fields of a branch that are kept there."""
    if not text:
        return {}
    found: dict[str, Any] = json.loads(text)
    beside = {name: found.pop(name) for name in _BESIDE if name in found}
    if "edited" in found:
        beside["edited"] = base64.b64decode(found.pop("edited"))
    retry = found.pop("retry", {})
    if "schedule_us" in retry:
        retry["schedule_us"] = tuple(retry["schedule_us"])
    delivered = found.pop("delivery", {})
    if "event" in delivered:
        delivered["event"] = Event(**delivered["event"])
    if "partition_key" in delivered:
        delivered["partition_key"] = base64.b64decode(delivered["partition_key"])
    delivery = Delivery(**delivered)
    for name in ("after", "results_of"):
        if name in found:
            found[name] = tuple(found[name])
    return {"action": Action(**found, retry=Retry(**retry), delivery=delivery), **beside}
