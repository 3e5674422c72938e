"""From a seed: what the world is made of, what its clients do, and what goes wrong. In words, too.

A plan is a list of things that can be dropped one by one: that is how a failing seed is shrunk to its story.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .settings import FAULTS_S

POINTS: dict[str, int] = {
    # What faults are aimed at, and how often it happens in a world, about.
    "prepare": 8,
    "commit_branch": 10,
    "roll_back_branch": 6,
    "commit_one_phase": 3,
    "mark": 8,
    "read_marker": 3,
    "work": 8,
    "list_prepared": 12,
    "wire": 14,
    "call": 3,
    "log_write": 10,
    "log_lazy": 12,
    "log_read": 60,
    "log_change": 60,
}
FAILPOINTS: dict[str, int] = {
    "begin.before_write": 3,
    "begin.after_write": 3,
    "commit.before_write": 5,
    "commit.after_write": 5,
    "rollback.before_write": 3,
    "rollback.after_write": 3,
    "report.before_write": 2,
    "report.after_write": 2,
    "deadline.before_write": 2,
    "deadline.after_write": 2,
    "finish.before": 8,
    "finish.after": 8,
    "finish_late.before": 1,
    "finish_late.after": 1,
    "orphan.before_fence": 2,
    "orphan.after_fence": 2,
    "probe.before": 2,
    "probe.after": 2,
    "scan.before_judge": 3,
    "takeover.after_claim": 3,
}


@dataclass(frozen=True)
class Op:
    """What a client does: one global transaction."""

    name: str
    client: str
    at_s: float
    databases: tuple[str, ...]
    remote: tuple[str, ...] = ()
    """Databases in which a called service works."""
    how: str = "commit"
    """commit, raise (an error leaves the block), swallow (a statement fails, and nobody looks), read (writes nothing
    in the first database)."""
    gid: str = ""
    timeout_s: float = 5.0
    pause_s: float = 0.0
    """Between its statements."""
    cancel_s: float = 0.0
    """After that its caller goes away; 0: never."""
    tries: tuple[str, ...] = ()
    """Participants of which it calls a try."""
    steps: tuple[str, ...] = ()
    """Participants that do the steps of its saga."""
    submit: bool = False
    """Is it nothing but that saga, handed over to the coordinator? How \"raise\": it is asked to abort."""
    shape: str = "sequence"
    """Of the saga; or parallel, or graph."""
    forward: bool = False
    """Is its last step one that is never undone?"""
    retries: int = 0
    """How often a step that fails is tried again before the saga is given up; 0: to its deadline."""
    no: str = ""
    """Who says no: \"try\" is each try, \"s2\" the second step."""
    fickle: bool = False
    """Does that one say no the first time only?"""
    later: int = 0
    """So often each try and step says *not yet*."""
    rest_s: float = 0.3
    """So long each wants to be left alone then."""
    fails: int = 0
    """So often each fails then."""
    hard: int = 0
    """So often each confirm, cancel and compensation fails."""
    early: bool = False
    """Do they take part before its own databases?"""
    together: bool = False
    """Are its tries called side by side?"""
    messages: tuple[str, ...] = ()
    """Participants to which it sends one."""

    def __str__(self) -> str:
        where = " and ".join(self.databases) or "nothing"
        said = f"{self.at_s:5.2f} s  {self.client} begins {self.name}"
        said += f" (gid {self.gid})" if self.gid else ""
        said += f": works in {where}"
        if self.tries:
            said += f", reserves at {' and '.join(self.tries)}{' side by side' if self.together else ''}"
        if self.steps:
            said += f", {'submits' if self.submit else 'runs'} a saga of steps at {', '.join(self.steps)}"
            said += {"sequence": "", "parallel": " side by side", "graph": " as a graph"}[self.shape]
            said += ", the last of which is never undone" if self.forward else ""
            said += f", each tried again {self.retries} times" if self.retries else ""
        if self.messages:
            said += f", sends messages to {' and '.join(self.messages)}"
        if self.no:
            said += (
                f" ({'each try' if self.no == 'try' else self.no} says no{', once' if self.fickle else ''})"
            )
        for count, what in (
            (self.later, f"wants {self.rest_s:g} s more"),
            (self.fails, "fails"),
            (self.hard, "fails when it is to end"),
        ):
            said += f" (each {what} {count} times)" if count else ""
        if self.remote:
            said += f", calls a service that works in {' and '.join(self.remote)}"
        said += {
            "commit": "",
            "raise": ", then raises",
            "run": ", and tries again if that may help",
            "swallow": "; a statement fails, unseen",
            "read": "; only reads",
        }[self.how]
        said += f"; {self.timeout_s:g} s to its deadline" if self.timeout_s else "; no deadline"
        said += f"; waits {self.pause_s:g} s" if self.pause_s else ""
        return said + (f"; is cancelled after {self.cancel_s:g} s" if self.cancel_s else "")


@dataclass(frozen=True)
class Fault:
    """What goes wrong: at a time, or when something happens for the nth time."""

    what: str
    target: str = ""
    at_s: float = 0.0
    nth: int = 0
    """0: at a time. Else ``target`` is what happens, and this the how manieth."""
    seconds: float = 0.0
    other: str = ""

    def __str__(self) -> str:
        when = f"at {self.target} number {self.nth}" if self.nth else f"{self.at_s:5.2f} s "
        what, where, s = self.what, self.target, f"{self.seconds:g} s"
        said = {
            "crash": f"{where} is killed, and started again {s} later",
            "leave": f"{where} is told to end, ends in good order, and is started again",
            "stop": f"{where} stands still for {s}",
            "hang": f"{where} accepts calls, and does nothing for {s}",
            "cut": f"nothing gets from {where} to {self.other} for {s}",
            "slow": f"the network is slow for {s}",
            "slow_disk": f"the log's disk is slow for {s}",
            "full_disk": f"the log's disk is full for {s}",
            "hand_commit": "a person commits a branch a moment before",
            "hand_rollback": "a person rolls a branch back a moment before",
            "log_clock_there_and_back": f"the log's clock jumps by {s}, and back 2 s later",
            "log_clock": f"the log's clock jumps by {s}",
            "wall_clock": f"the machine's clock of {where} jumps by {s}",
            "skew": f"the clock of {where} is off by {s}",
            "slow_detach": f"sessions of {where} need up to {s} to let go of what they prepared",
            "lose_request": "the request is lost, and its connection",
            "lose_reply": "it is done, and the reply is lost",
            "late": f"the connection breaks, and the request arrives {s} later",
            "lie": "PostgreSQL rolls back and says so in the tag only, without an error",
            "twice": "the message is delivered once more, later",
            "crash_client": "the process that asks is killed",
            "crash_client_after": "the process that asked is killed when the answer comes",
            "stop_client": f"the process that asks stands still for {s}",
            "crash_server": "it is done, and the server is killed",
            "crash_server_before": "the server is killed before it is done",
        }[what]
        return f"{when} {said}"

    @property
    def verb(self) -> str:
        """What the network is told."""
        return f"{self.what}{self.seconds}" if self.what in ("late", "stop_client") else self.what


@dataclass(frozen=True)
class Plan:
    """A world."""

    seed: int
    nodes: int
    databases: tuple[tuple[str, str], ...]
    ops: tuple[Op, ...]
    faults: tuple[Fault, ...]
    retention_s: float = 600.0
    prune_s: float = 30.0
    looks: tuple[float, ...] = ()
    """When somebody asks how everything stands."""
    beyond: bool = False
    """Does the log's clock step back by more than is promised to be borne?"""
    loses_lazy: bool = False
    """Does a crash of the log lose what was not synced?"""
    addresses: bool = False
    """Do services know each coordinator by an address of its own, and go from one to another by themselves? Else all
    are behind one address."""

    def story(self) -> list[str]:
        """In words."""
        kinds = ", ".join(f"{name} ({kind})" for name, kind in self.databases)
        where = ", each with an address of its own" if self.addresses else ""
        out = [f"seed {self.seed}: {self.nodes} coordinator(s) on one log{where}; databases {kinds}"]
        out += [str(op) for op in sorted(self.ops, key=lambda op: op.at_s)]
        out += [str(f) for f in self.faults if not f.nth and f.what != ""]
        out += [str(f) for f in self.faults if f.nth]
        return out

    def parts(self) -> list[Op | Fault]:
        """What can be dropped."""
        return [*self.faults, *self.ops]

    def only(self, kept: list[Op | Fault]) -> Plan:
        """Without the others."""
        return replace(
            self,
            ops=tuple(p for p in kept if isinstance(p, Op)),
            faults=tuple(p for p in kept if isinstance(p, Fault)),
        )


def of_xa(seed: int) -> Plan:
    """The plan of a seed, as long as all is XA."""
    rng = random.Random(f"txcoord plan {seed}")
    nodes = rng.choice((1, 1, 2, 2, 3))
    kinds = rng.choice(
        (
            ("postgresql",) * 2,
            ("postgresql", "mariadb"),
            ("mariadb", "mariadb"),
            ("postgresql", "mariadb", "postgresql"),
        )
    )
    databases = tuple(zip("abc", kinds, strict=False))
    names = [name for name, _ in databases]
    ops = _ops(rng, names)
    # Some worlds forget soon: what is asked late meets what was pruned.
    short = rng.random() < 0.1
    ways = random.Random(f"txcoord ways {seed}")
    return Plan(
        seed,
        nodes,
        databases,
        ops,
        _faults(rng, nodes, databases, ops) + _leaving(ways, nodes),
        addresses=nodes > 1 and ways.random() < 0.7,
        retention_s=12.0 if short else 600.0,
        prune_s=2.0 if short else 30.0,
        looks=tuple(round(rng.uniform(0.5, 8.0), 2) for _ in range(rng.choice((0, 0, 1, 2)))),
        loses_lazy=rng.random() < 0.3,
        beyond=short and rng.random() < 0.15,
    )


def _ops(rng: random.Random, names: list[str]) -> tuple[Op, ...]:
    out = []
    for n in range(rng.randint(1, 4)):
        count = 1 if rng.random() < 0.25 else rng.randint(2, len(names))
        chosen = rng.sample(names, count)
        remote: list[str] = []
        if rng.random() < 0.3:
            cut = rng.randint(0, count - 1)
            chosen, remote = chosen[:cut], chosen[cut:]
        how = rng.choices(("commit", "raise", "swallow", "read", "run"), (72, 8, 8, 5, 7))[0]
        op = Op(
            f"t{n + 1}",
            rng.choice(("c1", "c2")),
            round(rng.uniform(0.0, 4.0), 2),
            tuple(chosen),
            tuple(remote),
            how,
            f"g{n + 1}" if rng.random() < 0.4 else "",
            rng.choice((1.0, 2.0, 4.0, 6.0)),
            round(rng.uniform(0.05, 1.5), 2) if rng.random() < 0.3 else 0.0,
            round(rng.uniform(0.02, 1.0), 2) if rng.random() < 0.07 else 0.0,
        )
        out.append(op)
        if op.gid and rng.random() < 0.4:
            # The same work asked for again: at the same time, or later.
            again = round(min(op.at_s + rng.choice((0.0, 0.01, 0.5, 3.0)), 8.0), 2)
            out.append(replace(op, name=f"{op.name}b", client=rng.choice(("c1", "c2")), at_s=again))
    return tuple(out)


def _faults(
    rng: random.Random, nodes: int, databases: tuple[tuple[str, str], ...], ops: tuple[Op, ...]
) -> tuple[Fault, ...]:
    out = [
        _timed(rng, nodes, databases) if rng.random() < 0.4 else _aimed(rng, len(ops))
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 5)))
    ]
    for name, kind in databases:
        if kind == "mariadb" and rng.random() < 0.45:
            # Longer than the coordinator's guard waits: then it meets the OK that lies.
            out.append(Fault("slow_detach", name, seconds=round(rng.uniform(0.2, 1.5), 2)))
    if nodes > 1 and rng.random() < 0.25:
        # A database is away, so phase two lasts; its node stands still until another one has taken over.
        base, at = rng.choice(databases)[0], rng.choice(ops).at_s
        out.append(Fault("crash", base, round(at + rng.uniform(0.02, 0.4), 2), seconds=2.0))
        stop = round(at + rng.uniform(0.3, 1.2), 2)
        out.append(Fault("stop", f"n{rng.randint(1, nodes)}", stop, seconds=round(rng.uniform(3.5, 7.0), 2)))
    if any(kind == "mariadb" for _, kind in databases) and rng.random() < 0.3:
        # Whoever holds a prepared branch asks for the decision and stands still: his session has to be ended.
        out.append(
            Fault("stop_client", "wire", nth=rng.randint(1, 8), seconds=round(rng.uniform(2.5, 6.0), 2))
        )
    return tuple(out)


def _leaving(rng: random.Random, nodes: int) -> tuple[Fault, ...]:
    """Coordinators that are restarted in good order: one, or all of them in turn."""
    if rng.random() > (0.25 if nodes > 1 else 0.05):
        return ()
    at, first = rng.uniform(0.2, 4.0), rng.randint(1, nodes)
    every = range(nodes if rng.random() < 0.5 else 1)
    return tuple(
        Fault("leave", f"n{(first + n) % nodes + 1}", round(at + n * rng.uniform(1.2, 2.0), 2)) for n in every
    )


def _timed(rng: random.Random, nodes: int, databases: tuple[tuple[str, str], ...]) -> Fault:
    at = round(rng.uniform(0.0, min(6.0, FAULTS_S)), 2)
    seconds = round(rng.choice((0.2, 1.0, 2.5, 5.0)) * rng.uniform(0.5, 1.5), 2)
    node = f"n{rng.randint(1, nodes)}"
    base = rng.choice([name for name, _ in databases])
    clients = ["c1", "c2", "s1"]
    kind = rng.choice(
        (
            "crash",
            "crash",
            "stop",
            "stop",
            "cut",
            "cut",
            "slow",
            "slow_disk",
            "full_disk",
            "clock",
            "clock",
            "hand",
            "leave",
        )
    )
    if kind == "crash":
        return Fault("crash", rng.choice((node, node, base, "log", *clients)), at, seconds=seconds)
    if kind == "stop":
        return Fault("stop", rng.choice((node, node, *clients)), at, seconds=seconds)
    if kind == "cut":
        ends = rng.sample([node, base, "log", *clients], 2)
        pair = rng.choice(
            (
                (node, base),
                (base, node),
                (node, "log"),
                ("log", node),
                ("c1", node),
                (node, "c1"),
                tuple(ends),
            )
        )
        return Fault("cut", pair[0], at, seconds=seconds, other=pair[1])
    if kind == "clock":
        what = rng.choice(("log_clock", "log_clock_there_and_back", "wall_clock", "skew"))
        if what == "log_clock_there_and_back":
            return Fault(what, "log", at, seconds=round(rng.uniform(2.0, 5.5), 2))
        if what == "log_clock":
            return Fault(
                what, "log", at, seconds=round(rng.choice((-4.0, -1.0, 1.0, 8.0)) * rng.uniform(0.3, 1.0), 2)
            )
        off = round(rng.choice((-30.0, -2.5, -0.8, 0.8, 2.5, 30.0)) * rng.uniform(0.5, 1.0), 2)
        return Fault(what, node if what == "wall_clock" else base, at, seconds=off)
    if kind == "leave":
        return Fault("leave", rng.choice(clients), at)
    if kind == "hand":
        which = rng.choice((("hand_commit", "roll_back_branch"), ("hand_rollback", "commit_branch")))
        return Fault(which[0], which[1], nth=rng.randint(1, 8))
    return Fault(kind, "log" if "disk" in kind else "", at, seconds=seconds)


def _aimed(rng: random.Random, ops: int) -> Fault:
    if rng.random() < 0.3:
        target = rng.choice(sorted(FAILPOINTS))
        nth = rng.randint(1, FAILPOINTS[target])
        if rng.random() < 0.75:
            return Fault("crash_client", target, nth=nth)
        return Fault("stop_client", target, nth=nth, seconds=round(rng.uniform(0.2, 6.0), 2))
    if rng.random() < 0.1:
        target = rng.choice(("prepare", "prepare", "commit_one_phase"))
        return Fault("lie", target, nth=rng.randint(1, max(1, POINTS[target] * ops // 4)))
    target = rng.choice(
        ("prepare", "prepare", "prepare", "commit_branch", "commit_branch", "log_write", *sorted(POINTS))
    )
    what = rng.choice(
        (
            "lose_request",
            "lose_reply",
            "lose_reply",
            "late",
            "crash_client",
            "crash_client_after",
            "stop_client",
            "crash_server",
            "crash_server_before",
        )
    )
    if target in ("wire", "call"):
        what = rng.choice(("lose_request", "lose_reply", "late", "twice", "crash_client", "stop_client"))
    seconds = round(rng.choice((0.3, 2.0, 6.0)) * rng.uniform(0.5, 1.5), 2)
    return Fault(what, target, nth=rng.randint(1, max(1, POINTS[target] * ops // 4)), seconds=seconds)
