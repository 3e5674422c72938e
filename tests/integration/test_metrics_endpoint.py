"""`/metrics` of a node that runs."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.http_api import http_node
from tests.support.node import new_tx, xa
from txcoord.core.events import Commit
from txcoord.observe import metrics


async def test_prometheus_can_read_it(tmp_path: Path) -> None:
    known = {named.name.removesuffix("_total") for named in metrics.ALL}
    async with (
        http_node(tmp_path, metrics_address="127.0.0.1:0") as node,
        httpx.AsyncClient(base_url=f"http://{node.metrics_address}") as http,
        httpx.AsyncClient(base_url=node.http_url) as api,
    ):
        begun = await api.post("/v1/transactions", json={"gid": "metrics-1"})
        assert begun.status_code in (200, 201), begun.text
        done = await api.post("/v1/transactions/metrics-1/rollback", json={})
        assert done.status_code == 200, done.text
        while True:
            answer = await http.get("/metrics")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/plain")
            families = list(text_string_to_metric_families(answer.text))
            found = {s.name: s for family in families for s in family.samples}
            if found["txcoord_log_up"].value == 1:
                break
            await asyncio.sleep(0.05)
        assert {family.name for family in families} <= known
        assert found["txcoord_transactions_total"].labels == {"kinds": "none", "outcome": "aborted"}
        assert found["txcoord_transactions_total"].value == 1
        assert found["txcoord_log_flush_seconds_count"].value >= 1
        info = found["txcoord_node_info"].labels
        assert (info["node"], info["role"]) == (node.settings.node_name, "coordinator")
        gone = new_tx(node.clock)
        await node.coordinator.commit(Commit(replace(gone, branches=(xa(gone, "1", "gone"),)), begun=False))
        while 'txcoord_backlog{target="gone"} 1.0' not in (text := (await http.get("/metrics")).text):
            await node.log.settle()
            await node.observed.ask()
        assert "txcoord_phase_two 1.0" in text
        assert (await http.get("/")).status_code == 404
        assert (await http.post("/metrics")).status_code == 405
