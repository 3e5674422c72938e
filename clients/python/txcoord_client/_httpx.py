"""The transaction on its way over HTTP with httpx: wrapped at the transport, where every hop and failure is seen."""

from __future__ import annotations

import asyncio

import httpx

from . import _carrying
from ._calls import Call, Caller, begin_call
from ._carrying import CONTEXT_HEADER, VOTE_HEADER, Targets


class AsyncTransport(httpx.AsyncBaseTransport):
    """For ``httpx.AsyncClient(transport=…)``: requests to the named hosts carry the current transaction."""

    def __init__(self, caller: Caller, inner: httpx.AsyncBaseTransport | None, targets: Targets) -> None:
        self._caller = caller
        self._inner = httpx.AsyncHTTPTransport() if inner is None else inner
        self._targets = targets

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = _begin(self._caller, self._targets, request)
        if call is None:
            return await self._inner.handle_async_request(_copy(request))
        with call:
            try:
                async with asyncio.timeout(call.remaining):
                    response = await self._inner.handle_async_request(_copy(request, call))
            except TimeoutError as error:
                raise httpx.ReadTimeout(
                    "no reply before the transaction's deadline", request=request
                ) from error
            _end(call, response)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class Transport(httpx.BaseTransport):
    """For ``httpx.Client(transport=…)``: requests to the named hosts carry the current transaction."""

    def __init__(self, caller: Caller, inner: httpx.BaseTransport | None, targets: Targets) -> None:
        self._caller = caller
        self._inner = httpx.HTTPTransport() if inner is None else inner
        self._targets = targets

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        call = _begin(self._caller, self._targets, request)
        if call is None:
            return self._inner.handle_request(_copy(request))
        with call:
            response = self._inner.handle_request(_copy(request, call))
            _end(call, response)
        return response

    def close(self) -> None:
        self._inner.close()


def _begin(caller: Caller, targets: Targets, request: httpx.Request) -> Call | None:
    url = request.url
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    if not targets.host(url.raw_host.decode("ascii"), port):
        return None
    return begin_call(caller, f"{request.method} {url.host}{url.path}")


def _copy(request: httpx.Request, call: Call | None = None) -> httpx.Request:
    """The request with the call's context, and with no other: a client copies headers when it follows a redirect,
    and an application may pass on what came to it. The original stays as it is."""
    if call is None and CONTEXT_HEADER not in request.headers:
        return request
    headers = request.headers.copy()
    headers.pop(CONTEXT_HEADER, None)
    extensions = dict(request.extensions)
    if call is not None:
        headers[CONTEXT_HEADER] = call.header
        given = extensions.get("timeout") or {}
        extensions["timeout"] = {k: call.limited(given.get(k)) for k in ("connect", "read", "write", "pool")}
    return httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=extensions
    )


def _end(call: Call, response: httpx.Response) -> None:
    call.answered(response.status_code, _carrying.vote_in(response.headers.get_list(VOTE_HEADER)))
