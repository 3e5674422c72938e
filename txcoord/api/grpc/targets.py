"""Targets, as operators see and rule them: the part of AdminService that is about participants."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from txcoord_client._pb import admin_pb2 as pb
from txcoord_client.protocol import reasons

from ...core.breaker import Breaker
from ...core.model import BY_ITSELF, FOREVER_US, TargetAudit, TargetRule
from ...core.targets import ANYBODY, Target, Targets, is_name
from ...engine.coordinator import Coordinator
from ...engine.gate import TargetSeen
from ...observe.lately import Rates
from ...ports import Backlog, Registry, TargetRules
from . import filters
from .mapping import bad
from .replays import audit_of, must_say

_PAGE = 100
_MOST_RATE = 1_000_000.0
_STATES = {
    pb.TARGET_STATE_DISABLED: 0,
    pb.TARGET_STATE_PROBING: 1,
    pb.TARGET_STATE_PAUSED: 2,
    pb.TARGET_STATE_HEALTHY: 3,
}
"""Worst first."""


_SCHEMES = ("sql:", "topic:")
_FEW = 10


def known_as(
    name: str, known: Collection[str], instances: Mapping[str, Iterable[pb.TargetInstance]]
) -> str | None:
    """The target that is meant: by its name, by an address with a path below it, or by that of an instance."""
    if name in known:
        return name
    parsed = Target.parse(name)
    if parsed is not None:
        for other in (str(parsed), str(replace(parsed, path=""))):
            for one in known:
                if (found := Target.parse(one)) is not None and str(found) == other:
                    return one
    return next((one for one, live in instances.items() if any(i.address == name for i in live)), None)


class TargetDesk:
    """Lists targets and changes their rules."""

    def __init__(
        self,
        coordinator: Coordinator,
        rules: TargetRules,
        now_us: Callable[[], int],
        registry: Registry | None = None,
        allowed: Targets = ANYBODY,
    ) -> None:
        self._allowed = allowed
        self._registry = registry
        self._c = coordinator
        self._rules = rules
        self._now_us = now_us

    async def page(self, request: pb.ListTargetsRequest, namespace: str) -> pb.ListTargetsResponse:
        """A page of targets, worst first."""
        wanted = filters.parse_targets(request.filter)
        await self._c.log.settle()
        seen, backlog = self._seen(await self._rules.all()), await self._backlog()
        live = self._instances(namespace)
        parked = await self._rules.parked()
        rates = self._c.metrics.lately.of(self._c.clock.monotonic())
        names = {*seen, *backlog, *live, *parked} - self._c.finishers.keys()
        found = [self._target(name, seen.get(name), backlog.get(name)) for name in names]
        for target in found:
            target.instances.extend(live.get(target.name, ()))
            target.parked = parked.get(target.name, 0)
            lately = rates.get(target.name, Rates())
            target.calls_per_s, target.failures_per_s = lately.calls_per_s, lately.failures_per_s
            target.p99_us = lately.p99_us
        found = [target for target in found if wanted.takes(target)]
        found.sort(key=lambda t: (_STATES[t.state], -t.backlog, t.name))
        start = int(request.page_token) if request.page_token.isdecimal() else 0
        size = min(request.page_size or _PAGE, 1_000)
        more = str(start + size) if len(found) > start + size else ""
        return pb.ListTargetsResponse(targets=found[start : start + size], next_page_token=more)

    async def pause(self, request: pb.PauseTargetRequest, namespace: str) -> pb.Target:
        """Make no calls to it."""
        if request.until_us and not self._now_us() < request.until_us <= FOREVER_US:
            raise bad(reasons.BAD_REQUEST, "the pause would have ended already")
        until_us = request.until_us
        return await self._change(
            "target.pause", request, namespace, lambda r: replace(r, paused=True, paused_until_us=until_us)
        )

    async def resume(self, request: pb.ResumeTargetRequest, namespace: str) -> pb.Target:
        """Call it again, also one that was disabled."""
        return await self._change(
            "target.resume",
            request,
            namespace,
            lambda r: replace(r, paused=False, paused_until_us=0, disabled_us=0, failing_since_us=0),
        )

    async def limit(self, request: pb.LimitTargetRequest, namespace: str) -> pb.Target:
        """Limit its calls; no limits given: none any more."""
        rate, at_once = request.limits.rate_per_s, request.limits.max_in_flight
        if not math.isfinite(rate) or not 0 <= rate <= _MOST_RATE or at_once > _MOST_RATE:
            raise bad(reasons.BAD_REQUEST, f"a limit is a number from 0 (none) to {_MOST_RATE:.0f}")
        if rate and rate < 0.001:
            raise bad(reasons.BAD_REQUEST, "less than 0.001 calls a second is a pause: pause the target")
        return await self._change(
            "target.limit", request, namespace, lambda r: replace(r, rate_per_s=rate, at_once=at_once)
        )

    async def alias(self, request: pb.AliasTargetRequest, namespace: str) -> pb.Target:
        """Let what is addressed to it go to another one; to none: to itself again."""
        name, to = request.target, request.alias_of
        if to:
            why = self._allowed.why_not(to)
            if why is not None:
                raise bad(why.reason, why.message)
            if to == name or to in self._c.finishers:
                raise bad(reasons.BAD_REQUEST, f"{to!r} is no other participant")
            here, there = Target.parse(name), Target.parse(to)
            if here is not None and there is not None and here.is_http != there.is_http:
                raise bad(reasons.BAD_REQUEST, f"{name} and {to} are not called over the same protocol")
            for rule in await self._rules.all():
                if (rule.target == to and rule.alias_of) or (rule.alias_of == name and rule.target != name):
                    text = f"what is for {rule.target} goes to {rule.alias_of}: from there it goes no further"
                    raise bad(reasons.BAD_REQUEST, text)
        return await self._change("target.alias", request, namespace, lambda r: replace(r, alias_of=to))

    async def _change(
        self, action: str, request: Any, namespace: str, edit: Callable[[TargetRule], TargetRule]
    ) -> pb.Target:
        said = request.audit
        must_say(said)
        name = request.target
        if name not in self._c.finishers:
            name = await self._named(name, namespace, force=getattr(request, "force", True))
        if name in self._c.finishers:
            text = (
                f"{name!r} is a resource, a database: its branches are finished as soon as it answers. Only "
                "participants are paused and limited"
            )
            raise bad(reasons.NOT_SUPPORTED, text)
        if said.dry_run:
            rules = {rule.target: rule for rule in await self._rules.all()}
            after = edit(rules.get(name, TargetRule(name)))
            return self._target(name, replace(self._of(name), rule=after), (await self._backlog()).get(name))
        order = audit_of(said, action, self._now_us())
        audit = TargetAudit(name, action, order.actor, order.reason, 0, namespace)
        after = await self._rules.change(audit, edit)
        # Here it holds from now on; other nodes look once a second.
        self._c.gate.rules_are([rule for rule in await self._rules.all() if rule.target != name] + [after])
        return self._target(name, self._of(name), (await self._backlog()).get(name))

    async def _named(self, name: str, namespace: str, *, force: bool) -> str:
        """Which one is meant. Raises Refused for one that nobody knows, unless that is said to be right."""
        live = self._instances(namespace)
        known = {
            *self._seen(await self._rules.all()),
            *await self._backlog(),
            *live,
        } - self._c.finishers.keys()
        if (found := known_as(name, known, live)) is not None:
            return found
        if not is_name(name) and Target.parse(name) is None and not name.startswith(_SCHEMES):
            text = f"{name[:100]!r} is no target such as grpc://host:port, or a name"
            raise bad(reasons.UNKNOWN_PARTICIPANT, text)
        if not force:
            few = ", ".join(sorted(known)[:_FEW]) or "none"
            more = f" and {len(known) - _FEW} more" if len(known) > _FEW else ""
            text = (
                f"no such target: {name!r}; known to this coordinator are {few}{more}. If it is one that was not "
                "called yet: --force"
            )
            raise bad(reasons.UNKNOWN_PARTICIPANT, text)
        return name

    def _instances(self, namespace: str) -> dict[str, list[pb.TargetInstance]]:
        """Those that have registered themselves, by participant."""
        found: dict[str, list[pb.TargetInstance]] = {}
        for one, until_us in self._registry.instances() if self._registry is not None else ():
            if one.namespace == namespace:
                found.setdefault(one.participant, []).append(
                    pb.TargetInstance(
                        instance=one.instance, address=one.address, version=one.version, expires_us=until_us
                    )
                )
        return found

    def _of(self, name: str) -> TargetSeen:
        return self._c.gate.seen().get(name) or TargetSeen(name, self._c.gate.rule(name))

    def _seen(self, rules: Any) -> dict[str, TargetSeen]:
        seen = dict(self._c.gate.seen())
        for rule in rules:
            if rule.says_something:
                seen[rule.target] = replace(seen.get(rule.target) or TargetSeen(rule.target, rule), rule=rule)
        return seen

    async def _backlog(self) -> dict[str, Backlog]:
        """What waits in the log, and what plans that run here wait with."""
        found = dict(await self._c.log.backlog())
        for target, waits in self._c.calls.undecided().items():
            other = found.get(target, Backlog(0, waits.oldest_due_us))
            found[target] = Backlog(other.count + waits.count, min(other.oldest_due_us, waits.oldest_due_us))
        return found

    def _target(self, name: str, seen: TargetSeen | None, waits: Backlog | None) -> pb.Target:
        seen = seen or TargetSeen(name, TargetRule(name))
        rule, state, since_us, text = seen.rule, pb.TARGET_STATE_HEALTHY, seen.since_us, ""
        if rule.is_paused(self._now_us()):
            state, since_us = pb.TARGET_STATE_PAUSED, rule.changed_us
            until = " until it is resumed"
            if rule.paused_until_us:
                until = f" until {datetime.fromtimestamp(rule.paused_until_us / 1e6, UTC):%Y-%m-%d %H:%M:%SZ}"
            text = f"paused{until} by {rule.actor}: {rule.reason}"
        elif rule.disabled_us:
            state, since_us = pb.TARGET_STATE_DISABLED, rule.disabled_us
            text = "no notification is sent to it until it is resumed"
            text += f": {rule.reason}" if rule.actor == BY_ITSELF else ""
        elif seen.breaker is not Breaker.CLOSED:
            state, text = pb.TARGET_STATE_PROBING, seen.last_error
        elif seen.last_error:
            ago_s = max(0, self._now_us() - seen.last_error_us) // 1_000_000
            text = f"well now; {ago_s} s ago: {seen.last_error}" if seen.last_error_us else seen.last_error
        return pb.Target(
            name=name,
            state=state,
            message=text,
            in_flight=max(0, seen.in_flight),
            backlog=waits.count if waits is not None else 0,
            oldest_due_us=waits.oldest_due_us if waits is not None else 0,
            limits=pb.TargetLimits(rate_per_s=rule.rate_per_s, max_in_flight=rule.at_once),
            state_since_us=since_us,
            alias_of=rule.alias_of,
        )
