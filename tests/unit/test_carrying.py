"""What travels with a call, who may get it, and what an HTTP reply turns into."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord_client import ForkedAfterUse, Rejected, Unavailable, _carrying
from txcoord_client._carrying import Problem, Targets
from txcoord_client._pb import common_pb2 as c

TX = "0190aaaaaaaa7bbb8ccc0123456789ab"


def context(**more: Any) -> c.CallContext:
    return c.CallContext(**{"namespace": "default", "tx_id": TX, "branch": "3", "log_id": "abc", **more})


class Tx:
    """What of a transaction a vote is made of."""

    def __init__(self, reason: str = "", message: str = "", *, initiator: bool = False) -> None:
        self.tx_id = TX
        self.initiator = initiator
        self._parent = "3"
        self._local: list[Any] = []
        self._remote = {"3.1.1": c.Branch(id="3.1.1", vote=c.VOTE_PREPARED)}
        self._rollback_only, self._rollback_message = reason, message

    @property
    def rollback_only(self) -> bool:
        return bool(self._rollback_only)

    def set_rollback_only(self, reason: str = "X", message: str = "") -> None:
        if not self._rollback_only:
            self._rollback_only, self._rollback_message = reason, message


# ---- headers ----


@given(gid=st.text("abcXYZ019_-", max_size=48), deadline=st.integers(0, 2**62), number=st.integers(1, 999))
def test_a_context_comes_back_as_it_went(gid: str, deadline: int, number: int) -> None:
    sent = context(gid=gid, deadline_us=deadline, branch=str(number))
    header = _carrying.context_header(sent)
    assert header.isascii()
    assert not set(header) & set(" =,;\r\n+/")
    assert _carrying.context_in([header], "default") == sent


def test_a_context_too_long_for_a_header_is_refused_before_it_is_sent() -> None:
    with pytest.raises(Rejected, match="at most 8000") as caught:
        _carrying.context_header(context(headers={"k": "v" * 7000}))
    assert caught.value.reason == "TOO_LARGE"


@pytest.mark.parametrize("values", [[], [""], ["%"], ["AAAA"], ["ü"], ["x" * 7], ["YQ", "YQ"]])
def test_what_is_no_context_is_refused(values: list[str]) -> None:
    with pytest.raises(Rejected) as caught:
        _carrying.context_in(values, "default")
    assert caught.value.reason == "BAD_REQUEST"


def test_a_context_of_another_namespace_is_refused() -> None:
    header = _carrying.context_header(context(namespace="other"))
    with pytest.raises(Rejected, match="'other'") as caught:
        _carrying.context_in([header], "default")
    assert caught.value.reason == "BAD_NAMESPACE"


@given(st.binary(max_size=200))
def test_votes_that_cannot_be_read_are_none(data: bytes) -> None:
    text = data.decode("latin-1")
    _carrying.vote_in([text])
    assert _carrying.vote_in([text, text]) is None
    assert _carrying.vote_in([]) is None


def test_a_vote_has_the_branches_below_and_the_reason() -> None:
    vote = _carrying.vote_in([_carrying.vote_header(_carrying.vote_of(Tx("SOLD_OUT", "no seats")))])
    assert vote is not None
    assert (vote.tx_id, vote.branch, [b.id for b in vote.branches]) == (TX, "3", ["3.1.1"])
    assert (vote.rollback_only, vote.reason, vote.message) == (True, "SOLD_OUT", "no seats")
    fine = _carrying.vote_of(Tx())
    assert (fine.rollback_only, fine.reason) == (False, "")


def test_a_vote_does_not_carry_what_tries_returned() -> None:
    """A header has little room, and the participant's marker has it."""
    tx = Tx()
    for number in ("3.1", "3.2"):
        tx._remote[number] = c.Branch(id=number, kind=c.KIND_TCC, vote=c.VOTE_PREPARED)
    tx._remote["3.1"].action.result = b"x" * 100_000
    tx._remote["3.2"].xa.resource = "orders"
    vote = _carrying.vote_of(tx)
    assert [b.WhichOneof("part") for b in vote.branches] == [None, None, "xa"]
    assert len(_carrying.vote_header(vote)) < 200
    assert tx._remote["3.1"].action.result, "the initiator's own commit still has it"


def test_a_lock_time_out_in_a_called_service_says_what_it_may_wait_for() -> None:
    vote = _carrying.vote_of(Tx("LOCK_TIMEOUT", "x" * 900))
    assert "an earlier call of this one" in vote.message
    assert len(vote.message) <= 500
    assert "earlier" not in _carrying.why(Tx("LOCK_TIMEOUT", "canceled", initiator=True))


# ---- targets ----


@pytest.mark.parametrize(
    ("names", "host", "port", "named"),
    [
        (["stock"], "stock", 80, True),
        (["stock"], "STOCK.", 8080, True),
        (["stock:8080"], "stock", 8080, True),
        (["stock:8080"], "stock", 80, False),
        (["stock"], "stock.evil.com", 80, False),
        (["shop.svc"], "stock.shop.svc", 80, False),
        (["*.shop.svc"], "stock.shop.svc", 80, True),
        (["*.shop.svc"], "a.b.shop.svc", 443, True),
        (["*.shop.svc"], "shop.svc", 80, False),
        (["*.shop.svc"], "notshop.svc", 80, False),
        (["*.shop.svc:443"], "stock.shop.svc", 443, True),
        (["*.shop.svc:443"], "stock.shop.svc", 80, False),
        (["[::1]:80"], "::1", 80, True),
        (["::1"], "::1", 80, True),
        (["[::1]"], "::1", 9, True),
        (["bücher.example"], "xn--bcher-kva.example", 80, True),
        (["10.0.0.1"], "10.0.0.1", 80, True),
        ([], "stock", 80, False),
    ],
)
def test_who_is_named(names: list[str], host: str, port: int, named: bool) -> None:
    assert Targets(names).host(host, port) is named


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("stock:50051", True),
        ("dns:///stock:50051", True),
        ("dns://10.0.0.1/stock:50051", True),
        ("passthrough:///stock:50051", True),
        ("stock:50052", False),
        ("unix:/run/stock.sock", True),
        ("unix:/run/other.sock", False),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", True),
        ("ipv4:10.0.0.1:1", False),
        ("api.shop.svc:443", True),
    ],
)
def test_which_grpc_targets_are_named(target: str, named: bool) -> None:
    names = ("stock:50051", "unix:/run/stock.sock", "ipv4:10.0.0.1:1,10.0.0.2:1", "*.shop.svc")
    assert Targets(names).grpc(target) is named


@pytest.mark.parametrize(
    "name",
    ["*", "*.", "", "https://stock", "stock/path", "me@stock", "a.*.b", "stock:", "stock:0", "stock:http"],
)
def test_names_that_are_no_hosts_are_refused(name: str) -> None:
    with pytest.raises(Rejected) as caught:
        Targets([name])
    assert caught.value.reason == "BAD_REQUEST"


# ---- replies ----


@pytest.mark.parametrize(
    ("reason", "status", "whole", "doomed", "failed", "expected"),
    [
        ("", 200, True, False, False, None),
        ("APPLICATION_ERROR", 404, True, True, False, None),  # its own reply says it
        ("APPLICATION_ERROR", 500, True, True, True, None),
        ("SOLD_OUT", 200, True, True, False, 409),
        ("PREPARE_NOT_POSSIBLE", 200, True, False, False, 503),
        ("SERIALIZATION_FAILURE", 200, True, True, True, 503),
        ("APPLICATION_ERROR", 200, True, True, True, 500),  # raised after the reply was sent
        ("APPLICATION_ERROR", None, False, True, True, 500),
        ("APPLICATION_ERROR", 200, False, True, False, 500),
        ("NOT_SUPPORTED", None, False, True, True, 501),
        ("TOO_LARGE", 200, False, True, True, 500),
    ],
)
def test_what_replaces_a_reply(
    reason: str, status: int | None, whole: bool, doomed: bool, failed: bool, expected: int | None
) -> None:
    problem = _carrying.problem_instead(Tx(reason, "why"), status, whole, doomed=doomed, failed=failed)
    assert (problem.status if problem else None) == expected


def test_a_problem_is_one_of_rfc_9457() -> None:
    problem = Problem(503, "PREPARE_FULL", "used up")
    assert json.loads(problem.body) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "used up",
        "reason": "PREPARE_FULL",
    }
    headers = dict(problem.headers())
    assert headers["Content-Type"] == "application/problem+json"
    assert int(headers["Content-Length"]) == len(problem.body)
    assert problem.line == "503 Service Unavailable"


def test_who_cannot_come_in() -> None:
    assert _carrying.no_entry(Rejected("x", reason="BAD_REQUEST")).status == 400
    assert _carrying.no_entry(Rejected("x", reason="BAD_XID")).status == 409
    assert _carrying.no_entry(Unavailable("x")).status == 503
    assert _carrying.no_entry(ForkedAfterUse("x")).status == 500


def test_error_replies_and_torn_ones_doom() -> None:
    for status, whole, reason in (
        (200, True, ""),
        (399, True, ""),
        (400, True, "APPLICATION_ERROR"),
        (200, False, "APPLICATION_ERROR"),
        (None, False, "APPLICATION_ERROR"),
    ):
        tx = Tx()
        _carrying.doom_by_reply(tx, status, whole)
        assert tx._rollback_only == reason


def test_what_cannot_be_held_back() -> None:
    _carrying.refuse_stream("text/html; charset=utf-8")
    _carrying.refuse_size(_carrying.MAX_HELD_BYTES)
    with pytest.raises(Rejected, match="event-stream"):
        _carrying.refuse_stream("Text/Event-Stream; charset=utf-8")
    with pytest.raises(Rejected) as caught:
        _carrying.refuse_size(_carrying.MAX_HELD_BYTES + 1)
    assert caught.value.reason == "TOO_LARGE"
