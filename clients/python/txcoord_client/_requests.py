"""The transaction on its way over HTTP with requests: an adapter, where every hop and failure is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from . import _carrying
from ._calls import Call, Caller, begin_call
from ._carrying import CONTEXT_HEADER, VOTE_HEADER, Targets


class Adapter(BaseAdapter):
    """For ``session.mount("https://", …)``: requests to the named hosts carry the current transaction."""

    def __init__(self, caller: Caller, inner: BaseAdapter | None, targets: Targets) -> None:
        super().__init__()
        self._caller = caller
        self._inner = HTTPAdapter() if inner is None else inner
        self._targets = targets

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        call = _begin(self._caller, self._targets, request)
        if call is None:
            response = self._inner.send(_copy(request), stream, timeout, verify, cert, proxies)
        else:
            with call:
                sent = _copy(request, call)
                response = self._inner.send(sent, stream, _limited(timeout, call), verify, cert, proxies)
                call.answered(response.status_code, _carrying.vote_in(_votes(response)))
        # Whoever sends it again, as digest authentication does, sends another call.
        response.request = request
        response.connection = self  # type: ignore[assignment]
        return response

    def close(self) -> None:
        self._inner.close()


def _begin(caller: Caller, targets: Targets, request: requests.PreparedRequest) -> Call | None:
    url = urlsplit(request.url or "")
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    if not targets.host(url.hostname or "", port):
        return None
    return begin_call(caller, f"{request.method} {url.hostname}{url.path}")


def _copy(request: requests.PreparedRequest, call: Call | None = None) -> requests.PreparedRequest:
    """The request with the call's context, and with no other. The original stays as it is: a session copies it when
    it follows a redirect."""
    if call is None and CONTEXT_HEADER not in request.headers:
        return request
    copy = request.copy()
    copy.headers.pop(CONTEXT_HEADER, None)
    if call is not None:
        copy.headers[CONTEXT_HEADER] = call.header
    return copy


def _limited(timeout: Any, call: Call) -> Any:
    """A time-out in requests' ways of writing it: seconds, a pair of them, or urllib3's Timeout."""
    if timeout is None or isinstance(timeout, int | float):
        return call.limited(timeout)
    if isinstance(timeout, tuple):
        return tuple(call.limited(part) for part in timeout)
    limited = timeout.clone()
    total = limited.total
    limited.total = call.limited(total if isinstance(total, int | float) else None)
    return limited


def _votes(response: requests.Response) -> list[str]:
    # More than one would be joined by commas, and then be none.
    value = response.headers.get(VOTE_HEADER)
    return [value] if value is not None else []
