"""Plain HTTP endpoints as participants, without the SDK on either side: bare handlers, and the wire."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.acceptance import ROOT, new_gid
from tests.support.acceptance_wire import RawTx, Wire, told
from tests.support.callers import Reply, Seen, over_the_web
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb

PAGE: Path = ROOT / "docs" / "reference" / "participants.md"


class Stock:
    """The participant of the docs."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.free: dict[str, int] = found["free"]
        self.done: dict[str, list[str]] = found["done"]
        self.server: ThreadingHTTPServer = found["server"](0)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def branch(self, number: str, payload: bytes, **more: Any) -> c.Branch:
        out = c.Branch(id=number, kind=c.KIND_TCC, **more)
        out.action.target = self.url
        out.action.payload = payload
        part = out.action
        part.operation = part.commit_operation = part.abort_operation = "/stock"
        return out

    async def attempt(self, tx: RawTx, branch: c.Branch) -> httpx.Response:
        """What a caller does in whatever language."""
        headers = {
            "content-type": "application/json",
            "txcoord-tx-id": tx.tx_id,
            "txcoord-branch": branch.id,
            "txcoord-op": "try",
        }
        async with httpx.AsyncClient() as http:
            return await http.post(f"{self.url}/stock", content=branch.action.payload, headers=headers)


@pytest.fixture
def stock() -> Iterator[Stock]:
    [code] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    found: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), found)
    found["Stock"].log_message = lambda *_: None
    stock = Stock(found)
    thread = threading.Thread(target=stock.server.serve_forever, daemon=True)
    thread.start()
    yield stock
    stock.server.shutdown()
    thread.join()
    stock.server.server_close()


async def test_the_participant_of_the_docs(wire: Wire, stock: Stock) -> None:
    # Tried and confirmed.
    tx = wire.tx(new_gid("plain"))
    branch = stock.branch("1", b'{"sku": "apple", "n": 2}')
    await tx.enlist(branch)
    for _ in range(2):
        assert (await stock.attempt(tx, branch)).status_code == 200
    out = await tx.commit(c.Branch(id="1", kind=c.KIND_TCC, vote=c.VOTE_PREPARED))
    assert told(out)[0] == "COMMITTED"
    assert stock.free == {"apple": 1}
    assert stock.done[tx.tx_id + "1"] == ["try", "confirm"]
    # Refused, and one that was never tried: what is left is cancelled, and a late try does nothing.
    tx = wire.tx()
    one, two, three = (stock.branch(n, b'{"sku": "apple", "n": 1}') for n in "123")
    await tx.enlist(one, two, three)
    assert (await stock.attempt(tx, one)).status_code == 200
    refused = await stock.attempt(tx, two)
    assert (refused.status_code, refused.json()) == (409, {"reason": "OUT_OF_STOCK"})
    out = await tx.rollback(c.Branch(id="2", kind=c.KIND_TCC, vote=c.VOTE_NO, reason="OUT_OF_STOCK"))
    assert told(out)[0] == "ABORTED"
    assert stock.free == {"apple": 1}
    assert stock.done[tx.tx_id + "1"] == ["try", "cancel"]
    assert stock.done[tx.tx_id + "3"] == ["cancel"]
    assert (await stock.attempt(tx, three)).status_code == 409
    assert stock.free == {"apple": 1}


def step(number: str, target: str, path: str, *after: str) -> c.Branch:
    out = c.Branch(id=number, kind=c.KIND_SAGA, name=path[1:], after=after)
    part = out.action
    part.target, part.operation, part.abort_operation = target, path, f"/undo{path}"
    part.payload, part.content_type = path.encode(), "text/plain"
    part.headers["x-tenant"] = "7"
    return out


async def test_a_saga_of_plain_endpoints(wire: Wire) -> None:
    seen: list[Seen] = []
    pack: list[Reply] = [
        (425, {"retry-after": "0.05"}, b""),
        (500, {}, b""),
        (201, {"content-type": "text/csv"}, b"1,2"),
    ]
    label: list[Reply] = [
        (200, {}, b"ok"),
        (409, {"content-type": "application/json"}, b'{"reason": "NO_LABEL"}'),
    ]

    async def packs(asked: Seen) -> Reply:
        seen.append(asked)
        return pack.pop(0) if len(pack) > 1 else pack[0]

    async def labels(asked: Seen) -> Reply:
        seen.append(asked)
        return label.pop(0)

    async def undoes(asked: Seen) -> Reply:
        seen.append(asked)
        return 204, {}, b""

    paths = {"/pack": packs, "/label": labels, "/undo/pack": undoes, "/undo/label": undoes}
    async with over_the_web(paths) as target:

        async def ended(*branches: c.Branch) -> Any:
            tx = wire.tx(new_gid("plain"))
            seen.clear()
            request = pb.SubmitRequest(tx_id=tx.tx_id, gid=tx.gid, branches=branches, spec=tx.spec)
            await wire.call("Submit", request)
            return await tx.reached(c.WAIT_LEVEL_COMMITTED)

        out = await ended(step("1", target, "/pack"), step("2", target, "/label", "1"))
        assert told(out)[0] == "COMMITTED"
        assert [(asked.path, asked.headers["txcoord-attempt"]) for asked in seen] == [
            ("/pack", "1"),
            ("/pack", "2"),
            ("/pack", "3"),
            ("/label", "1"),
        ]
        assert {asked.headers["x-tenant"] for asked in seen} == {"7"}
        assert {asked.headers["content-type"] for asked in seen} == {"text/plain"}
        assert "txcoord-deadline-us" not in seen[0].headers
        found = {
            b.branch: (b.result, b.content_type) for b in (await wire.get(tx_id=out.tx_id)).outcome.branches
        }
        assert found == {"1": (b"1,2", "text/csv"), "2": (b"ok", "")}
        out = await ended(step("1", target, "/pack"), step("2", target, "/label", "1"))
        assert told(out) == ("ABORTED", "branch", "NO_LABEL")
        assert [asked.path for asked in seen] == ["/pack", "/label", "/undo/pack"]
        assert (seen[2].headers["txcoord-op"], seen[2].headers["txcoord-result-bin"]) == (
            "compensate",
            "MSwy",
        )
