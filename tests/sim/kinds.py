"""Worlds in which some transactions are of TCC and saga, or mix them with XA: made out of a plan of XA alone."""

from __future__ import annotations

import random
from dataclasses import replace

from .messages import sending
from .plan import Fault, Op, Plan, of_xa

SHARE = 0.5
"""Of the worlds."""
STAGED = 0.4
"""Of those."""
POINTS: dict[str, int] = {
    # As in ``plan``: how often it happens, about, for each operation.
    "execute": 5,
    "barrier": 5,
    "commit_work": 5,
    "keep": 3,
    "wire": 4,
    "log_write": 3,
    "log_lazy": 4,
}
FAILPOINTS: dict[str, int] = {
    "call.before": 4,
    "call.after": 4,
    "submit.before_write": 1,
    "submit.after_write": 1,
    "enlist.before_write": 2,
    "enlist.after_write": 2,
    "decide.before_write": 1,
    "decide.after_write": 1,
}


def plan(seed: int) -> Plan:
    """The plan of a seed."""
    return sending(mixed(of_xa(seed)))


def mixed(plan: Plan) -> Plan:
    """The same world, perhaps with participants."""
    rng = random.Random(f"txcoord kinds {plan.seed}")
    if rng.random() >= SHARE:
        return plan
    made: dict[str, Op] = {}
    ops = []
    for op in plan.ops:
        # The same work asked for again is the same work.
        first = made.get(op.name.rstrip("b"))
        own = _as(op, first) if first is not None else _mixed(rng, op)
        made.setdefault(op.name, own)
        ops.append(own)
    staged: tuple[Fault, ...] = ()
    if rng.random() < STAGED:
        n = rng.randrange(len(ops))
        if ops[n].name == plan.ops[n].name.rstrip("b"):
            ops[n], staged = _staged(rng, plan.nodes, ops[n])
    if not any(op.tries or op.steps for op in ops):
        return plan
    places = sorted({p for op in ops for p in (*op.tries, *op.steps)})
    count = rng.choice((0, 1, 1, 2, 2, 3))
    faults = tuple(_fault(rng, plan.nodes, places, len(ops)) for _ in range(count))
    if any(op.fickle for op in ops):
        # gRPC delivers a call once. Who says no to it, and yes when a network repeats it, is not what is promised for.
        faults = tuple(f for f in faults if (f.what, f.target) != ("twice", "execute"))
    return replace(plan, ops=tuple(ops), faults=(*plan.faults, *staged, *faults))


def _as(op: Op, first: Op) -> Op:
    return replace(first, name=op.name, client=op.client, at_s=op.at_s)


def _mixed(rng: random.Random, op: Op) -> Op:
    kind = rng.choices(("xa", "tcc", "tcc+xa", "saga", "saga+xa", "all", "submit"), (2, 3, 2, 1, 2, 2, 4))[0]
    if kind == "xa" or op.how in ("read", "swallow") or len(op.databases) + len(op.remote) < 2:
        # A single one is committed in one phase: that is a story of its own.
        return op
    keeps = "xa" in kind or kind == "all"
    own = replace(
        op,
        databases=op.databases[:1] if keeps else (),
        remote=op.remote[:1] if keeps and rng.random() < 0.5 else (),
        no=rng.choice(("try", "s1", "s2", "s3")) if rng.random() < 0.2 else "",
        later=1 if rng.random() < 0.1 else 0,
        fails=1 if rng.random() < 0.15 else 0,
        hard=rng.choice((1, 1, 2)) if rng.random() < 0.15 else 0,
        early=rng.random() < 0.5,
        together=rng.random() < 0.5,
    )
    if "tcc" in kind or kind == "all":
        own = replace(own, tries=tuple(rng.choices(("p1", "p2"), k=rng.choice((1, 2, 2)))))
    if "saga" in kind or kind in ("submit", "all"):
        own = replace(
            own,
            steps=tuple(rng.choices(("p1", "p2"), k=rng.choice((1, 2, 3, 3)))),
            shape=rng.choice(("sequence", "sequence", "parallel", "graph")),
            retries=rng.choice((1, 2)) if rng.random() < 0.15 else 0,
        )
    if kind == "submit":
        own = replace(
            own,
            submit=True,
            how="raise" if rng.random() < 0.15 else "commit",
            pause_s=round(rng.uniform(0.0, 0.4), 2),
            forward=rng.random() < 0.25,
            timeout_s=0.0 if rng.random() < 0.3 else own.timeout_s,
        )
    return own


def _staged(rng: random.Random, nodes: int, op: Op) -> tuple[Op, tuple[Fault, ...]]:
    """What needs several things to come together: a saga, and what goes wrong just then."""
    own = replace(
        op,
        databases=(),
        remote=(),
        tries=(),
        steps=tuple(rng.choices(("p1", "p2"), k=rng.choice((2, 3)))),
        submit=True,
        how="commit",
        gid="",
        cancel_s=0.0,
        no="",
        fails=0,
        hard=0,
    )
    match rng.choice(
        ("usurped", "usurped", "slow log", "late yes") if nodes > 1 else ("slow log", "late yes")
    ):
        case "usurped":
            # Its node stands still until another one has gone further with it, and then hears that it is to end.
            own = replace(
                own,
                shape="sequence",
                later=rng.choice((1, 2, 3)),
                rest_s=round(rng.uniform(0.4, 1.2), 2),
                timeout_s=rng.choice((0.0, 6.0, 7.0, 8.0)),
                how=rng.choice(("raise", "raise", "commit")),
                pause_s=round(rng.uniform(4.0, 8.0), 2),
            )
            at, seconds = round(op.at_s + rng.uniform(0.05, 1.5), 2), round(rng.uniform(3.5, 6.5), 2)
            return own, (Fault("stop", f"n{rng.randint(1, nodes)}", at, seconds=seconds),)
        case "slow log":
            # It is told to end while its log is slow, and its steps are not.
            own = replace(
                own,
                shape="sequence",
                later=1,
                rest_s=0.3,
                how="raise",
                pause_s=round(rng.uniform(0.0, 0.6), 2),
            )
            return own, (Fault("slow_disk", "log", round(op.at_s + own.pause_s, 2), seconds=2.0),)
        case _:
            # It says no, and a call of before says yes.
            own = replace(own, no=rng.choice(("s1", "s1", "s2")), fickle=True, timeout_s=6.0, retries=0)
            late = round(rng.uniform(0.5, 3.0), 2)
            return own, (Fault("late", "execute", nth=rng.randint(1, 5), seconds=late),)


def _fault(rng: random.Random, nodes: int, places: list[str], ops: int) -> Fault:
    place = rng.choice(places)
    seconds = round(rng.choice((0.2, 1.0, 2.5, 5.0)) * rng.uniform(0.5, 1.5), 2)
    if rng.random() < 0.35:
        at = round(rng.uniform(0.0, 5.0), 2)
        what = rng.choice(("crash", "crash", "stop", "hang", "hang", "cut"))
        if what != "cut":
            return Fault(what, place, at, seconds=seconds)
        node = f"n{rng.randint(1, nodes)}"
        ends = rng.choice(((node, place), (place, node), ("c1", place), (place, "c1")))
        return Fault(what, ends[0], at, seconds=seconds, other=ends[1])
    if rng.random() < 0.3:
        target = rng.choice(sorted(FAILPOINTS))
        nth = rng.randint(1, FAILPOINTS[target] * ops)
        if rng.random() < 0.6:
            return Fault("crash_client", target, nth=nth)
        return Fault("stop_client", target, nth=nth, seconds=round(rng.uniform(0.2, 6.0), 2))
    target = rng.choice(("execute", "execute", "commit_work", *sorted(POINTS)))
    kinds = ["lose_request", "lose_reply", "lose_reply", "late", "crash_client", "stop_client"]
    if target == "execute":
        kinds += ["late", "twice", "twice", "crash_server"]
    elif target == "wire":
        kinds += ["twice"]
    else:
        kinds += ["crash_client_after", "crash_server", "crash_server_before"]
    return Fault(rng.choice(kinds), target, nth=rng.randint(1, POINTS[target] * ops), seconds=seconds)
