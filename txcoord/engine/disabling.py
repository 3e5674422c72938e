"""Targets of notifications at which nothing has arrived for long: they are disabled, and it is said.

What is due for one is parked at once and not sent, until an operator resumes it. Messages, confirms and the like are
never held back by that: they have budgets of their own. Databases and topics (``sql:NAME``, ``topic:NAME``) are never
disabled.

Since when nothing has arrived is kept beside the log, so that it outlives a node; any node at which something arrives
takes it back. It is noted some time after the first failure only, so it is a little less than the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..core.action import Answer, AnswerKind
from ..core.breaker import not_asked
from ..core.model import BY_ITSELF, TargetAudit, TargetRule
from ..observe import logs
from ..ports import Clock, TargetRules

log = logs.get("txcoord.disabling")

ACTION = "target.disable"
_ENOUGH = 5
"""Attempts that must have failed at the node that disables: one that was lost on a Monday says nothing of a week."""
_NOTED_AFTER = 20
"""A target is noted as failing after this part of the time after which it is disabled, ..."""
_NOTED_AFTER_US = 3_600_000_000
"""... and after no more than this."""
_MOST = 4_096
"""So many targets are remembered."""


class _NotAnyMore(Exception):
    """Something has arrived meanwhile, or an operator or another node was first."""


@dataclass(slots=True)
class _Failing:
    since_us: int
    count: int = 0
    last: str = ""
    noted: bool = False
    """The log has, or had, it as failing."""


class Disabling:
    """Of one node, for all targets. ``after_us``: 0 disables none."""

    def __init__(self, clock: Clock, after_us: int) -> None:
        self._clock = clock
        self._after_us = after_us
        self._note_us = min(after_us // _NOTED_AFTER, _NOTED_AFTER_US)
        self._failing: dict[str, _Failing] = {}
        self._arrived: dict[str, int] = {}
        """When something arrived last."""

    def heard(self, target: str, answer: Answer) -> None:
        """An attempt at a notification has ended so."""
        if not self._after_us or (":" in target and "://" not in target):
            return
        if answer.kind is not AnswerKind.FAILED and not answer.reason.startswith("GONE"):
            self._arrived[target] = self._clock.now_us()
            self._failing.pop(target, None)
            return
        if not_asked(answer.reason):
            return  # This node could not even try.
        failing = self._failing.get(target)
        if failing is None:
            if len(self._failing) >= _MOST:
                del self._failing[next(iter(self._failing))]
            failing = self._failing[target] = _Failing(self._clock.now_us())
        failing.count += 1
        failing.last = answer.reason

    async def look(self, store: TargetRules, rules: Sequence[TargetRule]) -> Sequence[TargetRule]:
        """Note what fails, take back what does not, disable what has failed for too long. The rules as they are then.
        Raises LogUnavailable."""
        if not self._after_us:
            return rules
        found = {rule.target: rule for rule in rules}
        for rule in rules:
            if rule.failing_since_us and self._arrived.get(rule.target, 0) > rule.failing_since_us:
                found[rule.target] = await store.note(rule.target, _begins_anew(rule.failing_since_us))
        for target, failing in list(self._failing.items()):
            rule = found.get(target, TargetRule(target))
            changed = await self._judge(store, rule, failing)
            if changed is not None:
                found[target] = changed
        self._forget(found)
        return list(found.values())

    async def _judge(self, store: TargetRules, rule: TargetRule, failing: _Failing) -> TargetRule | None:
        target, since_us, now_us = rule.target, rule.failing_since_us, self._clock.now_us()
        if rule.disabled_us or (failing.noted and not since_us):
            # It is not sent to any more; or somebody has reached it, or has resumed it: from here on anew.
            self._failing.pop(target, None)
            return None
        failing.noted = bool(since_us)
        if not since_us:
            if now_us - failing.since_us < self._note_us:
                return None
            return await store.note(target, _fails_since(now_us))
        if now_us - since_us < self._after_us or failing.count < _ENOUGH:
            return None
        hours = (now_us - since_us) // 3_600_000_000
        reason = f"nothing has arrived for {hours} hours; the last attempt: {failing.last}"
        try:
            disabled = await store.change(
                TargetAudit(target, ACTION, BY_ITSELF, reason, 0), _disabled(since_us, now_us)
            )
        except _NotAnyMore:
            return None
        self._failing.pop(target, None)
        log.error("target.disabled", target=target, reason=reason)
        return disabled

    def _forget(self, rules: dict[str, TargetRule]) -> None:
        """When something arrived is of use only until all nodes have heard that its target fails."""
        if len(self._arrived) <= _MOST:
            return
        old_us = self._clock.now_us() - 60_000_000
        for target, at_us in list(self._arrived.items()):
            rule = rules.get(target)
            if at_us < old_us and (rule is None or not rule.failing_since_us):
                del self._arrived[target]


def _begins_anew(since_us: int) -> Callable[[TargetRule], TargetRule]:
    return lambda rule: replace(rule, failing_since_us=0) if rule.failing_since_us == since_us else rule


def _fails_since(now_us: int) -> Callable[[TargetRule], TargetRule]:
    return lambda rule: rule if rule.failing_since_us else replace(rule, failing_since_us=now_us)


def _disabled(since_us: int, now_us: int) -> Callable[[TargetRule], TargetRule]:
    def edit(rule: TargetRule) -> TargetRule:
        if rule.disabled_us or rule.failing_since_us != since_us:
            raise _NotAnyMore
        return replace(rule, disabled_us=now_us)

    return edit
