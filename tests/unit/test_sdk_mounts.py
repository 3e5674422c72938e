"""Where a participant behind HTTP is, and where it is not."""

from __future__ import annotations

from typing import Any

import pytest

from txcoord_client import Participant
from txcoord_client import sync as sync_sdk
from txcoord_client.protocol import over_http

ELSEWHERE = 204
HERE = 415
"""There is no content type of a participant's request."""


async def asked(app: Any, path: str, root: str) -> int:
    """The status of a POST to an ASGI application."""
    said: list[Any] = []
    scope = {"type": "http", "method": "POST", "path": path, "root_path": root, "headers": []}

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        said.append(message)

    await app(scope, receive, send)
    return int(said[0]["status"])


async def inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": ELSEWHERE, "headers": []})


@pytest.mark.parametrize(
    ("path", "root", "wanted"),
    [
        (over_http.PATH, "", HERE),
        (f"/api{over_http.PATH}", "/api", HERE),
        (over_http.PATH, "/api", HERE),
        # Else whoever lets strangers in below /public lets them in here.
        (f"/public{over_http.PATH}", "", ELSEWHERE),
        (f"/api/public{over_http.PATH}", "/api", ELSEWHERE),
    ],
)
async def test_before_another_application_it_is_at_one_path(path: str, root: str, wanted: int) -> None:
    assert await asked(Participant("stock").asgi(inner), path, root) == wanted
    # Alone it is below whatever it is mounted at.
    assert await asked(Participant("stock").asgi(), path, root) == HERE


@pytest.mark.parametrize(
    ("path", "wanted"), [(over_http.PATH, HERE), (f"/public{over_http.PATH}", ELSEWHERE)]
)
def test_behind_wsgi_too(path: str, wanted: int) -> None:
    said: list[str] = []

    def other(environ: Any, start_response: Any) -> list[bytes]:
        start_response(f"{ELSEWHERE} No Content", [])
        return []

    app = sync_sdk.Participant("stock").wsgi(other)
    environ: Any = {"REQUEST_METHOD": "POST", "PATH_INFO": path}
    list(app(environ, lambda status, _headers, *_: said.append(status)))
    assert said[0].startswith(str(wanted))
