"""Participants by whatever their addresses say, or by their names."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ...core.action import Answer, AnswerKind, Op
from ...core.model import Tx
from ...core.statements import PREFIX
from ...core.targets import ANYBODY, Target, Targets
from ...core.topics import PREFIX as TOPIC
from ...ports import Caller, CallRequest, NotAnswered, Probed, Registry
from . import query_back
from .credentials import Credentials, Tls, TokenFile
from .dialling import Dialling
from .grpc_ import GrpcCaller
from .webhooks import Webhooks

if TYPE_CHECKING:
    from .http_ import HttpCaller
    from .sql_ import SqlCaller

_REST_S = 5.0
"""How long an address that did not answer comes after the others."""
_AWAY = ("UNAVAILABLE", "HTTP_502", "HTTP_503", "HTTP_504")
_LATE = ("TIMED_OUT", "NO_ANSWER")


class AnyCaller:
    """``ports.Caller`` for all targets."""

    def __init__(
        self,
        *,
        node: str,
        targets: Targets = ANYBODY,
        tls: Tls = Tls(),  # noqa: B008 - it is frozen
        tokens: Mapping[str, TokenFile] | None = None,
        webhooks: Webhooks | None = None,
        sql: SqlCaller | None = None,
        topics: Caller | None = None,
    ) -> None:
        self._sql = sql
        self._topics = topics
        self._webhooks = webhooks or Webhooks(targets)
        self._dialling_hooks = Dialling(self._webhooks.targets)
        self._targets = targets
        self._dialling = Dialling(targets)
        self._credentials = credentials = Credentials(targets, tls, tokens or {})
        self._node = node
        self.grpc = GrpcCaller(node=node, credentials=credentials, dialling=self._dialling)
        self._http: HttpCaller | None = None
        self._loading = asyncio.Lock()
        self._resting: dict[Target, float] = {}
        self.registry: Registry | None = None
        """Where participants are that the settings do not name."""

    def knows_log(self, log_id: str) -> None:
        """Which log it calls for."""
        self.grpc.log_id = log_id
        if self._http is not None:
            self._http.log_id = log_id

    def check(self) -> None:
        """Can its certificates and tokens be used? Raises OSError, ValueError."""
        self._credentials.check()
        self._webhooks.check()

    @property
    def messages(self) -> int:
        """Messages sent and received."""
        return self.grpc.messages + (self._http.messages if self._http is not None else 0)

    def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        """Over what its address begins with; a name is called at the first of its addresses that is well."""
        if self._sql is not None and target.startswith(PREFIX):
            return self._sql.call(target, requests, timeout_s)
        if target.startswith(TOPIC):
            if self._topics is None:
                return _nobody(
                    "TARGET_NOT_ALLOWED: this node has no Kafka: kafka.bootstrap_servers", requests
                )
            return self._topics.call(target, requests, timeout_s)
        if target in self._targets.named:
            return self._by_name(self._targets.named[target], requests, timeout_s)
        if "://" not in target and self.registry is not None and requests:
            # All of one lane, so of one namespace.
            places = self.registry.places(requests[0].tx.namespace, target)
            if places:
                return self._by_name(places, requests, timeout_s)
            return _nobody(f"UNAVAILABLE: no instance of {target[:80]!r} is registered", requests)
        return self._by_address(target, requests, timeout_s)

    def _by_address(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        scheme = target.partition("://")[0]
        if scheme in ("grpc", "grpcs"):
            return self.grpc.call(target, requests, timeout_s)
        if scheme in ("http", "https"):
            if self._http is not None:
                return self._http.call(target, requests, timeout_s)
            return self._first_over_http(target, requests, timeout_s)
        return _nobody(f"UNKNOWN_PARTICIPANT: {target[:200]!r} cannot be called", requests)

    async def _first_over_http(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        async for item in (await self._over_http()).call(target, requests, timeout_s):
            yield item

    async def _over_http(self) -> HttpCaller:
        """Most nodes have nobody to call over HTTP: only for the others it is loaded, past the loop."""
        async with self._loading:
            if self._http is None:
                found = await asyncio.to_thread(importlib.import_module, f"{__package__}.http_")
                self._http = found.HttpCaller(
                    node=self._node,
                    credentials=self._credentials,
                    dialling=self._dialling,
                    webhooks=self._webhooks,
                    dialling_hooks=self._dialling_hooks,
                )
                self._http.log_id = self.grpc.log_id
            return self._http

    async def _by_name(
        self, addresses: Sequence[Target], requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        until = time.monotonic() + timeout_s
        left = list(requests)
        for number, address in enumerate(self._in_order(addresses), 1):
            failed: list[CallRequest] = []
            answers: Any = self._by_address(str(address), left, max(until - time.monotonic(), 0.01))
            well = False
            try:
                async with aclosing(answers) as found:
                    well = True
                    async for request, answer in found:
                        away = answer.kind is AnswerKind.FAILED and answer.reason.startswith(_AWAY)
                        well = well and not away and not answer.reason.startswith(_LATE)
                        # A first call may have come through after all: another attempt is made of it, which says so.
                        if away and number < len(addresses) and request.op not in (Op.TRY, Op.ACTION):
                            failed.append(request)
                        else:
                            yield request, answer
            except asyncio.CancelledError:
                well = False  # It was waited for too long.
                raise
            finally:
                if well:
                    self._resting.pop(address, None)
                else:
                    self._resting[address] = time.monotonic() + _REST_S
            left = failed
            if not left:
                return

    def _in_order(self, addresses: Sequence[Target]) -> list[Target]:
        """As they were written, but those that rest come last."""
        now = time.monotonic()
        return sorted(addresses, key=lambda target: max(self._resting.get(target, 0.0) - now, 0.0))

    # ---- asking back ----

    async def query_back(
        self, target: str, participant: str, tx: Tx, timeout_s: float, identity: str = ""
    ) -> Probed:
        """``ports.Answerer``: a name is asked at the first of its addresses that answers."""
        found = Target.parse(target)
        places: Sequence[Target] = [found] if found is not None else self._targets.named.get(target, ())
        if not places and self.registry is not None:
            places = self.registry.places(tx.namespace, target)
        silent = NotAnswered(target, "UNAVAILABLE: no address is known")
        request = query_back.request_of(
            tx,
            participant,
            identity,
            node=self._node,
            log_id=self.grpc.log_id,
            now_us=time.time_ns() // 1000,
        )
        for place in self._in_order(places):
            try:
                async with asyncio.timeout(timeout_s + 1.0):  # Its host is looked up, too.
                    caller = await self._over_http() if place.is_http else self.grpc
                    response = await caller.query_back(place, request, timeout_s)
                return query_back.answer_of(response, tx, str(place))
            except TimeoutError:
                silent = NotAnswered(str(place), f"TIMED_OUT: no answer within {timeout_s:g} s")
            except NotAnswered as error:
                self._resting[place] = time.monotonic() + _REST_S
                silent = error
        raise silent

    async def close(self) -> None:
        """Disconnect."""
        await self.grpc.close()
        if self._http is not None:
            await self._http.close()
        self._dialling.close()
        self._dialling_hooks.close()
        if self._sql is not None:
            await self._sql.close()
        if self._topics is not None:
            await self._topics.close()


async def _nobody(reason: str, requests: Sequence[CallRequest]) -> AsyncIterator[tuple[CallRequest, Answer]]:
    for request in requests:
        yield request, Answer(AnswerKind.FAILED, reason=reason)
