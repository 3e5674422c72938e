"""WSGI middleware: a request that carries a transaction is served inside it.

It must be the outermost one. The reply is held back until the application has returned, and its iterable is drained
and closed; then the work is prepared, and the reply leaves with the vote. Work that cannot be prepared, or is not to
be, is undone, and the caller is told so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from . import _carrying
from ._carrying import Problem
from ._pb import common_pb2 as c
from ._xa.branch import reason_of
from .errors import Rejected, TxcoordError

log = logging.getLogger("txcoord.client")
_CONTEXT = "HTTP_TXCOORD_CONTEXT"
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class Door(Protocol):
    """How a transaction comes in and leaves."""

    namespace: str

    @property
    def current(self) -> ContextVar[Any]: ...

    def join(self, context: c.CallContext) -> Any: ...

    def leave(self, tx: Any) -> None: ...


class Middleware:
    """``app = coord.wsgi(app)``. Requests without a transaction pass through it."""

    def __init__(self, app: WSGIApplication, door: Door) -> None:
        self._app = app
        self._door = door

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        sent = environ.get(_CONTEXT)
        if sent is None:
            return self._app(environ, start_response)
        try:
            context = _carrying.context_in([sent], self._door.namespace)
        except Rejected as error:
            return _answer(start_response, _carrying.no_entry(error), "")
        try:
            tx = self._door.join(context)
        except TxcoordError as error:
            no = _carrying.no_vote(context, error)
            return _answer(start_response, _carrying.no_entry(error), _carrying.vote_header(no))
        return self._serve(tx, _hidden(environ), start_response)

    def _serve(self, tx: Any, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        reply = _Reply(tx)
        failed = False
        token = self._door.current.set(tx)
        try:
            reply.run(self._app, environ)
        except Exception as error:
            # No server can both answer and be told: what it would have logged is logged here.
            log.exception("an exception left the application inside the transaction %s", tx.tx_id)
            failed = True
            tx.set_rollback_only(reason_of(error), f"{type(error).__name__}: {error}")
        except BaseException as error:
            tx.set_rollback_only(reason_of(error), f"{type(error).__name__}: {error}")
            self._door.leave(tx)
            raise
        finally:
            self._door.current.reset(token)
        _carrying.doom_by_reply(tx, reply.code, whole=not failed)
        doomed = tx.rollback_only
        self._door.leave(tx)
        vote = _carrying.vote_header(_carrying.vote_of(tx))
        problem = _carrying.problem_instead(tx, reply.code, True, doomed=doomed, failed=failed)
        if problem is not None:
            return _answer(start_response, problem, vote)
        start_response(reply.status, [*reply.headers, (_carrying.VOTE_HEADER, vote)])
        return reply.held


class _Reply:
    """What the application answers, held back."""

    def __init__(self, tx: Any) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.held: list[bytes] = []
        self._tx = tx
        self._size = 0

    @property
    def code(self) -> int | None:
        """The status as a number; None before it is known."""
        return int(self.status[:3]) if self.status else None

    def run(self, app: WSGIApplication, environ: WSGIEnvironment) -> None:
        """Run the application to its very end. Raises what it raises, and Rejected for what cannot be held back."""
        parts = app(environ, self._start)
        try:
            for part in parts:
                self._write(part)
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: _ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if self.status and not exc_info:
            raise AssertionError("start_response was called twice, and without exc_info")
        self.held.clear()  # Nothing has left: an error's reply takes the place of what was begun.
        self._size = 0
        for key, value in headers:
            if key.lower() == "content-type":
                self._check(_carrying.refuse_stream, value)
        self.status = status
        self.headers = [(k, v) for k, v in headers if k.lower() != _carrying.VOTE_HEADER.lower()]
        return self._write

    def _write(self, part: bytes) -> None:
        if not self.status:
            if part:
                raise AssertionError("a body before start_response")
            return
        self._size += len(part)
        self._check(_carrying.refuse_size, self._size)
        self.held.append(part)

    def _check(self, refuse: Callable[[Any], None], value: Any) -> None:
        try:
            refuse(value)
        except Rejected as error:
            self._tx.set_rollback_only(error.reason, error.message)
            self.held.clear()
            raise


def _hidden(environ: WSGIEnvironment) -> WSGIEnvironment:
    """The request as the application sees it. The context is not for it: it would pass it on by mistake. A file
    wrapper would send what was never held back."""
    return {k: v for k, v in environ.items() if k not in (_CONTEXT, "wsgi.file_wrapper")}


def _answer(start_response: StartResponse, problem: Problem, vote: str) -> list[bytes]:
    headers = problem.headers()
    if vote:
        headers.append((_carrying.VOTE_HEADER, vote))
    start_response(problem.line, headers)
    return [problem.body]
