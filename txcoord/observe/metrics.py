"""Metrics: every name in one place, and the figures behind them.

What happens often is counted in plain numbers, by the one thread of the event loop; they take Prometheus' form only
when they are asked for. So a count costs a fraction of a microsecond, and nothing is shared with other nodes of a
process, as in tests.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..core.model import Decision, Kind, Tx
from ..ports import Figures
from .lately import Lately

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
MOST: Final = 200
"""Different values of a label that comes from outside; whatever comes after them is counted as :data:`OTHERS`."""
OTHERS: Final = "(others)"


@dataclass(frozen=True, slots=True)
class Named:
    """A metric: its kind, its labels, and what it means."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


INFO = Named(
    "txcoord_node_info", "gauge", ("node", "version", "log_id", "role"), "1, with what this node is."
)
UP = Named("txcoord_log_up", "gauge", (), "1 while this node's last question to the log was answered.")
REDIS_UP = Named("txcoord_redis_up", "gauge", (), "1 while Redis answers this node; none without Redis.")
KAFKA_UP = Named(
    "txcoord_kafka_up",
    "gauge",
    ("part",),
    "1 while Kafka does what this node asks of it: send, consume, topics, events; none without Kafka.",
)
TRANSACTIONS = Named(
    "txcoord_transactions_total",
    "counter",
    ("kinds", "outcome"),
    "Transactions that have ended on this node, by the kinds of their branches (tcc+xa) and committed or aborted.",
)
DRAINED = Named(
    "txcoord_drained", "gauge", (), "1 while this node is drained; where all are, what was handed off waits."
)
LIVE = Named("txcoord_in_flight", "gauge", (), "Transactions that this node is carrying out.")
WAITING = Named(
    "txcoord_waiting",
    "gauge",
    ("what",),
    "Branches of those that wait in this node: due, later, finish, finish_later.",
)
ASKED = Named(
    "txcoord_unanswered",
    "gauge",
    ("target",),
    "Transactions past their deadline of which this node asks a database or participant whether it has committed.",
)
ALARMS = Named(
    "txcoord_alarms_total", "counter", ("kind",), "What a person must see, as in the log lines alarm.KIND."
)
CALLS = Named(
    "txcoord_call_seconds",
    "histogram",
    ("target", "outcome"),
    "From a call of a participant to its answer, by branch: done, refused, pending, failed.",
)
FINISHES = Named(
    "txcoord_finish_seconds",
    "histogram",
    ("resource", "outcome"),
    "To finish an XA branch in its database: done, retry, heuristic.",
)
FLUSHES = Named(
    "txcoord_log_flush_seconds", "histogram", ("kind",), "Flushes of the log: forced, or lazy only."
)
PHASE_TWO = Named(
    "txcoord_phase_two",
    "gauge",
    (),
    "Transactions in the log that are committing or aborting, parked ones too.",
)
IN_DOUBT = Named(
    "txcoord_oldest_in_doubt_seconds",
    "gauge",
    (),
    "How long ago the oldest of those was decided; 0: there is none.",
)
DELIVERING = Named(
    "txcoord_delivering",
    "gauge",
    (),
    "Transactions in the log that are at their end, and of which something is still to be delivered.",
)
PARKED = Named("txcoord_parked", "gauge", (), "Transactions in the log with a parked branch.")
PARKED_DELIVERIES = Named(
    "txcoord_parked_deliveries",
    "gauge",
    (),
    "Those of them that are at their end: what is parked there is a delivery.",
)
HEURISTICS = Named("txcoord_heuristics", "gauge", (), "Transactions in the log with a heuristic branch.")
BACKLOG = Named(
    "txcoord_backlog", "gauge", ("target",), "Branches in the log that wait for their next attempt."
)
BACKLOG_AGE = Named(
    "txcoord_backlog_overdue_seconds",
    "gauge",
    ("target",),
    "How long the oldest of those has been due; 0: it is not.",
)
DISABLED = Named(
    "txcoord_target_disabled",
    "gauge",
    ("target",),
    "1 for each target to which no notification is sent, as nothing had arrived there for long.",
)
QUEUE = Named(
    "txcoord_queue_depth", "gauge", ("tier",), "Transactions that wait in the retry queue, as this node sees."
)
OUTBOX = Named(
    "txcoord_outbox", "gauge", (), "Events in the log that are not on their topic yet (100000 at most)."
)
OUTBOX_AGE = Named(
    "txcoord_outbox_oldest_seconds", "gauge", (), "How old the oldest of those is; 0: there is none."
)
OUTBOX_HELD = Named("txcoord_outbox_held", "gauge", (), "Those that were refused, and are tried again later.")
EVENTS = Named(
    "txcoord_events_total", "counter", ("topic", "outcome"), "Events published by this node: sent, failed."
)
ALL: Final = tuple(value for value in list(globals().values()) if isinstance(value, Named))

_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
Gauge = Callable[[], Mapping[tuple[str, ...], float]]
Timed = Callable[[str, str, float], None]
"""Hears whom something was asked of, what was answered, and after how many seconds."""


def untimed(_whom: str, _what: str, _seconds: float) -> None:
    """Nobody hears it."""


class Histogram:
    """How long something took, by labels; the first label is limited."""

    bounds: tuple[float, ...] = _BOUNDS

    def __init__(self) -> None:
        self._children: dict[tuple[str, str], list[float]] = {}
        self._firsts: set[str] = set()

    def observe(self, first: str, second: str, seconds: float) -> None:
        """One more."""
        child = self._children.get((first, second))
        if child is None:
            child = self._child(first, second)
        child[bisect_left(_BOUNDS, seconds)] += 1
        child[-1] += seconds

    def _child(self, first: str, second: str) -> list[float]:
        if first not in self._firsts:
            if len(self._firsts) >= MOST:
                first = OTHERS
            self._firsts.add(first)
        return self._children.setdefault((first, second), [0] * (len(_BOUNDS) + 2))

    def counts(self) -> dict[tuple[str, str], tuple[float, ...]]:
        """By labels: how many in each bucket, and beyond the last; then the sum."""
        return {labels: tuple(child) for labels, child in self._children.items()}

    def rows(self) -> Iterator[tuple[tuple[str, str], list[tuple[str, float]], float]]:
        """Labels, cumulated buckets, sum."""
        for labels, child in self._children.items():
            so_far, buckets = 0.0, []
            for bound, count in zip((*map(str, _BOUNDS), "+Inf"), child, strict=False):
                so_far += count
                buckets.append((bound, so_far))
            yield labels, buckets, child[-1]


class Metrics:
    """The figures of one node."""

    def __init__(self) -> None:
        self.transactions: dict[tuple[str, ...], int] = {}
        self.events: dict[tuple[str, ...], int] = {}
        self.calls = Histogram()
        self.lately = Lately(self.calls)
        self.finishes = Histogram()
        self.flushes = Histogram()
        self.figures: Figures | None = None
        """What the log said last; None: it is away."""
        self.backlog: Mapping[str, tuple[int, int]] = {}
        """Of each target, by the log: how many branches wait, and when the oldest is due."""
        self.gauges: dict[Named, Gauge] = {}
        """What is looked up when it is asked for. From memory only."""
        self.info: tuple[str, ...] = ()
        self.now_us: Callable[[], int] = int
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    # ---- what happens often ----

    def ended(self, tx: Tx) -> None:
        """A transaction has reached its end."""
        kinds = {b.kind for b in tx.branches}
        kinds.discard(Kind.CALLBACK)
        outcome = "committed" if tx.decision is Decision.COMMIT else "aborted"
        key = ("+".join(sorted(kinds)) or "none", outcome)
        self.transactions[key] = self.transactions.get(key, 0) + 1

    def called(self, target: str, outcome: str, seconds: float) -> None:
        """A participant has answered, or has not, for one branch."""
        self.calls.observe(target, outcome, seconds)

    def finished(self, resource: str, outcome: str, seconds: float) -> None:
        """A database was asked to finish one branch."""
        self.finishes.observe(resource, outcome, seconds)

    def flushed(self, forced: bool, seconds: float) -> None:
        """The log has written a flush."""
        self.flushes.observe("forced" if forced else "lazy", "", seconds)

    def published(self, topic: str, outcome: str, count: int = 1) -> None:
        """Events went to their topic, or could not."""
        self.events[topic, outcome] = self.events.get((topic, outcome), 0) + count

    # ---- the form of Prometheus ----

    def render(self) -> bytes:
        """As text. Waits for nothing."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        if self.info:
            yield _gauge(INFO, {self.info: 1})
        yield _counter(TRANSACTIONS, self.transactions)
        yield _counter(EVENTS, self.events)
        yield _histogram(CALLS, self.calls)
        yield _histogram(FINISHES, self.finishes)
        yield _histogram(FLUSHES, self.flushes)
        for named, look in self.gauges.items():
            yield (_counter if named.kind == "counter" else _gauge)(named, look())
        yield _gauge(UP, {(): self.figures is not None})
        if self.figures is not None:
            yield from self._of_the_log(self.figures)

    def _of_the_log(self, f: Figures) -> Iterator[Metric]:
        now_us = self.now_us()

        def age(since_us: int) -> float:
            return max(0, now_us - since_us) / 1_000_000 if since_us else 0.0

        yield _gauge(PHASE_TWO, {(): f.phase_two})
        yield _gauge(IN_DOUBT, {(): age(f.oldest_decided_us)})
        yield _gauge(DELIVERING, {(): f.delivering})
        yield _gauge(PARKED, {(): f.parked})
        yield _gauge(PARKED_DELIVERIES, {(): f.parked_deliveries})
        yield _gauge(HEURISTICS, {(): f.heuristics})
        yield _gauge(OUTBOX, {(): f.outbox})
        yield _gauge(OUTBOX_AGE, {(): age(f.oldest_event_us)})
        yield _gauge(OUTBOX_HELD, {(): f.held})
        shown = largest(self.backlog)
        yield _gauge(BACKLOG, {(target,): count for target, (count, _) in shown.items()})
        yield _gauge(BACKLOG_AGE, {(target,): age(due_us) for target, (_, due_us) in shown.items()})


def largest(backlog: Mapping[str, tuple[int, int]]) -> Mapping[str, tuple[int, int]]:
    """The targets with most; what the rest has, together."""
    if len(backlog) <= MOST:
        return backlog
    order = sorted(backlog, key=lambda target: -backlog[target][0])
    rest = [backlog[target] for target in order[MOST:]]
    others = (sum(count for count, _ in rest), min(due_us for _, due_us in rest))
    return {**{target: backlog[target] for target in order[:MOST]}, OTHERS: others}


def _gauge(named: Named, values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(named.name, named.text, labels=named.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _counter(named: Named, values: Mapping[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(named.name, named.text, labels=named.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _histogram(named: Named, values: Histogram) -> Metric:
    family = HistogramMetricFamily(named.name, named.text, labels=named.labels)
    for labels, buckets, total in values.rows():
        family.add_metric(labels[: len(named.labels)], buckets, total)
    return family
