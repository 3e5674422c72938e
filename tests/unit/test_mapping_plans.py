"""Plans at the edge: what is read, and what is refused before anything is written."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from txcoord.api.grpc import mapping
from txcoord.api.grpc.mapping import Limits, Reader
from txcoord.core.action import Action, Retry
from txcoord.core.errors import Refused
from txcoord.core.model import FOREVER_US, Branch, BranchState, Kind, Tx
from txcoord.core.targets import Targets
from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import reasons

READER = Reader(limits=Limits(payload=100, branches=5), log_id="0123456789", resources=(), now_us=lambda: 0)


def step(id: str, *after: str, **more: Any) -> c.Branch:
    part = {"target": "grpc://ship:9", "operation": "ship.pack", **more.pop("part", {})}
    return c.Branch(id=id, kind=c.KIND_SAGA, after=after, action=c.ActionPart(**part), **more)


def test_a_plan_as_it_is_read() -> None:
    retry = c.RetryPolicy(
        call_timeout_us=1, initial_us=2, multiplier=3.0, cap_us=4, max_attempts=5, give_up_us=6
    )
    one = step("1", name="pack", retry=retry, part={"payload": b"{}", "headers": {"a": "b"}})
    two = step("2", "1", part={"results_of": ["1"], "forward": True})
    assert READER.plan([one, two]) == (
        Branch(
            "1",
            Kind.SAGA,
            resource="grpc://ship:9",
            payload=b"{}",
            action=Action(
                "ship.pack", "pack", run_first=True, headers={"a": "b"}, retry=Retry(1, 2, 3.0, 4, 5, 6)
            ),
        ),
        Branch(
            "2",
            Kind.SAGA,
            resource="grpc://ship:9",
            action=Action("ship.pack", run_first=True, forward=True, after=("1",), results_of=("1",)),
        ),
    )


MESSAGE = c.Branch(
    id="9", kind=c.KIND_MESSAGE, delivery=c.DeliveryPart(target="grpc://mail:9", operation="mail.told")
)


def test_a_plan_with_a_message() -> None:
    told = Branch("9", Kind.MESSAGE, resource="grpc://mail:9", action=Action("mail.told"))
    assert READER.plan([step("1"), MESSAGE])[1] == told


METHOD = {"operation": "/s.Ship/Pack"}
BAD: dict[str, tuple[str, list[c.Branch]]] = {
    "nothing": (reasons.BAD_REQUEST, []),
    "too many": (reasons.TOO_LARGE, [step(str(n)) for n in range(6)]),
    "twice": (reasons.BAD_BRANCH, [step("1"), step("1")]),
    "a bad id": (reasons.BAD_BRANCH, [step("x")]),
    "an xa branch": (reasons.NOT_SUPPORTED, [c.Branch(id="1", kind=c.KIND_XA)]),
    "only a message": (reasons.BAD_REQUEST, [MESSAGE]),
    "a message to nobody": (
        reasons.BAD_BRANCH,
        [step("1"), c.Branch(id="2", kind=c.KIND_MESSAGE)],
    ),
    "a vote": (reasons.BAD_BRANCH, [step("1", vote=c.VOTE_PREPARED)]),
    "after itself": (reasons.BAD_BRANCH, [step("1", "1")]),
    "after nobody": (reasons.BAD_BRANCH, [step("1", "2")]),
    "in a circle": (reasons.BAD_BRANCH, [step("1", "2"), step("2", "1")]),
    "confirmed in a circle": (
        reasons.BAD_BRANCH,
        [c.Branch(id=n, kind=c.KIND_TCC, after=[m], action=step("1").action) for n, m in ("12", "21")],
    ),
    "results of a later one": (reasons.BAD_BRANCH, [step("1", part={"results_of": ["2"]}), step("2")]),
    "one name": (reasons.BAD_BRANCH, [step("1", name="a"), step("2", name="a")]),
    "forward beside": (reasons.BAD_BRANCH, [step("1"), step("2", part={"forward": True})]),
    "forward before": (reasons.BAD_BRANCH, [step("1", part={"forward": True}), step("2", "1")]),
    "no target": (reasons.UNKNOWN_PARTICIPANT, [step("1", part={"target": ""})]),
    "not grpc": (reasons.UNKNOWN_PARTICIPANT, [step("1", part={"target": "file:///etc"})]),
    "no port": (reasons.UNKNOWN_PARTICIPANT, [step("1", part={"target": "grpc://ship"})]),
    "a socket": (reasons.UNKNOWN_PARTICIPANT, [step("1", part={"target": "grpc://unix:/run/docker.sock"})]),
    "a far port": (reasons.UNKNOWN_PARTICIPANT, [step("1", part={"target": "grpc://ship:70000"})]),
    "an operator's method": (
        reasons.BAD_BRANCH,
        [step("1", part={"operation": "/txcoord.v1.AdminService/Skip", "no_undo": True})],
    ),
    "no operation": (reasons.BAD_BRANCH, [step("1", part={"operation": ""})]),
    "no method": (reasons.BAD_BRANCH, [step("1", part={"operation": "/etc"})]),
    "no compensation": (reasons.BAD_BRANCH, [step("1", part=METHOD)]),
    "mixed names": (reasons.BAD_BRANCH, [step("1", part={"abort_operation": "/s.Ship/Undo"})]),
    "large": (reasons.TOO_LARGE, [step("1", part={"payload": b"x" * 101})]),
    "headers": (reasons.TOO_LARGE, [step("1", part={"headers": {"a": "x" * 9_000}})]),
    "another's word": (
        reasons.BAD_BRANCH,
        [step("1", part={**METHOD, "no_undo": True, "headers": {"Authorization": "Bearer x"}})],
    ),
    "long times": (reasons.BAD_BRANCH, [step("1", retry=c.RetryPolicy(schedule_us=[1, 1 << 62]))]),
    "results of nobody": (reasons.BAD_BRANCH, [step("1", part={"results_of": ["7"]})]),
    "in a larger circle": (
        reasons.BAD_BRANCH,
        [step("1"), step("2", "1", "4"), step("3", "2"), step("4", "3")],
    ),
    "times": (reasons.BAD_BRANCH, [step("1", retry=c.RetryPolicy(initial_us=-1))]),
    "multiplier": (reasons.BAD_BRANCH, [step("1", retry=c.RetryPolicy(multiplier=0.5))]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_plans(what: str) -> None:
    reason, branches = BAD[what]
    with pytest.raises(Refused) as error:
        READER.plan(branches)
    assert error.value.refusal.reason == reason


def test_methods_of_its_own() -> None:
    [branch] = READER.plan([step("1", part={**METHOD, "abort_operation": "/s.Ship/Unpack"})])
    assert branch.action is not None
    assert branch.action.abort_operation == "/s.Ship/Unpack"
    [branch] = READER.plan([step("1", part={**METHOD, "no_undo": True})])
    assert branch.action is not None
    assert branch.action.no_undo


def test_inside_a_transaction_no_step_is_never_undone() -> None:
    with pytest.raises(Refused) as error:
        READER.steps([step("1", part={"forward": True})])
    assert error.value.refusal.reason == reasons.NOT_SUPPORTED
    assert READER.steps([c.Branch(id="1", kind=c.KIND_TCC)]) == ()


def test_addresses() -> None:
    for target in ("grpc://ship_1.local-net:9", "grpc://10.0.0.7:50051", "grpc://[::1]:65535"):
        [branch] = READER.plan([step("1", part={"target": target})])
        assert branch.resource == target


def test_a_large_graph_is_checked_at_once() -> None:
    many = Reader(limits=Limits(), log_id="0123456789", resources=(), now_us=lambda: 0)
    steps = [step(str(n), *(str(m) for m in range(max(1, n - 9), n))) for n in range(1, 1_001)]
    began = time.process_time()
    assert len(many.plan(steps)) == 1_000
    assert time.process_time() - began < 2.0
    with pytest.raises(Refused) as error:
        many.plan([*steps[:-1], step("1000", *(str(n) for n in range(1, 1_000)), *["1"] * 1_000)])
    assert error.value.refusal.reason == reasons.TOO_LARGE


def test_only_a_plan_has_no_deadline() -> None:
    tx_id = "0190" + "0" * 8 + "7" + "0" * 3 + "8" + "0" * 15
    with pytest.raises(Refused) as error:
        READER.tx("shop", tx_id, "", FOREVER_US, None)
    assert error.value.refusal.reason == reasons.DEADLINE_TOO_FAR
    assert READER.tx("shop", tx_id, "", FOREVER_US, None, may_have_none=True).deadline_us == FOREVER_US


def test_a_list_goes_without_results_and_one_transaction_has_them_once() -> None:
    done = replace(READER.plan([step("1")])[0], state=BranchState.READY, result=b"[1]")
    tx = Tx("0" * 32, "shop", 1, branches=(done,), result=b"2")
    one, listed = mapping.transaction(tx), mapping.transaction(tx, results=False)
    assert [b.result for b in one.outcome.branches] == [b"[1]"]
    assert one.outcome.result == b"2"
    assert not any(b.status.result for b in (*one.branches, *listed.branches))
    assert (list(listed.outcome.branches), listed.outcome.result) == ([], b"")


def test_a_retry_policy_of_the_whole() -> None:
    own = step("1", retry=c.RetryPolicy(max_attempts=2, call_timeout_us=7))
    spec = c.TransactionSpec(retry=c.RetryPolicy(max_attempts=9, initial_us=3, multiplier=2.0))
    plan = READER.with_retry(READER.plan([own, step("2")]), spec)
    assert [b.action.retry for b in plan if b.action is not None] == [
        Retry(7, 3, 2.0, max_attempts=2),
        Retry(0, 3, 2.0, max_attempts=9),
    ]
    assert READER.with_retry(plan, c.TransactionSpec()) == plan


def test_a_retry_policy_of_the_whole_that_is_wrong_or_comes_without_branches() -> None:
    for retry, names, reason in (
        (c.RetryPolicy(multiplier=0.5), True, reasons.BAD_REQUEST),
        (c.RetryPolicy(initial_us=-1), True, reasons.BAD_REQUEST),
        (c.RetryPolicy(initial_us=5), False, reasons.NOT_SUPPORTED),
    ):
        spec = c.TransactionSpec(retry=retry)
        with pytest.raises(Refused) as refused:
            READER.tx("shop", "0" * 12 + "7" + "0" * 3 + "8" + "0" * 15, "", 1, spec, names_branches=names)
        assert refused.value.refusal.reason == reason


WEB = {"target": "http://ship:8000/x", "operation": "/pack", "abort_operation": "/unpack"}


def test_paths_of_its_own() -> None:
    [branch] = READER.plan([step("1", part=WEB)])
    assert branch.resource == "http://ship:8000/x"
    for part, reason in (
        ({"operation": "/s.Ship/../Pack"}, reasons.BAD_BRANCH),
        ({"operation": "//elsewhere"}, reasons.BAD_BRANCH),
        ({"abort_operation": ""}, reasons.BAD_BRANCH),
        ({"http_method": "PUT"}, reasons.NOT_SUPPORTED),
        ({"target": "grpc://ship:9"}, reasons.BAD_BRANCH),
        ({"target": "http://ship/../x"}, reasons.UNKNOWN_PARTICIPANT),
    ):
        with pytest.raises(Refused) as error:
            READER.plan([step("1", part={**WEB, **part})])
        assert error.value.refusal.reason == reason
    with pytest.raises(Refused, match="SDK only"):
        READER.plan([step("1"), step("2", "1", part={**WEB, "results_of": ["1"]})])


def test_whom_the_settings_allow() -> None:
    targets = Targets(["loopback"], {"ship": ["grpc://ship:9"], "both": ["grpc://ship:8", "http://ship:8"]})
    reader = Reader(limits=Limits(targets=targets), log_id="0123456789", resources=(), now_us=lambda: 0)
    for part in ({"target": "ship"}, {}, {"target": "http://localhost"}, {"target": "both"}):
        assert reader.plan([step("1", part=part)])
    for part, code in (
        ({"target": "http://ship:8000"}, "PERMISSION_DENIED"),
        ({"target": "http://169.254.169.254/latest"}, "PERMISSION_DENIED"),
        ({"target": "shop"}, "INVALID_ARGUMENT"),
        ({**WEB, "target": "both"}, "INVALID_ARGUMENT"),
    ):
        with pytest.raises(Refused) as error:
            reader.plan([step("1", part=part)])
        assert error.value.refusal.code == code


def told(id: str = "shop", **more: Any) -> c.Callback:
    part = {"target": "grpc://shop:9", "operation": "shop.ended", **more}
    return c.Callback(id=id, delivery=c.DeliveryPart(**part))


def test_callbacks_as_they_are_read() -> None:
    item = step("1")
    item.callback.CopyFrom(told("bill"))
    found = READER.callbacks(c.TransactionSpec(callbacks=[told(payload=b"1")]), [item, step("2")])
    assert [(b.id, b.kind, b.resource, b.payload) for b in found] == [
        ("c:shop", Kind.CALLBACK, "grpc://shop:9", b"1"),
        ("c:bill", Kind.CALLBACK, "grpc://shop:9", b""),
    ]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([told("")], reasons.BAD_REQUEST),
        ([told("a b")], reasons.BAD_REQUEST),
        ([told(), told()], reasons.BAD_REQUEST),
        ([told(target="shop")], reasons.UNKNOWN_PARTICIPANT),
        ([told(operation="")], reasons.BAD_REQUEST),
        ([told(operation="/txcoord.v1.AdminService/Skip")], reasons.BAD_REQUEST),
        ([told(payload=b"x" * 101)], reasons.TOO_LARGE),
        ([told(ordering_key="a")], reasons.NOT_SUPPORTED),
        ([told(str(n)) for n in range(21)], reasons.TOO_LARGE),
    ],
)
def test_bad_callbacks(wrong: list[c.Callback], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        READER.callbacks(c.TransactionSpec(callbacks=wrong))
    assert refused.value.refusal.reason == reason
