"""The commands of the page on curl, run as they are written, one after the other. Only the addresses differ."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from tests.support.http_api import ROOT, http_node, plain_service

PAGE = ROOT / "docs" / "how-to" / "curl.md"
_FENCE = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


async def test_the_commands_of_the_page(tmp_path: Path) -> None:
    first, *blocks = _FENCE.findall(PAGE.read_text(encoding="utf-8"))
    assert first == "txcoord dev\n"
    async with http_node(tmp_path) as node, plain_service() as shop:
        said: list[Any] = []
        for block in blocks:
            command = block.replace("http://127.0.0.1:7071", node.http_url)
            command = command.replace("http://127.0.0.1:8000", shop.target)
            shell = await asyncio.create_subprocess_exec(
                "bash", "-euc", command, stdout=asyncio.subprocess.PIPE, env={"PATH": "/usr/bin:/bin"}
            )
            out, _ = await shell.communicate()
            assert shell.returncode == 0, command
            said += [json.loads(line) for line in out.splitlines()]
    submitted, waited, begun, enlisted, tried, voted, committed, shown, listed, won, late = said
    assert tried == {"did": "/reserve"}
    assert submitted["outcome"]["gid"] == "order-7"
    assert waited["outcome"]["state"] == "STATE_COMMITTED"
    assert [b["resultJson"] for b in waited["outcome"]["branches"]] == [{"did": "/pack"}, {"did": "/send"}]
    assert {outcome["outcome"]["state"] for outcome in (begun, enlisted, voted)} == {"STATE_ACTIVE"}
    assert committed["outcome"]["state"] == "STATE_COMMITTED"
    assert shown["transaction"]["gid"] == "order-8"
    assert [tx["gid"] for tx in listed["transactions"]] == ["order-8", "order-7"]
    assert won["outcome"]["decision"] == "DECISION_COMMIT"
    assert late["reason"] == "ALREADY_COMMITTED"
    assert shop.paths() == ["/pack", "/send", "/reserve", "/confirm"]
    reserved, confirmed = [headers for path, _, headers in shop.calls if path in ("/reserve", "/confirm")]
    assert reserved["txcoord-tx-id"] == confirmed["txcoord-tx-id"] == shown["transaction"]["txId"]
    assert begun["outcome"]["txId"] == reserved["txcoord-tx-id"]
    assert reserved["txcoord-branch"] == confirmed["txcoord-branch"]
    assert (reserved["txcoord-op"], confirmed["txcoord-op"]) == ("try", "confirm")
