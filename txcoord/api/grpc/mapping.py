"""Between the wire and the core. Bad input is refused here, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import identifiers, reasons
from txcoord_client.protocol import xid as xids

from ...core.action import Retry
from ...core.errors import Refusal, Refused
from ...core.evolve import replace
from ...core.model import (
    FOREVER_US,
    SETTLED_BRANCH,
    Branch,
    BranchState,
    DecidedBy,
    Decision,
    Kind,
    Tx,
    TxState,
)
from ...core.targets import ANYBODY, Targets
from ...core.topics import NO_TOPICS, Topics
from ...core.words import storable
from . import actions, deliveries


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for. Durations in microseconds, sizes in bytes."""

    payload: int = 256 * 1024
    message: int = 4 * 1024 * 1024
    operations: int = 1_000
    branches: int = 1_000
    labels: int = 16
    headers: int = 8 * 1024
    deadline_default_us: int = 30_000_000
    deadline_max_us: int = 86_400_000_000
    wait_max_us: int = 60_000_000
    targets: Targets = ANYBODY
    """Which participants."""
    webhooks: Targets = ANYBODY
    """Of notifications."""
    executes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Resources on which statements are run, and for which namespaces; ``*`` for all."""
    topics: Topics = NO_TOPICS
    """On which something may be put."""


STATE: Mapping[TxState, c.State] = {
    TxState.ACTIVE: c.STATE_ACTIVE,
    TxState.RUNNING: c.STATE_RUNNING,
    TxState.COMMITTING: c.STATE_COMMITTING,
    TxState.COMMITTED: c.STATE_COMMITTED,
    TxState.ABORTING: c.STATE_ABORTING,
    TxState.ABORTED: c.STATE_ABORTED,
}
DECISION: Mapping[Decision, c.Decision] = {
    Decision.COMMIT: c.DECISION_COMMIT,
    Decision.ABORT: c.DECISION_ABORT,
}
DECIDED_BY: Mapping[DecidedBy, c.DecidedBy] = {
    DecidedBy.CLIENT: c.DECIDED_BY_CLIENT,
    DecidedBy.DEADLINE: c.DECIDED_BY_DEADLINE,
    DecidedBy.BRANCH: c.DECIDED_BY_BRANCH,
    DecidedBy.OPERATOR: c.DECIDED_BY_OPERATOR,
    DecidedBy.SCANNER: c.DECIDED_BY_SCANNER,
    DecidedBy.DATABASE: c.DECIDED_BY_DATABASE,
}
BRANCH_STATE: Mapping[BranchState, c.BranchState] = {
    state: c.BranchState.Value(f"BRANCH_STATE_{state.name}")  # type: ignore[misc]
    for state in BranchState
}
KIND: Mapping[Kind, c.Kind] = {
    kind: c.Kind.Value(f"KIND_{kind.name}")  # type: ignore[misc]
    for kind in Kind
    if kind is not Kind.CALLBACK
}
_KIND_FROM_PB = {number: kind for kind, number in KIND.items()}
_MOST_CALLBACKS = 20
_VOTED: Mapping[int, BranchState] = {
    c.VOTE_UNSPECIFIED: BranchState.OPEN,
    c.VOTE_PREPARED: BranchState.READY,
    c.VOTE_READ_ONLY: BranchState.READ_ONLY,
    c.VOTE_NO: BranchState.REFUSED,
}


def bad(reason: str, message: str, code: str = "INVALID_ARGUMENT", **facts: str) -> Refused:
    """A refusal of bad input: nothing was written."""
    return Refused(Refusal(code, reason, message, True, facts))


class Reader:
    """Reads requests, checks them against the limits, the log's identity and the configured resources."""

    def __init__(
        self,
        *,
        limits: Limits,
        log_id: str,
        resources: Iterable[str],
        now_us: Callable[[], int],
        engine: Callable[[str], str] = lambda _resource: "",
    ) -> None:
        self._limits = limits
        self._log_id = log_id
        self._resources = frozenset(resources)
        self._engine = engine
        self._now_us = now_us

    def namespace(self, name: str) -> str:
        """The namespace of a request; empty is "default"."""
        name = name or "default"
        if not identifiers.is_name(name):
            raise bad(reasons.BAD_NAMESPACE, f"namespace {name[:80]!r}: 1 to 63 characters of [A-Za-z0-9_.-]")
        return name

    def tx(
        self,
        namespace: str,
        tx_id: str,
        gid: str,
        deadline_us: int,
        spec: c.TransactionSpec | None,
        branches: Iterable[c.Branch] = (),
        result: bytes = b"",
        *,
        may_have_none: bool = False,
        names_branches: bool = False,
    ) -> Tx:
        """A transaction as a request describes it. ``may_have_none``: it may be a plan that has no deadline;
        ``names_branches``: the request names those that its spec's retry policy is for."""
        if not identifiers.is_tx_id(tx_id):
            raise bad(
                reasons.BAD_TX_ID, f"tx_id {tx_id[:80]!r}: 32 lower-case hex digits of a UUIDv7 are expected"
            )
        if gid and not identifiers.is_gid(gid):
            raise bad(
                reasons.BAD_GID, f"gid {gid[:80]!r}: 1 to {identifiers.MAX_GID} characters of [A-Za-z0-9_-]"
            )
        if deadline_us <= 0:
            raise bad(
                reasons.BAD_REQUEST, "deadline_us is missing: the transaction's deadline by the log's clock"
            )
        furthest = self._now_us() + self._limits.deadline_max_us
        # Two seconds of slack: the client stamps by its own idea of the log's clock.
        if deadline_us > furthest + 2_000_000 and not (may_have_none and deadline_us == FOREVER_US):
            raise bad(
                reasons.DEADLINE_TOO_FAR,
                f"the deadline is further away than {self._limits.deadline_max_us // 1_000_000} s",
                limit_us=str(self._limits.deadline_max_us),
            )
        self._sized(result, "result")
        tx = Tx(
            tx_id,
            namespace,
            deadline_us,
            gid,
            result=result,
            branches=self.branches(tx_id, deadline_us, branches),
        )
        return self._with_spec(tx, spec, names_branches) if spec is not None else tx

    @staticmethod
    def retry(spec: c.TransactionSpec) -> Retry:
        """The policy of those branches that have none of their own."""
        return actions.read_retry(spec.retry, lambda message: bad(reasons.BAD_REQUEST, message))

    def _with_spec(self, tx: Tx, spec: c.TransactionSpec, names_branches: bool) -> Tx:
        if "\0" in spec.name:
            raise bad(reasons.BAD_REQUEST, "name: no log can keep a NUL character")
        labels, headers = dict(spec.labels), dict(spec.headers)
        if len(labels) > self._limits.labels:
            raise bad(reasons.TOO_LARGE, f"{len(labels)} labels; at most {self._limits.labels}")
        size = sum(len(k) + len(v) for k, v in (*labels.items(), *headers.items()))
        if size > self._limits.headers or len(spec.name) > 200:
            raise bad(
                reasons.TOO_LARGE, f"name, labels and headers: at most {self._limits.headers} bytes together"
            )
        if spec.HasField("retry"):
            if not names_branches:
                raise bad(
                    reasons.NOT_SUPPORTED,
                    "a retry policy of the whole is not kept: it comes with its branches, by Submit and Enlist",
                    "UNIMPLEMENTED",
                )
            self.retry(spec)
        if spec.one_phase_resource:
            self.resource(spec.one_phase_resource)
        return replace(
            tx,
            name=spec.name,
            labels=labels,
            headers=headers,
            one_phase_resource=spec.one_phase_resource,
        )

    def resource(self, name: str) -> str:
        """The name of a configured resource."""
        if name not in self._resources:
            known = ", ".join(sorted(self._resources)) or "none"
            raise bad(
                reasons.UNKNOWN_RESOURCE,
                f"resource {name[:80]!r} is not configured at the coordinator (known: {known})",
                "FAILED_PRECONDITION",
                resource=name[:80],
            )
        return name

    def branches(self, tx_id: str, deadline_us: int, items: Iterable[c.Branch]) -> tuple[Branch, ...]:
        """Branches, their xids checked against the transaction they are said to belong to."""
        out: list[Branch] = []
        seen: set[str] = set()
        for item in items:
            if not identifiers.is_branch(item.id):
                raise bad(
                    reasons.BAD_BRANCH,
                    f"branch id {item.id[:80]!r}: a path of numbers such as 3.1, ≤ 24 characters",
                )
            if item.id in seen:
                raise bad(reasons.BAD_BRANCH, f"branch {item.id} is there twice")
            seen.add(item.id)
            out.append(self._branch(tx_id, deadline_us, item))
            if len(out) > self._limits.branches:
                raise bad(reasons.TOO_LARGE, f"more than {self._limits.branches} branches")
        return tuple(out)

    def _branch(self, tx_id: str, deadline_us: int, item: c.Branch) -> Branch:
        kind = _KIND_FROM_PB.get(item.kind)
        if kind is None:
            raise bad(reasons.BAD_BRANCH, f"branch {item.id}: its kind is missing")
        if kind is Kind.TCC or (kind is Kind.SAGA and not item.action.target):
            return self._action_branch(item, kind)
        if kind is Kind.SAGA:
            raise bad(
                reasons.NOT_SUPPORTED,
                f"branch {item.id}: the coordinator runs the steps of a saga: submit them, or enlist them with run",
                "UNIMPLEMENTED",
            )
        if kind.is_delivery:
            return self._delivery(item, kind)
        self.resource(item.xa.resource)
        x = self.xid(item.id, item.xa)
        if x.log_id != self._log_id:
            raise bad(
                reasons.BAD_XID,
                f"branch {item.id}: its xid was made for log {x.log_id}, this one is {self._log_id}",
                "FAILED_PRECONDITION",
            )
        if (x.tx_id, x.deadline_us, x.branch) != (tx_id, deadline_us, item.id):
            raise bad(
                reasons.BAD_XID, f"branch {item.id}: its xid names another transaction, deadline or branch"
            )
        return Branch(
            item.id,
            kind,
            _VOTED.get(item.vote, BranchState.OPEN),
            item.xa.resource,
            str(x),
            reason=storable(item.reason[:500]),
        )

    def _delivery(self, item: c.Branch, kind: Kind) -> Branch:
        if not item.HasField("delivery"):
            return Branch(item.id, kind)  # One that is enlisted already is named by its id and kind.
        targets = self._limits.webhooks if kind is Kind.NOTIFY else self._limits.targets
        return deliveries.delivery(item, kind, self._sized, targets, self._now_us())

    def callbacks(self, spec: c.TransactionSpec, items: Iterable[c.Branch] = ()) -> tuple[Branch, ...]:
        """Who asks to be told of the end: the transaction, or any of its branches."""
        asked = [*spec.callbacks, *(item.callback for item in items if item.HasField("callback"))]
        out = {
            b.id: b for b in (deliveries.callback(one, self._sized, self._limits.targets) for one in asked)
        }
        if len(out) < len(asked):
            raise bad(reasons.BAD_REQUEST, "two callbacks have one id")
        if len(out) > _MOST_CALLBACKS:
            raise bad(reasons.TOO_LARGE, f"{len(out)} callbacks; at most {_MOST_CALLBACKS}")
        return tuple(out.values())

    def with_retry(self, branches: Iterable[Branch], spec: c.TransactionSpec) -> tuple[Branch, ...]:
        """Branches that are tried as their transaction says, where they say nothing themselves."""
        if not spec.HasField("retry"):
            return tuple(branches)
        of_whole = self.retry(spec)
        return tuple(actions.with_default(b, of_whole) for b in branches)

    def steps(self, items: Iterable[c.Branch]) -> tuple[Branch, ...]:
        """The steps among branches that are enlisted, to be run at once."""
        steps = [item for item in items if item.kind == c.KIND_SAGA]
        if any(item.action.forward for item in steps):
            raise bad(
                reasons.NOT_SUPPORTED,
                "a step that is never undone can only be in a plan that is submitted: here the client decides",
                "UNIMPLEMENTED",
            )
        return self.plan(steps) if steps else ()

    def plan(self, items: Iterable[c.Branch]) -> tuple[Branch, ...]:
        """The branches of a plan: steps of a saga, and tries that the coordinator runs."""
        out: dict[str, Branch] = {}
        for item in items:
            kind = _KIND_FROM_PB.get(item.kind)
            if not identifiers.is_branch(item.id) or item.id in out:
                raise bad(reasons.BAD_BRANCH, f"branch id {item.id[:80]!r}: a path of numbers, each once")
            if kind is None or kind is Kind.XA:
                what = kind or "one without a kind"
                raise bad(
                    reasons.NOT_SUPPORTED,
                    f"branch {item.id}: a plan has saga, tcc, message and notify branches, not {what}",
                    "UNIMPLEMENTED",
                )
            if item.vote:
                raise bad(reasons.BAD_BRANCH, f"branch {item.id}: a plan is run by the coordinator: no votes")
            if kind.is_delivery:
                out[item.id] = named = self._delivery(item, kind)
                if named.action is None:
                    raise bad(reasons.BAD_BRANCH, f"branch {item.id}: its target is missing")
            else:
                read = actions.read(item, self._sized, self._limits.targets)
                read["action"] = replace(read["action"], run_first=True)
                out[item.id] = Branch(item.id, kind, **read)
            if len(out) > self._limits.branches:
                raise bad(reasons.TOO_LARGE, f"more than {self._limits.branches} branches")
        steps = {b.id: b for b in out.values() if not b.kind.is_delivery}
        if not steps:
            raise bad(reasons.BAD_REQUEST, "a plan without a step")
        actions.check_graph(steps)
        return tuple(out.values())

    def _action_branch(self, item: c.Branch, kind: Kind) -> Branch:
        vote = _VOTED.get(item.vote, BranchState.OPEN)
        if vote is BranchState.READ_ONLY:
            raise bad(reasons.BAD_BRANCH, f"branch {item.id}: only an xa branch can be read-only")
        if vote is BranchState.REFUSED and kind is Kind.SAGA:
            # It would pass for a step that did nothing, though it may be done.
            raise bad(
                reasons.BAD_BRANCH,
                f"branch {item.id}: the coordinator runs the steps, and knows itself which one said no",
            )
        part = item.action
        self._sized(part.result, f"result of branch {item.id}")
        said = Branch(
            item.id,
            kind,
            vote,
            reason=storable(item.reason[:500]),
            result=part.result,
            result_type=storable(part.result_content_type[:255]),
        )
        # One that is enlisted already is named by its id and kind.
        return replace(said, **actions.read(item, self._sized, self._limits.targets)) if part.target else said

    def xid(self, branch: str, part: c.XaPart) -> xids.Xid:
        """The full xid of a branch: its text, and on MariaDB the id of the session that prepared it.

        Nor is that wrong on MySQL, which is told from MariaDB only once it was reached.
        """
        x = xids.parse(part.xid)
        if x is None:
            raise bad(reasons.BAD_XID, f"branch {branch[:40]}: {part.xid[:120]!r} is no xid of txcoord")
        session = part.connection_id or x.connection_id
        if session and (x.connection_id not in (0, session) or self._engine(part.resource) == "postgresql"):
            raise bad(reasons.BAD_XID, f"branch {branch[:40]}: connection id {session} is not its xid's")
        return replace(x, connection_id=session)

    def sized(self, data: bytes, what: str) -> None:
        """Refuse what is larger than a payload may be."""
        self._sized(data, what)

    def _sized(self, data: bytes, what: str) -> None:
        if len(data) > self._limits.payload:
            raise bad(
                reasons.TOO_LARGE,
                f"the {what} has {len(data)} bytes; at most {self._limits.payload}",
                limit=str(self._limits.payload),
            )


_SAYING_SOMETHING = frozenset(
    {BranchState.REFUSED, BranchState.PARKED, BranchState.SKIPPED, BranchState.RESOLVED}
)


def outcome(
    tx: Tx,
    *,
    pending: bool = False,
    all_branches: bool = False,
    named: bool = False,
    results: bool = True,
) -> c.Outcome:
    """What is known of a transaction, for the wire. ``results``: with what its steps returned."""
    out = c.Outcome(
        state=STATE[tx.state],
        reason=tx.reason,
        decided_us=tx.decided_us,
        pending=pending,
        deadline_us=tx.deadline_us if tx.deadline_us != FOREVER_US else 0,
        ended_us=tx.ended_us,
        version=tx.version,
        result=tx.result,
    )
    if tx.decision is not None:
        out.decision = DECISION[tx.decision]
    if tx.decided_by is not None:
        out.decided_by = DECIDED_BY[tx.decided_by]
    if tx.decision is Decision.ABORT:
        out.retriable = tx.reason in reasons.RETRYABLE_ABORTS
    if named:
        out.tx_id = tx.tx_id
        out.gid = tx.gid
    out.delivered = tx.ended and all(b.state in SETTLED_BRANCH for b in tx.branches if b.kind.is_delivery)
    for b in tx.branches:
        if b.heuristic:
            out.heuristic = True
        if b.state is BranchState.PARKED:
            if b.kind.is_delivery:
                out.parked_deliveries += 1
            else:
                out.parked += 1
        if all_branches or b.heuristic or b.state in _SAYING_SOMETHING or (results and _has_result(b)):
            out.branches.append(branch_status(b, results=results))
    return out


def _has_result(b: Branch) -> bool:
    return b.action is not None and b.action.run_first and bool(b.result)


def branch_status(b: Branch, *, results: bool = True) -> c.BranchStatus:
    """What is known of a branch, for the wire."""
    return c.BranchStatus(
        branch=b.id,
        kind=KIND.get(b.kind, c.KIND_UNSPECIFIED),
        state=BRANCH_STATE[b.state],
        heuristic=b.heuristic,
        reason=b.reason.split(":", 1)[0],
        message=b.reason,
        attempts=b.attempts,
        next_attempt_us=b.next_attempt_us,
        target=b.resource,
        result=b.result if results else b"",
        content_type=b.result_type if results else "",
        name=b.action.name if b.action is not None else "",
    )


def xa_part(b: Branch) -> c.XaPart:
    """A branch in its database, for the wire."""
    x = xids.parse(b.xid)
    if x is None or not x.connection_id:
        return c.XaPart(resource=b.resource, xid=b.xid)
    bare = str(replace(x, connection_id=0))
    return c.XaPart(resource=b.resource, xid=bare, connection_id=x.connection_id)


def transaction(tx: Tx, *, results: bool = True) -> c.Transaction:
    """A row as the wire shows it; each result once: of steps in the outcome, of tries that were called by the client in
    the branch's status. A list goes without them."""
    out = c.Transaction(
        namespace=tx.namespace,
        tx_id=tx.tx_id,
        gid=tx.gid,
        outcome=outcome(tx, named=True, results=results),
        spec=c.TransactionSpec(
            name=tx.name,
            labels=dict(tx.labels),
            headers=dict(tx.headers),
            one_phase_resource=tx.one_phase_resource,
        ),
        created_us=tx.created_us,
        updated_us=max(tx.created_us, tx.decided_us, tx.ended_us),
        owner=tx.owner,
        lease_until_us=tx.lease_until_us,
        epoch=tx.epoch,
    )
    out.branches.extend(detail(b, results=results) for b in tx.branches)
    if not results:
        out.outcome.result = b""
    return out


def detail(b: Branch, *, results: bool) -> c.BranchDetail:
    """A branch as the wire shows it."""
    spec = c.Branch(id=b.id, kind=KIND.get(b.kind, c.KIND_UNSPECIFIED))
    if b.kind is Kind.XA:
        spec.xa.CopyFrom(xa_part(b))
    if b.action is not None:
        actions.write(spec, b.kind, b.action, b.resource)
    told = branch_status(b, results=results and not _has_result(b))
    original = b.payload if b.edited is not None and results else b""
    return c.BranchDetail(spec=spec, status=told, original_payload=original)
