"""The participant's part of a branch, between the wire and the core."""

from __future__ import annotations

import graphlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import identifiers, reasons

from ...core.action import Action, Answer, AnswerKind, Op, Retry
from ...core.errors import Refusal, Refused
from ...core.events import Answered
from ...core.model import Branch, Kind, Tx
from ...core.targets import Target, Targets, is_path

MOST_HEADERS = 8 * 1024
_METHOD = re.compile(r"/[A-Za-z_][\w.]*/[A-Za-z_]\w*", re.ASCII)
_OURS = ("/txcoord.", "/grpc.")
"""A coordinator calls no coordinator: whoever may submit a plan is no operator."""
_ANY_ATTEMPT = 1 << 40
"""A report counts, however often the participant was asked since."""
MOST_RESULT = 256 * 1024
_OPS = {c.BranchOp.Value(f"BRANCH_OP_{op.name}"): op for op in Op}
_ANSWERS = {
    c.ANSWER_KIND_DONE: AnswerKind.DONE,
    c.ANSWER_KIND_REFUSED: AnswerKind.REFUSED,
    c.ANSWER_KIND_FAILED: AnswerKind.FAILED,
}
_MOST_EDGES = 10_000
"""In a plan: each answer looks at all of them."""
_MOST_ATTEMPTS = 1_000_000
_LONGEST_CALL_US = 600_000_000
NO_RETRY = Retry()
_LONGEST_US = 366 * 86_400_000_000
Wrong = Callable[..., Refused]
"""Makes the refusal of a message, a reason and a code."""


def bad(
    item: c.Branch, message: str, reason: str = reasons.BAD_BRANCH, code: str = "INVALID_ARGUMENT"
) -> Refused:
    """A refusal of a branch: nothing was written."""
    return Refused(Refusal(code, reason, f"branch {item.id}: {message}", True))


def read(item: c.Branch, sized: Callable[[bytes, str], None], targets: Targets) -> dict[str, Any]:
    """The fields of a branch with a participant. Raises Refused."""
    part = item.action
    sized(part.payload, f"payload of branch {item.id}")
    check_target(partial(bad, item), part.target, targets)
    if not part.operation or len(part.operation) > 200:
        raise bad(item, "its operation has a name of 1 to 200 characters")
    specials = (part.first_operation, part.commit_operation, part.abort_operation)
    if part.operation.startswith("/"):
        _check_methods(item, targets)
        check_headers(partial(bad, item), part.headers, targets)
    elif any(specials):
        raise bad(
            item,
            "operations of their own are gRPC methods, such as /shop.Stock/Reserve, or paths, such as /reserve, or "
            "none at all",
        )
    if part.http_method not in ("", "POST"):
        raise bad(item, f"http_method {part.http_method[:20]!r}: POST only", reasons.NOT_SUPPORTED)
    size = sum(len(k) + len(v) for k, v in part.headers.items())
    if size > MOST_HEADERS or len(item.name) > 200 or len(part.content_type) > 255:
        raise bad(item, f"name, content type or headers ({size} bytes) are too long", reasons.TOO_LARGE)
    if item.id in item.after or not all(map(identifiers.is_branch, [*item.after, *part.results_of])):
        raise bad(item, "after and results_of name other branches")
    action = Action(
        operation=part.operation,
        name=item.name,
        content_type=part.content_type,
        first_operation=part.first_operation,
        commit_operation=part.commit_operation,
        abort_operation=part.abort_operation,
        run_first=part.run_first,
        forward=part.forward,
        no_undo=part.no_undo,
        after=tuple(item.after),
        results_of=tuple(part.results_of),
        aborted_means_refused=part.aborted_means_refused,
        headers=dict(part.headers),
        retry=read_retry(item.retry, partial(bad, item)) if item.HasField("retry") else NO_RETRY,
    )
    return {"resource": part.target, "payload": part.payload, "action": action}


def check_target(wrong: Wrong, target: str, targets: Targets) -> None:
    """Is it one that this coordinator calls? Raises what ``wrong`` makes."""
    why = targets.why_not(target)
    if why is not None:
        code = "PERMISSION_DENIED" if why.reason == reasons.TARGET_NOT_ALLOWED else "INVALID_ARGUMENT"
        raise wrong(why.message, why.reason, code)


def _check_methods(item: c.Branch, targets: Targets) -> None:
    """Any unary method, or path, is an operation: a participant without the SDK has one for each thing that it does."""
    part = item.action
    needed = [part.operation]
    if item.kind == c.KIND_TCC:
        needed.append(part.commit_operation)
    if not part.no_undo and not part.forward:
        needed.append(part.abort_operation)
    specials = (part.first_operation, part.commit_operation, part.abort_operation)
    check_operations(partial(bad, item), part.target, [*needed, *filter(None, specials)], targets)
    if part.results_of:
        raise bad(
            item,
            "results of other steps are given to participants with the SDK only",
            reasons.NOT_SUPPORTED,
            "UNIMPLEMENTED",
        )


def check_operations(wrong: Wrong, target: str, methods: Iterable[str], targets: Targets) -> None:
    """Are they methods, or paths, that can be called there? Raises what ``wrong`` makes."""
    if "://" not in target and target not in targets.named:
        # It has registered itself: its next instance may be of the other protocol.
        for method in methods:
            if not is_path(method) or method.startswith(_OURS):
                raise wrong(
                    f"{method[:80]!r}: a path or /package.Service/Method is needed, for confirm and cancel too"
                )
        return
    named = targets.named.get(target) or [Target.parse(target)]
    over_http = {one.is_http for one in named if one is not None}
    if len(over_http) > 1:
        raise wrong(
            f"{target!r} has addresses of gRPC and of HTTP: it has no methods and no paths of its own"
        )
    for method in methods:
        if over_http == {True}:
            if not is_path(method):
                raise wrong(
                    f"path {method[:80]!r}: one such as /reserve is needed, for confirm and cancel too"
                )
        elif len(method) > 200 or not _METHOD.fullmatch(method) or method.startswith(_OURS):
            raise wrong(
                f"method {method[:80]!r}: /package.Service/Method is needed, for confirm and cancel too"
            )


def check_headers(wrong: Wrong, headers: Iterable[str], targets: Targets) -> None:
    """They are sent as headers or metadata, where there is no SDK: not those by which the coordinator is believed."""
    for name in headers:
        if targets.reserves(name):
            raise wrong(
                f"header {name[:80]!r} is not a client's to send to a participant: by such ones services believe who "
                "calls. A bearer token of the coordinator's own is participants.<name>.token_file in its settings"
            )


def read_retry(r: c.RetryPolicy, wrong: Callable[[str], Refused]) -> Retry:
    """A retry policy. Raises what ``wrong`` makes of a message."""
    times = (r.call_timeout_us, r.initial_us, r.cap_us, r.give_up_us, *r.schedule_us)
    if not all(0 <= t <= _LONGEST_US for t in times) or r.call_timeout_us > _LONGEST_CALL_US:
        raise wrong("times of its retry policy: from 0 to a year, a call at most 10 minutes")
    if r.multiplier and not 1.0 <= r.multiplier <= 100.0:
        raise wrong("multiplier of its retry policy: from 1 to 100")
    if r.max_attempts > _MOST_ATTEMPTS or len(r.schedule_us) > 100:
        raise wrong("its retry policy is too long")
    return Retry(
        r.call_timeout_us,
        r.initial_us,
        r.multiplier,
        r.cap_us,
        r.max_attempts,
        r.give_up_us,
        tuple(r.schedule_us),
    )


def with_default(branch: Branch, of_whole: Retry) -> Branch:
    """Where a branch's own policy says nothing, that of its transaction holds."""
    own = branch.action
    if own is None:
        return branch
    said = {name: getattr(of_whole, name) for name in of_whole.__slots__ if not getattr(own.retry, name)}
    return replace(branch, action=replace(own, retry=replace(own.retry, **said)))


def late_answer(tx: Tx, report: c.BranchReport) -> Answered:
    """What a participant reports by itself of a call that it had answered *pending*. Raises Refused."""
    said = report.answer

    def wrong(message: str, reason: str = reasons.BAD_REQUEST, code: str = "INVALID_ARGUMENT") -> Refused:
        return Refused(Refusal(code, reason, f"branch {report.branch[:40]!r}: {message}", True))

    branch = tx.branch(report.branch)
    if branch is None or branch.action is None:
        raise wrong("no participant does anything for such a branch", reasons.NOT_FOUND, "NOT_FOUND")
    op, kind = _OPS.get(said.op), _ANSWERS.get(said.kind)
    if op is None or kind is None:
        raise wrong("an answer names its op, and is done, refused or failed")
    if len(said.result) > MOST_RESULT or len(said.content_type) > 255:
        raise wrong(f"its result has {len(said.result)} bytes; at most {MOST_RESULT}", reasons.TOO_LARGE)
    reason = f"{said.reason}: {said.message}" if said.message else said.reason
    answer = Answer(kind, said.result, said.content_type, reason[:500], max(said.retry_after_us, 0))
    return Answered(branch.id, op, _ANY_ATTEMPT, answer)


def write(out: c.Branch, kind: Kind, action: Action, target: str) -> None:
    """A branch for people: without its payload."""
    out.name = action.name
    if kind in (Kind.MESSAGE, Kind.NOTIFY):
        out.delivery.target = target
        out.delivery.operation = action.operation
        out.delivery.content_type = action.content_type
        out.delivery.deliver_at_us = action.delivery.deliver_at_us
        out.delivery.message_id = action.delivery.message_id
        out.delivery.ordering_key = action.delivery.order_key
        out.delivery.partition_key = action.delivery.partition_key
        return
    out.after.extend(action.after)
    out.action.target = target
    out.action.operation = action.operation
    out.action.content_type = action.content_type
    out.action.run_first = action.run_first
    out.action.forward = action.forward
    out.action.no_undo = action.no_undo


def check_graph(branches: Mapping[str, Branch]) -> None:
    """Steps come after steps that are there, in no circle; a step that is never undone comes after all that are. Raises
    Refused."""
    edges = sum(
        len(b.action.after) + len(b.action.results_of) for b in branches.values() if b.action is not None
    )
    if edges > _MOST_EDGES:
        text = f"its branches name others {edges} times; at most {_MOST_EDGES}"
        raise Refused(Refusal("INVALID_ARGUMENT", reasons.TOO_LARGE, text, True))
    after = {b.id: _after(b) for b in branches.values()}
    for b in branches.values():
        if not after[b.id] <= branches.keys():
            raise _of(b, "it comes after a branch that is not there")
    order = _in_order(branches, after)
    confirmed_after = {b.id: _confirmed_after(b) & branches.keys() for b in branches.values()}
    if any(confirmed_after.values()):
        _in_order(branches, confirmed_after)  # Else none of them would ever be confirmed, or cancelled.
    # Sets of branches as bits: all that come before each are found in one pass.
    bit = {name: 1 << n for n, name in enumerate(branches)}
    before: dict[str, int] = {}
    for name in order:
        before[name] = 0
        for earlier in after[name]:
            before[name] |= bit[earlier] | before[earlier]
    names = [b.action.name for b in branches.values() if b.action is not None and b.action.name]
    if len(names) != len(set(names)):
        raise _of(next(iter(branches.values())), "two steps have one name")
    undone = sum(bit[b.id] for b in branches.values() if b.action is not None and not b.action.forward)
    for b in branches.values():
        assert b.action is not None
        if not all(bit.get(name, 0) & before[b.id] for name in b.action.results_of):
            raise _of(b, "it is given the results of branches that come before it only")
        if b.action.forward and (b.kind is not Kind.SAGA or undone & ~before[b.id]):
            raise _of(b, "a step that is never undone comes after all that may be")


def _in_order(branches: Mapping[str, Branch], after: Mapping[str, set[str]]) -> list[str]:
    try:
        return list(graphlib.TopologicalSorter(after).static_order())
    except graphlib.CycleError as error:
        raise _of(branches[error.args[1][0]], "it comes after itself") from None


def _confirmed_after(b: Branch) -> set[str]:
    return set(b.action.after) if b.action is not None and b.kind is Kind.TCC else set()


def _after(b: Branch) -> set[str]:
    # A tcc branch names those whose confirm comes before: its try waits for none.
    return set(b.action.after) if b.action is not None and b.kind is Kind.SAGA else set()


def _of(b: Branch, message: str) -> Refused:
    return Refused(Refusal("INVALID_ARGUMENT", reasons.BAD_BRANCH, f"branch {b.id}: {message}", True))
