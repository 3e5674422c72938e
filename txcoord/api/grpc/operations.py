"""The operations of the coordinator service, each once, for the unary calls, Batch and Session alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import identifiers, reasons

from ... import __version__
from ...core.branches import filled, is_called
from ...core.errors import Refusal, Refused
from ...core.events import Begin, Commit, Enlist, HolderReported, OnePhaseDone, Rollback, Submit
from ...core.evolve import replace
from ...core.model import FOREVER_US, Branch, BranchState, DecidedBy, Decision, Kind, Tx
from ...core.words import storable
from ...engine.coordinator import Coordinator, expired
from ...engine.live import reached
from ...ports import ResourceStatus
from .. import tokens
from . import actions, delivered, deliveries, filters, mapping, repeats
from .mapping import Limits, Reader, bad
from .waits import LEVEL, Waits, not_found

_HOLDER_DID: Mapping[int, bool | None] = {
    c.BRANCH_EVENT_COMMITTED: True,
    c.BRANCH_EVENT_ROLLED_BACK: False,
    c.BRANCH_EVENT_RELEASED: None,
}


def _taken_over(spec: c.TransactionSpec) -> frozenset[str]:
    """For which reasons an earlier attempt must have been aborted to give its gid up; none: for any."""
    return frozenset() if spec.again else reasons.RETRYABLE_ABORTS


class Operations:
    """What each request does. Raises Refused; answers the response message.

    ``most_s`` is how long the caller can wait; 0 answers what is so after the flush.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        limits: Limits,
        resources: Callable[[], Sequence[ResourceStatus]],
    ) -> None:
        assert coordinator.identity is not None
        self._c = coordinator
        self._limits = limits
        self._resources = resources
        self._read = Reader(
            limits=limits,
            log_id=coordinator.identity.log_id,
            resources=coordinator.finishers,
            now_us=coordinator.clock.now_us,
            engine=lambda name: coordinator.finishers[name].engine,
        )
        self._waits = Waits(coordinator, limits, self._find)
        self.by_name: dict[str, Callable[[Any, str, float], Awaitable[Any]]] = {
            "commit": self.commit,
            "begin": self.begin,
            "enlist": self.enlist,
            "vote": self.vote,
            "rollback": self.rollback,
            "report": self.report,
            "wait": self._waits.wait,
            "get": self.get,
            "submit": self.submit,
            "prepare_message": self.prepare_message,
            "submit_message": self.submit_message,
        }

    def leave(self) -> None:
        """This node is leaving: open waits end without an answer."""
        self._waits.leave()

    def namespace(self, name: str) -> str:
        """Check a namespace, and that the caller belongs there; empty is "default"."""
        name = self._read.namespace(name)
        caller = tokens.current()
        if caller is not None:
            caller.check_namespace(name)
        return name

    def sized(self, data: bytes, what: str) -> None:
        """Refuse what is larger than a payload may be."""
        self._read.sized(data, what)

    def edited(self, branch: Branch | None, payload: bytes, namespace: str) -> None:
        """Refuse what an operator must not put in the place of a branch's payload."""
        self.sized(payload, "payload")
        if branch is not None:
            deliveries.check_edited(branch, payload, namespace, self._limits.executes, self._limits.topics)

    def check_log(self, log_id: str) -> None:
        """The client has another log in mind: a restored or exchanged one."""
        identity = self._c.identity
        if log_id and identity is not None and log_id != identity.log_id:
            raise bad(
                reasons.BAD_XID,
                f"this coordinator's log is {identity.log_id}, the client has {log_id} in mind: say Hello again",
                "FAILED_PRECONDITION",
            )

    async def hello(self, request: pb.HelloRequest) -> pb.HelloResponse:
        """Who is there."""
        self.namespace(request.namespace)
        identity, limits, windows = self._c.identity, self._limits, self._c.settings.windows
        assert identity is not None
        return pb.HelloResponse(
            log_id=identity.log_id,
            incarnation=identity.incarnation,
            earlier_log_ids=identity.earlier_log_ids,
            log_time_us=self._c.clock.now_us(),
            node=self._c.settings.node,
            version=__version__,
            features=["session", "batch", "xa", "tcc", "saga", "message", "notify"],
            limits=pb.Limits(
                max_payload_bytes=limits.payload,
                max_message_bytes=limits.message,
                max_operations=limits.operations,
                max_branches=limits.branches,
                max_deadline_us=limits.deadline_max_us,
                default_deadline_us=limits.deadline_default_us,
                grace_us=windows.grace_us,
                retention_us=windows.retention_us,
                max_labels=limits.labels,
                max_headers_bytes=limits.headers,
                max_wait_us=limits.wait_max_us,
            ),
            resources=[
                pb.ResourceInfo(
                    name=r.name,
                    engine=r.engine,
                    identity=r.identity,
                    engine_version=r.version,
                    available=not r.problem,
                    problem=r.problem,
                )
                for r in self._resources()
            ],
        )

    async def begin(self, request: pb.BeginRequest, namespace: str, most_s: float) -> pb.BeginResponse:
        """Make a transaction durable."""
        now_us = self._c.clock.now_us()
        tx_id = self._tx_id(request, now_us)
        deadline_us = request.deadline_us or now_us + self._limits.deadline_default_us
        tx = self._read.tx(namespace, tx_id, request.gid, deadline_us, request.spec)
        tx = replace(tx, branches=self._read.callbacks(request.spec))
        again = _taken_over(request.spec)
        first = self._c.begin(Begin(tx), may_take_over=again, retry_of=request.spec.retry_of)
        done = await repeats.same(
            request, first, lambda tx_id: self._c.begin(Begin(replace(tx, tx_id=tx_id)))
        )
        return pb.BeginResponse(outcome=mapping.outcome(done, named=True))

    async def enlist(self, request: pb.EnlistRequest, namespace: str, most_s: float) -> pb.EnlistResponse:
        """Add branches."""
        tx = self._read.tx(
            namespace, request.tx_id, request.gid, request.deadline_us, request.spec, names_branches=True
        )
        deliveries.may_be(request.branches, namespace, self._limits.executes, self._limits.topics)
        steps = self._read.steps(request.branches) if request.run else ()
        ids = {b.id for b in steps}
        rest = [b for b in request.branches if b.id not in ids]
        branches = (*steps, *self._read.branches(request.tx_id, request.deadline_us, rest))
        for branch in branches:
            if branch.kind is not Kind.XA and branch.action is None:
                raise bad(reasons.BAD_BRANCH, f"branch {branch.id}: its target is missing")
            if branch.id not in ids and branch.action is not None and branch.action.run_first:
                raise bad(
                    reasons.NOT_SUPPORTED,
                    f"branch {branch.id}: this server runs no tries but those of a plan: the caller does",
                    "UNIMPLEMENTED",
                )
        if not branches:
            raise bad(reasons.BAD_REQUEST, "no branch to enlist")
        branches = self._read.with_retry(branches, request.spec)
        branches += self._read.callbacks(request.spec, request.branches)
        done = await self._c.enlist(Enlist(tx, branches, request.run), begun=request.begun)
        if not ids:
            return pb.EnlistResponse(outcome=mapping.outcome(done))
        limit_s = min(request.wait_us, self._limits.wait_max_us) / 1e6
        done = await self._c.steps(done, ids, min(limit_s, most_s))
        ready = all(b.state is BranchState.READY for b in done.branches if b.id in ids)
        pending = done.decision is None and not ready
        return pb.EnlistResponse(outcome=mapping.outcome(done, pending=pending, all_branches=True))

    async def submit(self, request: pb.SubmitRequest, namespace: str, most_s: float) -> pb.SubmitResponse:
        """Take a whole plan over."""
        tx_id = self._tx_id(request, self._c.clock.now_us())
        deadline_us = request.deadline_us or FOREVER_US
        tx = self._read.tx(
            namespace, tx_id, request.gid, deadline_us, request.spec, may_have_none=True, names_branches=True
        )
        deliveries.may_be(request.branches, namespace, self._limits.executes, self._limits.topics)
        branches = self._read.with_retry(self._read.plan(request.branches), request.spec)
        branches += self._read.callbacks(request.spec, request.branches)
        plan = replace(tx, branches=branches, one_phase_resource="")
        again = _taken_over(request.spec)
        first = self._c.submit(Submit(plan), may_take_over=again, retry_of=request.spec.retry_of)
        done = await repeats.same(
            request, first, lambda tx_id: self._c.submit(Submit(replace(plan, tx_id=tx_id)))
        )
        if request.wait == c.WAIT_LEVEL_ACCEPTED:
            most_s = 0.0
        done = await self._waited(done, request.wait, request.wait_us, most_s)
        out = mapping.outcome(done, pending=not reached(done, LEVEL[request.wait]), named=True)
        return pb.SubmitResponse(outcome=out)

    async def prepare_message(
        self, request: pb.PrepareMessageRequest, namespace: str, most_s: float
    ) -> pb.PrepareMessageResponse:
        """Make messages durable that leave when the sender's local transaction has committed."""
        asked = deliveries.asked(request.check, self._read.resource, self._limits.targets)
        now_us = self._c.clock.now_us()
        tx_id = self._tx_id(request, now_us)
        deadline_us = request.deadline_us or now_us + self._limits.deadline_default_us
        deliveries.may_be(request.branches, namespace, self._limits.executes, self._limits.topics)
        tx = self._read.tx(namespace, tx_id, request.gid, deadline_us, request.spec)
        branches = self._read.branches(tx_id, deadline_us, request.branches)
        if not branches or not all(b.kind.is_delivery and b.action is not None for b in branches):
            raise bad(reasons.BAD_BRANCH, "messages and notifications are needed here, and nothing else")
        tx = replace(tx, one_phase_resource=asked)
        branches += self._read.callbacks(request.spec, request.branches)
        first = self._c.enlist(Enlist(tx, branches), begun=False)
        done = await repeats.same(
            request, first, lambda tx_id: self._c.begin(Begin(replace(tx, tx_id=tx_id)))
        )
        deliveries.must_be_same(done, tx, branches)
        return pb.PrepareMessageResponse(outcome=mapping.outcome(done, named=True))

    async def submit_message(
        self, request: pb.SubmitMessageRequest, namespace: str, most_s: float
    ) -> pb.SubmitMessageResponse:
        """The sender's local transaction has committed, with its marker."""
        row = await self.find(namespace, request.tx_id, request.gid)
        if not row.one_phase_resource or not all(b.kind.is_delivery for b in row.branches):
            raise bad(
                reasons.NOT_SUPPORTED, "only what was prepared by PrepareMessage", "FAILED_PRECONDITION"
            )
        tx = self._read.tx(
            namespace, row.tx_id, row.gid, row.deadline_us, None, result=request.result, may_have_none=True
        )
        done = await self._c.one_phase_done(OnePhaseDone(tx)) if row.decision is None else row
        done = await self._waited(done, request.wait, request.wait_us, most_s)
        return pb.SubmitMessageResponse(outcome=self._outcome(done, request.wait))

    async def vote(self, request: pb.VoteRequest, namespace: str, most_s: float) -> pb.VoteResponse:
        """Report votes: an enlist of what is known already, with its vote."""
        asked = self._read.tx(namespace, request.tx_id, request.gid, request.deadline_us, None)
        row = await self._c.get(request.tx_id)
        if row is None or row.namespace != namespace:
            raise not_found(request.tx_id)
        known = {b.id: b for b in row.branches}
        voted = []
        for vote in request.votes:
            branch = known.get(vote.branch)
            if branch is None:
                raise bad(reasons.NOT_FOUND, f"branch {vote.branch[:40]!r} was not enlisted", "NOT_FOUND")
            item = c.Branch(id=branch.id, kind=mapping.KIND[branch.kind], vote=vote.vote, reason=vote.reason)
            if branch.kind is Kind.XA:
                item.xa.CopyFrom(mapping.xa_part(branch))
            else:
                item.action.result = vote.result
                item.action.result_content_type = vote.content_type
            voted.append(item)
        branches = tuple(
            filled(b, known[b.id]) for b in self._read.branches(request.tx_id, request.deadline_us, voted)
        )
        done = await self._c.enlist(Enlist(asked, branches), begun=True)
        return pb.VoteResponse(outcome=mapping.outcome(done))

    async def commit(self, request: pb.CommitRequest, namespace: str, most_s: float) -> pb.CommitResponse:
        """Ask for commit."""
        deliveries.may_be(request.branches, namespace, self._limits.executes, self._limits.topics)
        tx = self._read.tx(
            namespace,
            request.tx_id,
            request.gid,
            request.deadline_us,
            request.spec if request.HasField("spec") else None,
            request.branches,
            request.result,
        )
        tx = replace(tx, branches=tx.branches + self._read.callbacks(request.spec, request.branches))
        done = await self._c.commit(Commit(tx, request.begun or bool(request.gid)))
        await self._let_go(done, request.branches)
        if done.decision is Decision.ABORT and done.decided_by is not DecidedBy.BRANCH:
            # Not by its own votes: somebody, or the deadline, was faster.
            raise Refused(
                Refusal(
                    "FAILED_PRECONDITION",
                    done.reason or reasons.ALREADY_ABORTED,
                    f"the transaction was aborted by {done.decided_by}: it cannot be committed any more",
                    facts={"tx_id": done.tx_id},
                ),
                self._outcome(done, request.wait),
            )
        done = await self._waited(done, request.wait, request.wait_us, most_s)
        return pb.CommitResponse(outcome=self._outcome(done, request.wait))

    async def rollback(
        self, request: pb.RollbackRequest, namespace: str, most_s: float
    ) -> pb.RollbackResponse:
        """Ask for abort, also of a transaction that the log has never heard of."""
        row: Tx | None = None
        tx_id, deadline_us = request.tx_id, request.deadline_us
        if not tx_id or not deadline_us:
            row = await self._find(namespace, tx_id, request.gid)
            if row is None:
                raise not_found(tx_id or request.gid)
            tx_id, deadline_us = row.tx_id, row.deadline_us
        for name in request.resources:
            self._read.resource(name)
        gid = request.gid if row is None else row.gid
        tx = self._read.tx(
            namespace, tx_id, gid, deadline_us, None, request.branches, may_have_none=row is not None
        )
        event = Rollback(
            tx,
            reason=storable(request.reason[:100]) or reasons.ROLLED_BACK_BY_CLIENT,
            sealed=request.initiator and request.sealed,
            logged=request.force_log or bool(request.gid) or request.begun,
            resources=tuple(request.resources),
        )
        # What a participant is called for was enlisted, perhaps by another service and at another node.
        begun = request.begun or bool(request.gid) or row is not None or any(map(is_called, tx.branches))
        done = await self._c.rollback(event, begun=begun)
        await self._let_go(done, request.branches)
        done = await self._waited(done, request.wait, request.wait_us, most_s)
        return pb.RollbackResponse(outcome=self._outcome(done, request.wait))

    async def report(self, request: pb.ReportRequest, namespace: str, most_s: float) -> pb.ReportResponse:
        """Take what happened elsewhere: a one-phase commit, or what the holders of branches did with them."""
        if not request.reports:
            raise bad(reasons.BAD_REQUEST, "no report")
        if all(report.event == c.BRANCH_EVENT_ANSWER for report in request.reports):
            return await self._late_answers(request, namespace)
        for report in request.reports:
            if not identifiers.is_branch(report.branch):
                raise bad(reasons.BAD_BRANCH, f"branch id {report.branch[:80]!r}")
            self._read.resource(report.xa.resource)
        spec = request.spec if request.HasField("spec") else None
        if request.spec.callbacks:
            text = "callbacks are asked for before the end: with begin, submit, enlist or commit"
            raise bad(reasons.NOT_SUPPORTED, text, "UNIMPLEMENTED")
        tx = self._read.tx(
            namespace, request.tx_id, request.gid, request.deadline_us, spec, result=request.result
        )
        if request.reports[0].event == c.BRANCH_EVENT_ONE_PHASE_COMMITTED and len(request.reports) == 1:
            return pb.ReportResponse(outcome=mapping.outcome(await self._one_phase(tx, request.reports[0])))
        events = [(self._held(tx, report.branch, report.xa), report) for report in request.reports]
        if any(report.event not in _HOLDER_DID for _, report in events):
            raise bad(
                reasons.NOT_SUPPORTED, "such a report, or such a mixture, is not known here", "UNIMPLEMENTED"
            )
        done: Tx | None = None
        for xid, report in events:
            event = HolderReported(report.branch, report.xa.resource, xid, _HOLDER_DID[report.event])
            done = await self._c.holder_reported(tx, event)
        return pb.ReportResponse(outcome=mapping.outcome(done) if done is not None else None)

    async def _late_answers(self, request: pb.ReportRequest, namespace: str) -> pb.ReportResponse:
        tx = await self.find(namespace, request.tx_id, request.gid)
        events = [actions.late_answer(tx, report) for report in request.reports]
        for event in events:
            tx = await self._c.answered_late(tx.tx_id, replace(event, defaults=self._c.settings.retry))
        return pb.ReportResponse(outcome=mapping.outcome(tx))

    async def _one_phase(self, tx: Tx, report: c.BranchReport) -> Tx:
        branch = Branch(report.branch, Kind.XA, BranchState.DONE, report.xa.resource)
        return await self._c.one_phase_done(
            OnePhaseDone(replace(tx, branches=(branch,), one_phase_resource=report.xa.resource))
        )

    def _held(self, tx: Tx, branch: str, part: c.XaPart) -> str:
        """The xid of a branch that is reported on."""
        x = self._read.xid(branch, part)
        if (x.tx_id, x.branch) != (tx.tx_id, branch):
            raise bad(reasons.BAD_XID, f"branch {branch}: its xid names another transaction or branch")
        return str(x)

    async def _let_go(self, tx: Tx, asked: Iterable[c.Branch]) -> None:
        """Branches that nobody holds any more need not wait for their holders."""
        if tx.decision is None or tx.ended:
            return
        for item in asked:
            branch = tx.branch(item.id)
            if item.xa.connection_id and not item.xa.held and branch is not None:
                await self._c.holder_reported(
                    tx, HolderReported(branch.id, branch.resource, branch.xid, None)
                )

    async def get(self, request: pb.GetRequest, namespace: str, most_s: float) -> pb.GetResponse:
        """One transaction."""
        tx = await self.find(namespace, request.tx_id, request.gid)
        out = mapping.transaction(tx)
        if request.history:
            for seq, entry in enumerate(await self._c.log.history(tx.tx_id)):
                out.history.append(
                    c.HistoryEvent(
                        seq=seq,
                        at_us=entry.at_us,
                        event=entry.what,
                        branch=entry.branch,
                        actor=entry.by,
                        reason=entry.reason.split(":", 1)[0],
                        message=entry.reason,
                    )
                )
        return pb.GetResponse(transaction=out)

    async def list(self, request: pb.ListRequest, namespace: str) -> pb.ListResponse:
        """A page of transactions, newest first."""
        if request.order_by not in ("", "created desc"):
            raise bad(
                reasons.BAD_REQUEST, f"order_by {request.order_by[:40]!r}: only 'created desc' is known"
            )
        if request.page_token and not identifiers.is_tx_id(request.page_token):
            raise bad(reasons.BAD_REQUEST, f"page_token {request.page_token[:40]!r} was never given out")
        size = min(request.page_size or 50, 1_000)
        query = filters.parse(
            request.filter,
            namespace=namespace,
            now_us=self._c.clock.now_us(),
            after_tx_id=request.page_token or None,
            limit=size + 1,
        )
        await self._c.log.settle()
        rows = await self._c.log.query(query)
        page, more = rows[:size], len(rows) > size
        return pb.ListResponse(
            transactions=[mapping.transaction(tx, results=False) for tx in page],
            next_page_token=page[-1].tx_id if more else "",
        )

    async def deliveries(
        self, request: pb.ListDeliveriesRequest, namespace: str
    ) -> pb.ListDeliveriesResponse:
        """A page of messages and notifications: what became of them, or what a receiver has missed."""
        query = delivered.query_of(request, namespace)
        await self._c.log.settle()
        found = await self._c.log.deliveries(query)
        return delivered.page(found, query, payloads=request.payloads)

    # ---- helpers ----

    def _tx_id(
        self, request: pb.BeginRequest | pb.SubmitRequest | pb.PrepareMessageRequest, now_us: int
    ) -> str:
        if not request.tx_id and not request.gid:
            text = "without a tx_id a gid is needed, so that the call can be repeated"
            raise bad(reasons.BAD_REQUEST, text)
        return request.tx_id or identifiers.new_tx_id(now_us, self._c.random.getrandbits)

    async def find(self, namespace: str, tx_id: str, gid: str) -> Tx:
        """The transaction of that tx id or gid. Raises Refused (NOT_FOUND)."""
        tx = await self._find(namespace, tx_id, gid)
        if tx is None:
            raise not_found(tx_id or gid)
        return tx

    async def _find(self, namespace: str, tx_id: str, gid: str) -> Tx | None:
        tx: Tx | None = None
        if tx_id:
            if not identifiers.is_tx_id(tx_id):
                raise bad(reasons.BAD_TX_ID, f"tx_id {tx_id[:80]!r}: 32 lower-case hex digits are expected")
            tx = await self._c.get(tx_id)
        elif gid:
            tx = await self._c.get_by_gid(namespace, gid)
            bare = identifiers.parse_tx_id(gid)
            if tx is None and bare is not None:
                tx = await self._c.get(bare)
        else:
            raise bad(reasons.BAD_REQUEST, "neither tx_id nor gid was given")
        if tx is None or tx.namespace not in ("", namespace):
            return None
        if expired(tx, self._c.settings.windows):
            return None
        return tx

    async def _waited(self, tx: Tx, level: c.WaitLevel, wait_us: int, most_s: float) -> Tx:
        if most_s <= 0:
            return tx
        limit_s = min(wait_us or self._limits.wait_max_us, self._limits.wait_max_us) / 1e6
        return await self._c.wait(tx, LEVEL[level], min(limit_s, most_s))

    def _outcome(self, tx: Tx, level: c.WaitLevel) -> c.Outcome:
        return mapping.outcome(tx, pending=not reached(tx, LEVEL[level]))
