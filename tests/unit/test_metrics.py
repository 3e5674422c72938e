"""Metrics: what is counted, how labels are kept few, and that alert rules name what is there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.logs import aborted, committing, xa
from txcoord.core.model import Branch, BranchState, Kind
from txcoord.observe import metrics
from txcoord.observe.lately import Rates
from txcoord.observe.metrics import MOST, OTHERS, Metrics
from txcoord.ports import Figures
from txcoord.wiring.metrics import Observed

ROOT = Path(__file__).resolve().parents[2]
_SUFFIXES = ("", "_bucket", "_count", "_sum")


def samples(metrics_: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scrape says."""
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(metrics_.render().decode())
        for s in family.samples
    }


def test_transactions_are_counted_by_kinds_and_outcome() -> None:
    m = Metrics()
    tcc = Branch("2", Kind.TCC, BranchState.DONE)
    told = Branch("3", Kind.CALLBACK, BranchState.READY)
    m.ended(committing(1, xa("1"), tcc, told))
    m.ended(committing(1, tcc, xa("1")))
    m.ended(aborted(1))
    found = samples(m)
    assert found["txcoord_transactions_total", (("kinds", "tcc+xa"), ("outcome", "committed"))] == 2
    assert found["txcoord_transactions_total", (("kinds", "none"), ("outcome", "aborted"))] == 1


def test_a_histogram_is_as_prometheus_has_it() -> None:
    m = Metrics()
    for seconds in (0.0005, 0.001, 0.02, 100.0):
        m.called("stock", "done", seconds)
    found = samples(m)

    def bucket(le: str) -> float:
        return found["txcoord_call_seconds_bucket", (("le", le), ("outcome", "done"), ("target", "stock"))]

    assert (bucket("0.001"), bucket("0.025"), bucket("30.0"), bucket("+Inf")) == (2, 3, 3, 4)
    labels = (("outcome", "done"), ("target", "stock"))
    assert found["txcoord_call_seconds_count", labels] == 4
    assert abs(found["txcoord_call_seconds_sum", labels] - 100.0215) < 1e-9


def test_targets_are_limited() -> None:
    m = Metrics()
    for n in range(MOST + 50):
        m.called(f"10.0.0.1:{n}", "failed", 0.1)
        m.called(f"10.0.0.1:{n}", "done", 0.1)
    targets = [dict(labels)["target"] for name, labels in samples(m) if name == "txcoord_call_seconds_count"]
    assert len(set(targets)) == MOST + 1
    assert samples(m)["txcoord_call_seconds_count", (("outcome", "done"), ("target", OTHERS))] == 50
    m.figures, m.backlog = Figures(), {f"t{n}": (n, 7) for n in range(MOST + 3)}
    found = samples(m)
    assert found["txcoord_backlog", (("target", OTHERS),)] == 0 + 1 + 2
    assert found["txcoord_backlog", (("target", f"t{MOST + 2}"),)] == MOST + 2


def test_while_the_log_is_away_its_figures_are_not_made_up() -> None:
    m = Metrics()
    m.now_us = lambda: 10_000_000
    assert samples(m)["txcoord_log_up", ()] == 0
    assert ("txcoord_parked", ()) not in samples(m)
    m.figures = replace(Figures(), parked=3, phase_two=4, oldest_decided_us=4_000_000)
    found = samples(m)
    assert (found["txcoord_log_up", ()], found["txcoord_parked", ()]) == (1, 3)
    assert found["txcoord_oldest_in_doubt_seconds", ()] == 6
    assert found["txcoord_outbox_oldest_seconds", ()] == 0


def test_the_alert_rules_name_metrics_and_labels_that_exist() -> None:
    known: dict[str, metrics.Named] = {
        named.name + suffix: named for named in metrics.ALL for suffix in _SUFFIXES
    }
    rules: list[Any] = [
        rule
        for group in yaml.safe_load((ROOT / "docs/operations/alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    assert rules
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule
        names = re.findall(r"\btxcoord_\w+", rule["expr"])
        assert names, rule
        for name in names:
            assert name in known, name
            if known[name].kind != "histogram":
                assert name == known[name].name
        labels = {label for name in names for label in known[name].labels} | {"le", "instance"}
        named = re.findall(r"(?:by|without) \(([^)]*)\)", rule["expr"])
        used = {label.strip() for part in named for label in part.split(",")}
        used |= set(re.findall(r"(\w+)=~?\"", rule["expr"]))
        used |= set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert used <= labels, rule


def test_every_metric_has_a_name_of_its_own_and_a_text() -> None:
    assert len({named.name for named in metrics.ALL}) == len(metrics.ALL)
    assert all(named.text and named.name.startswith("txcoord_") for named in metrics.ALL)


def test_lately_is_what_was_counted_within_the_window() -> None:
    m = Metrics()
    assert m.lately.of(0.0) == {}
    m.called("stock", "done", 9.0)
    for second in range(0, 75, 15):
        m.lately.move(float(second))
    for _ in range(98):
        m.called("stock", "done", 0.004)
    m.called("stock", "failed", 0.2)
    m.called("stock", "failed", 40.0)
    # The window begins at 15: what came before is not in it.
    assert m.lately.of(65.0) == {"stock": Rates(2.0, 0.04, 250_000)}
    m.called("ship", "done", 99.0)
    assert m.lately.of(65.0)["ship"].p99_us == 30_000_000


def test_whether_kafka_and_redis_are_there() -> None:
    log: Any = SimpleNamespace(on_flush=None)
    clock: Any = SimpleNamespace(now_us=int)
    observed = Observed(log, clock, node="n1", role="coordinator")
    redis: dict[tuple[str, ...], float] = {}
    observed.watch_services(lambda: redis, lambda: {"send": True, "topics": False}, dict)
    found = samples(observed.metrics)
    assert found["txcoord_kafka_up", (("part", "send"),)] == 1
    assert found["txcoord_kafka_up", (("part", "topics"),)] == 0
    assert ("txcoord_redis_up", ()) not in found
    redis[()] = 0
    assert samples(observed.metrics)["txcoord_redis_up", ()] == 0
