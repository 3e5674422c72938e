"""The HTTP/JSON front: which request is which operation. What an operation does is the same as over gRPC."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any
from urllib.parse import unquote

from google.protobuf.message import Message

from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import bearer, identifiers, reasons

from ...core.errors import Refusal, Refused
from ...core.model import FOREVER_US
from ..grpc import mapping as wire
from ..grpc.mapping import Limits, bad
from ..grpc.operations import Operations
from ..tokens import Caller, May, Tokens, calling
from . import asking, mapping
from .asking import Asked, Prefer
from .problems import TYPE as PROBLEM
from .problems import HttpRefused, problem

JSON = "application/json"
DEFAULT_WAIT_S = 30.0
"""How long an answer is waited for when the caller does not say."""
_LEVELS = {"accepted", "decided", "committed", "delivered"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back."""

    status: int
    value: Any = None
    """JSON."""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON

    @property
    def body(self) -> bytes:
        """As it is sent."""
        return self.value if isinstance(self.value, bytes) else mapping.dumps(self.value) + b"\n"


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the API, as it was read."""

    namespace: str
    request: Any
    """The message, empty for GET."""
    wait_s: float
    prefer: Prefer
    given: Mapping[str, str]
    """Query parameters."""
    key: str
    """Idempotency-Key."""
    ref: str
    """The transaction in the path: gid or tx id."""
    waited_by_prefer: bool


@dataclass(frozen=True, slots=True)
class Route:
    """One operation."""

    method: str
    path: str
    run: Callable[[Front, Call], Awaitable[Answer]]
    request: Callable[[], Message]
    query: tuple[str, ...] = ()
    waits: bool = False
    """Its answer can be waited for."""
    changes: bool = True
    """What it was asked for is done, also when its caller has gone."""


class Front:
    """Answers requests; knows nothing of sockets."""

    def __init__(
        self,
        operations: Operations,
        limits: Limits,
        *,
        now_us: Callable[[], int],
        tokens: Tokens | None = None,
    ) -> None:
        self._ops = operations
        self._tokens = tokens
        self._longest_s = limits.wait_max_us / 1_000_000
        self._now_us = now_us
        self.ready = True
        """The log answers."""
        self.draining = False
        """Nothing is answered any more."""
        self.takes_work = True
        """Also what begins something."""
        self.requests = 0
        """Requests of the API so far, for the cost counters."""
        self._openapi = resources.files(__package__).joinpath("openapi.json").read_bytes()

    def route(self, asked: Asked) -> tuple[Route | None, str]:
        """Which operation it is, and the transaction that its path names. None: it is no operation, but answered
        all the same. Raises HttpRefused."""
        methods: list[str] = []
        for pattern, route in _ROUTES:
            found = pattern.fullmatch(asked.path)
            if found is None:
                continue
            if route.method == asked.method:
                return route, unquote(found[1]) if found.groups() else ""
            methods.append(route.method)
        if asked.path in _PLAIN:
            if asked.method == "GET":
                return None, ""
            methods.append("GET")
        if methods:
            text = f"{asked.method[:20]} is not a method of {asked.path[:80]}; there is {', '.join(methods)}"
            raise HttpRefused(405, text, headers={"Allow": ", ".join(methods)})
        raise HttpRefused(404, f"there is nothing at {asked.path[:80]!r}: /openapi.json lists what there is")

    def check(self, asked: Asked) -> Route | None:
        """Refuse what can be refused before its body is read. Raises Refused."""
        route, _ = self.route(asked)
        self._caller(route, asked)
        if route is None:
            return None
        begins = route.changes and route.request is not pb.ReportRequest
        if self.draining or (begins and not self.takes_work):
            why = "this node is leaving" if self.draining else "this node is drained by an operator"
            raise Refused(Refusal("UNAVAILABLE", reasons.SHUTTING_DOWN, why, True, retry_after_us=100_000))
        if route.method == "POST":
            kind, _, options = asked.headers.get("content-type", "").partition(";")
            charset = options.strip().lower().replace('"', "")
            if kind.strip().lower() != JSON or charset not in ("", "charset=utf-8"):
                # Not only for order's sake: a page in a browser cannot send it elsewhere without asking first.
                raise HttpRefused(
                    415, f"Content-Type: {JSON} is needed (and UTF-8)", headers={"Accept-Post": JSON}
                )
            if asked.headers.get("content-encoding", "identity").lower() != "identity":
                raise HttpRefused(
                    415, "a body with a Content-Encoding is not read", headers={"Accept-Encoding": ""}
                )
        return route

    def _caller(self, route: Route | None, asked: Asked) -> Caller | None:
        """Who calls; None where nobody must say who he is. Raises Refused."""
        if self._tokens is None or asked.path in _OPEN:
            return None
        caller = self._tokens.caller(asked.headers.get(bearer.HEADER, ""))
        caller.check(May.TAKE_PART if route is not None and route.changes else May.READ)
        return caller

    async def answer(self, asked: Asked, body: bytes = b"") -> Answer:
        """Answer a request. Never raises, but when it is cancelled."""
        try:
            route = self.check(asked)
            if route is None:
                return _PLAIN[asked.path](self)
            self.requests += 1
            with calling(self._caller(route, asked)):
                return await route.run(self, self._read(route, asked, body))
        except Exception as error:
            return refusal(error)

    def _read(self, route: Route, asked: Asked, body: bytes) -> Call:
        known = ["namespace", *route.query, *(["timeout"] if route.waits else [])]
        given = asking.parameters(asked.query, known)
        request: Any = route.request()
        if route.method == "POST":
            mapping.read(mapping.loads(body) if body.strip() else {}, request)
        named = given.get("namespace", "")
        if named and request.namespace not in ("", named):
            raise mapping.refused("namespace", "the body names another one than the query does")
        request.namespace = self._ops.namespace(named or request.namespace)
        prefer = asking.prefer(asked.headers.get("prefer", ""))
        wait_s = DEFAULT_WAIT_S if prefer.wait_s is None else prefer.wait_s
        if "timeout" in given:
            wait_s = asking.seconds(given["timeout"], "timeout")
        value = asked.headers.get("idempotency-key")
        key = asking.idempotency_key(value) if value is not None else ""
        _, ref = self.route(asked)
        if ref and not identifiers.is_gid(ref):
            raise bad(reasons.BAD_GID, f"{ref[:80]!r} in the path is neither a gid nor a tx id")
        by_prefer = route.waits and prefer.wait_s is not None and "timeout" not in given
        wait_s = min(wait_s, self._longest_s)
        return Call(request.namespace, request, wait_s, prefer, given, key, ref, by_prefer)

    # ---- the operations ----

    async def _run(self, name: str, call: Call) -> Any:
        response = await self._ops.by_name[name](call.request, call.namespace, call.wait_s)
        response.log_time_us = self._now_us()
        return response

    async def _begin(self, call: Call) -> Answer:
        self._name(call)
        response = await self._run("begin", call)
        return Answer(201, mapping.write(response), _location(response.outcome))

    async def _submit(self, call: Call) -> Answer:
        self._name(call)
        self._maybe_later(call)
        response = await self._run("submit", call)
        return self._waited(call, response, _location(response.outcome))

    async def _prepare(self, call: Call) -> Answer:
        self._name(call)
        response = await self._run("prepare_message", call)
        return Answer(201, mapping.write(response), _location(response.outcome))

    async def _send(self, call: Call) -> Answer:
        request = call.request
        if not self._is_named(call):
            request.gid, request.tx_id = call.ref, ""  # The operation looks it up by itself.
        self._maybe_later(call)
        return self._waited(call, await self._run("submit_message", call))

    async def _enlist(self, call: Call) -> Answer:
        await self._known(call)
        if not call.request.wait_us:
            call.request.wait_us = round(call.wait_s * 1_000_000)
        return self._waited(call, await self._run("enlist", call))

    async def _vote(self, call: Call) -> Answer:
        await self._known(call)
        return Answer(200, mapping.write(await self._run("vote", call)))

    async def _commit(self, call: Call) -> Answer:
        await self._known(call)
        self._maybe_later(call)
        return self._waited(call, await self._run("commit", call))

    async def _rollback(self, call: Call) -> Answer:
        request = call.request
        if not self._is_named(call):
            request.gid, request.tx_id = call.ref, ""  # The operation looks it up by itself.
        self._maybe_later(call)
        return self._waited(call, await self._run("rollback", call))

    async def _report(self, call: Call) -> Answer:
        await self._known(call)
        return Answer(200, mapping.write(await self._run("report", call)))

    async def _wait(self, call: Call) -> Answer:
        if not call.request.wait_us:
            call.request.wait_us = round(call.wait_s * 1_000_000)
        return Answer(200, mapping.write(await self._run("wait", call)), _applied(call))

    async def _wait_of_one(self, call: Call) -> Answer:
        level = call.given.get("level", "committed")
        if level not in _LEVELS:
            raise mapping.refused(
                "level", f"one of {', '.join(sorted(_LEVELS))} is expected, not {level[:40]!r}"
            )
        number = c.WaitLevel.Value(f"WAIT_LEVEL_{level.upper()}")
        call.request.items.add(gid=call.ref, level=number, all_branches=True)
        call.request.wait_us = round(call.wait_s * 1_000_000)
        response = await self._run("wait", call)
        if response.results:
            result = response.results[0]
            if result.HasField("status"):
                raise Refused(Refusal("NOT_FOUND", result.status.reason, result.status.message))
            outcome = result.outcome
        else:
            tx = await self._ops.find(call.namespace, "", call.ref)
            outcome = wire.outcome(tx, pending=True, named=True, all_branches=True)
        return self._waited(call, pb.SubmitResponse(outcome=outcome, log_time_us=response.log_time_us))

    async def _get(self, call: Call) -> Answer:
        call.request.gid = call.ref
        for name in ("history", "payloads"):
            if name in call.given:
                setattr(call.request, name, asking.truth(call.given[name], name))
        return Answer(200, mapping.write(await self._run("get", call)))

    async def _list(self, call: Call) -> Answer:
        names = {
            "pageSize": "page_size",
            "pageToken": "page_token",
            "orderBy": "order_by",
            "filter": "filter",
        }
        for name in names.keys() & call.given.keys():
            value: Any = call.given[name]
            if name == "pageSize":
                value = int(value) if re.fullmatch(r"\d{1,4}", value, re.ASCII) else 0
                if not 1 <= value <= 1000:
                    raise mapping.refused(name, "a number from 1 to 1000 is expected")
            setattr(call.request, names[name], value)
        response = await self._ops.list(call.request, call.namespace)
        response.log_time_us = self._now_us()
        return Answer(200, mapping.write(response))

    async def _hello(self, call: Call) -> Answer:
        return Answer(200, mapping.write(await self._ops.hello(call.request)))

    # ---- what several need ----

    @staticmethod
    def _name(call: Call) -> None:
        """The Idempotency-Key is the gid of what is begun."""
        if not call.key:
            return
        if call.request.gid not in ("", call.key):
            raise mapping.refused("gid", "the Idempotency-Key is the gid: give one of them, or the same")
        call.request.gid = call.key

    @staticmethod
    def _is_named(call: Call) -> bool:
        """Does the request say all that is needed of which transaction it means? Raises Refused."""
        request, ref = call.request, call.ref
        for name in ("tx_id", "gid"):
            if getattr(request, name) not in ("", ref):
                raise mapping.refused(name, "the body names another transaction than the path does")
        if not (identifiers.is_tx_id(ref) and request.deadline_us):
            return False
        request.tx_id = ref
        return True

    async def _known(self, call: Call) -> None:
        """Fill in which transaction the path names: whoever calls need not keep more than its gid."""
        request = call.request
        if self._is_named(call):
            return
        tx = await self._ops.find(call.namespace, "", call.ref)
        if tx.deadline_us == FOREVER_US and not isinstance(request, pb.ReportRequest):
            # No request can have that one. Only a plan has none; of one that has a deadline the core says the same.
            reason = reasons.NOT_SUPPORTED if isinstance(request, pb.CommitRequest) else reasons.DECIDED
            text = "it is a plan: the coordinator runs and decides it; only a rollback may stop it"
            raise bad(reason, text, "FAILED_PRECONDITION", tx_id=tx.tx_id)
        request.tx_id, request.gid, request.deadline_us = tx.tx_id, tx.gid, tx.deadline_us
        if "begun" in request.DESCRIPTOR.fields_by_name:
            request.begun = True

    @staticmethod
    def _maybe_later(call: Call) -> None:
        if call.prefer.later and not call.request.wait:
            call.request.wait = c.WAIT_LEVEL_ACCEPTED

    @staticmethod
    def _waited(call: Call, response: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """200, or 202 while what was waited for is not reached, or was only to be taken."""
        later = getattr(call.request, "wait", 0) == c.WAIT_LEVEL_ACCEPTED and not response.outcome.ended_us
        pending = response.outcome.pending or later
        return Answer(202 if pending else 200, mapping.write(response), {**(headers or {}), **_applied(call)})

    # ---- beside the operations ----

    def _openapi_answer(self) -> Answer:
        return Answer(200, self._openapi)

    def _live(self) -> Answer:
        return Answer(200, {"status": "ok"})

    def _ready(self) -> Answer:
        if self.draining or not self.takes_work or not self.ready:
            why = "the log does not answer" if not self.ready else "this node takes nothing new"
            why = "this node is leaving" if self.draining else why
            return Answer(503, {"status": "not ready", "why": why}, {"Retry-After": "1"})
        return Answer(200, {"status": "ok"})


def refusal(error: Exception) -> Answer:
    """The answer to what was refused."""
    number, value, headers = problem(error)
    return Answer(number, value, headers, PROBLEM)


def _location(outcome: c.Outcome) -> dict[str, str]:
    return {"Location": f"/v1/transactions/{outcome.tx_id}"}


def _applied(call: Call) -> dict[str, str]:
    applied = []
    if call.waited_by_prefer:
        applied.append(f"wait={call.wait_s:.0f}")
    if call.prefer.later and getattr(call.request, "wait", 0) == c.WAIT_LEVEL_ACCEPTED:
        applied.append("respond-async")
    return {"Preference-Applied": ", ".join(applied)} if applied else {}


_TX = "/v1/transactions/{id}"
ROUTES = (
    Route("POST", "/v1/transactions", Front._begin, pb.BeginRequest),
    Route(
        "GET",
        "/v1/transactions",
        Front._list,
        pb.ListRequest,
        ("filter", "pageSize", "pageToken", "orderBy"),
        changes=False,
    ),
    Route("POST", "/v1/plans", Front._submit, pb.SubmitRequest, waits=True),
    Route("POST", "/v1/messages", Front._prepare, pb.PrepareMessageRequest),
    Route("POST", "/v1/messages/{id}/submit", Front._send, pb.SubmitMessageRequest, waits=True),
    Route("GET", _TX, Front._get, pb.GetRequest, ("history", "payloads"), changes=False),
    Route("GET", f"{_TX}/wait", Front._wait_of_one, pb.WaitRequest, ("level",), waits=True, changes=False),
    Route("POST", f"{_TX}/branches", Front._enlist, pb.EnlistRequest, waits=True),
    Route("POST", f"{_TX}/votes", Front._vote, pb.VoteRequest),
    Route("POST", f"{_TX}/commit", Front._commit, pb.CommitRequest, waits=True),
    Route("POST", f"{_TX}/rollback", Front._rollback, pb.RollbackRequest, waits=True),
    Route("POST", f"{_TX}/reports", Front._report, pb.ReportRequest),
    Route("POST", "/v1/wait", Front._wait, pb.WaitRequest, waits=True, changes=False),
    Route("GET", "/v1/hello", Front._hello, pb.HelloRequest, changes=False),
)
_ROUTES = [(re.compile(re.escape(r.path).replace(r"\{id\}", "([^/]+)")), r) for r in ROUTES]
_PLAIN: dict[str, Callable[[Front], Answer]] = {
    "/openapi.json": Front._openapi_answer,
    "/livez": Front._live,
    "/readyz": Front._ready,
}
_OPEN = frozenset({"/openapi.json", "/livez", "/readyz"})
"""They tell nothing of what the node does: whoever can connect may ask."""
