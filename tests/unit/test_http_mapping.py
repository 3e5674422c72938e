"""JSON and the wire's messages; problems; what a request says beside its body."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from txcoord.api.http import asking, mapping
from txcoord.api.http.problems import STATUS, HttpRefused, problem
from txcoord.core.errors import Refusal, Refused
from txcoord.ports import LogUnavailable
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import reasons

STEP = {"id": "1", "kind": "KIND_SAGA", "action": {"target": "grpc://ship:9", "operation": "pack"}}


def read(text: str | bytes, message: Any = None) -> Any:
    data = text.encode() if isinstance(text, str) else text
    return mapping.read(mapping.loads(data), pb.SubmitRequest() if message is None else message)


def refused(text: str | bytes) -> str:
    """Why it is refused."""
    with pytest.raises(Refused) as caught:
        read(text)
    refusal = caught.value.refusal
    assert (refusal.code, refusal.reason, refusal.definite) == ("INVALID_ARGUMENT", reasons.BAD_REQUEST, True)
    return refusal.message


def test_the_canonical_mapping_and_the_names_of_the_proto_files() -> None:
    wanted = pb.SubmitRequest(gid="order-7", deadline_us=2**53 + 1, wait=c.WAIT_LEVEL_DECIDED)
    wanted.spec.labels["a"] = "b"
    wanted.branches.add(id="1", after=["0"]).action.payload = b"\x00\xff"
    assert mapping.read(mapping.write(wanted), pb.SubmitRequest()) == wanted
    assert mapping.write(wanted)["deadlineUs"] == str(2**53 + 1)
    assert read(
        '{"gid": "order-7", "deadline_us": 9007199254740993, "wait": 2, "spec": null}'
    ) == pb.SubmitRequest(gid="order-7", deadline_us=2**53 + 1, wait=c.WAIT_LEVEL_DECIDED)


BAD: dict[str, tuple[str, str]] = {
    '{"branches": [{"id": "1"}, {"action": {"payloed": ""}}]}': (
        "branches[1].action.payloed",
        "no such field; did you mean payload?",
    ),
    '{"spec": {"labels": {"a": 1}}}': ("spec.labels.a", "a text is expected, not 1"),
    '{"spec": {"labels": []}}': ("spec.labels", "an object is expected, not an array"),
    '{"spec": 3}': ("spec", "an object is expected, not 3"),
    '{"branches": {}}': ("branches", "an array is expected, not an object"),
    '{"branches": [null]}': ("branches[0]", "an object is expected, not null"),
    '{"deadlineUs": "soon"}': (
        "deadlineUs",
        "a whole number from -9223372036854775808 to 9223372036854775807",
    ),
    '{"deadlineUs": 1.5}': ("deadlineUs", "a whole number"),
    '{"deadlineUs": true}': ("deadlineUs", "a whole number"),
    '{"deadlineUs": 10000000000000000000}': ("deadlineUs", "a whole number"),
    '{"branches": [{"retry": {"maxAttempts": -1}}]}': (
        "branches[0].retry.maxAttempts",
        "from 0 to 4294967295",
    ),
    '{"branches": [{"retry": {"multiplier": "2"}}]}': (
        "branches[0].retry.multiplier",
        "a number is expected",
    ),
    '{"branches": [{"kind": "TCC"}]}': ("branches[0].kind", "one of KIND_UNSPECIFIED, KIND_XA"),
    '{"branches": [{"kind": 77}]}': ("branches[0].kind", "not 77"),
    '{"wait": {}}': ("wait", "not an object"),
    '{"wait": [1]}': ("wait", "not an array"),
    '{"branches": [{"action": {"forward": "true"}}]}': ("branches[0].action.forward", "true or false"),
    '{"branches": [{"action": {"payload": "{\\"sku\\": 1}"}}]}': (
        "branches[0].action.payload",
        "payloadJson",
    ),
    '{"branches": [{"action": {"payload": "a"}}]}': ("branches[0].action.payload", "base64"),
    '{"branches": [{"action": {"payload": "", "payloadJson": 1}}]}': (
        "branches[0].action.payloadJson",
        "twice",
    ),
    '{"deadline_us": 1, "deadlineUs": 1}': ("deadlineUs", "twice"),
    '{"gidJson": 1}': ("gidJson", "no such field"),
    '{"gid": "\\ud800"}': ("gid", "surrogate"),
    '{"branches": [{"xa": {}, "action": {}}]}': ("", "oneof"),
    '{"gid": "a", "gid": "b"}': ("", "the key 'gid' is there twice"),
    '{"x": 12345678901234567.89}': ("", "would be rounded"),
    '{"x": 1e400}': ("", "would be rounded"),
    '{"x": NaN}': ("", "NaN is no number"),
    "[]": ("", "an object is expected, not an array"),
    "{": ("", "no JSON"),
    "[" * 100_000: ("", "nested too deeply"),
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:60])
def test_what_is_wrong_is_named(text: str) -> None:
    path, words = BAD[text]
    said = refused(text)
    assert words in said
    assert said.startswith(f"{path}: " if path else "")


def test_what_is_too_much_is_refused_before_it_is_read() -> None:
    for text in (
        '{"branches": [' + "{}," * 10_000 + "{}]}",
        json.dumps({"spec": {"labels": dict.fromkeys(map(str, range(10_001)), "")}}),
    ):
        with pytest.raises(Refused) as caught:
            read(text)
        assert caught.value.refusal.reason == "TOO_LARGE"
    assert len(refused(json.dumps({"x" * 1_000_000: 1}))) < 400


def test_what_is_no_utf_8() -> None:
    assert "UTF-8" in refused(b'{"gid": "\xff"}')


@pytest.mark.parametrize("value", [{"sku": "bök", "n": 3}, [1, "2"], "text", 5, 0.1, None, True])
def test_payloads_and_results_as_plain_json(value: Any) -> None:
    plan = {"branches": [{**STEP, "action": {"payloadJson": value}}]}
    message = mapping.read(plan, pb.SubmitRequest())
    payload = message.branches[0].action.payload
    assert json.loads(payload) == value
    assert mapping.write(message)["branches"][0]["action"] == {
        "payload": base64.b64encode(payload).decode(),
        "payloadJson": value,
    }


@pytest.mark.parametrize("payload", [b"\x00\xff", b"{", b"12345678901234567.89", b'{"a":1,"a":2}'])
def test_what_would_not_be_the_same_as_json_stays_bytes(payload: bytes) -> None:
    message = pb.BranchVote(result=payload)
    assert mapping.write(message) == {"result": base64.b64encode(payload).decode()}


def test_both_alphabets_of_base64() -> None:
    for text in ("-_8=", "+/8=", "-_8", "+/8"):
        vote = mapping.read({"result": text}, pb.BranchVote())
        assert vote.result == b"\xfb\xff"


# ---- problems ----


def test_a_refusal_is_a_problem_with_all_that_grpc_tells() -> None:
    refusal = Refusal("UNAVAILABLE", "SHUTTING_DOWN", "this node is leaving", True, {"node": "a"}, 100_000)
    number, value, headers = problem(Refused(refusal, c.Outcome(decision=c.DECISION_ABORT)))
    assert number == 503
    assert headers == {"Retry-After": "1"}
    assert value == {
        "type": "urn:txcoord:reason:SHUTTING_DOWN",
        "title": "Shutting down",
        "status": 503,
        "detail": "this node is leaving",
        "reason": "SHUTTING_DOWN",
        "code": "UNAVAILABLE",
        "definite": True,
        "retryAfterUs": "100000",
        "facts": {"node": "a"},
        "outcome": {"decision": "DECISION_ABORT"},
    }


def test_other_errors() -> None:
    number, value, _ = problem(LogUnavailable("gone"))
    assert (number, value["reason"], value["definite"]) == (503, "LOG_UNAVAILABLE", False)
    number, value, _ = problem(ZeroDivisionError())
    assert (number, value["reason"]) == (500, "INTERNAL")
    number, value, headers = problem(HttpRefused(405, "no", headers={"Allow": "GET"}))
    assert (number, value["status"], value["reason"], headers) == (405, 405, "BAD_HTTP", {"Allow": "GET"})
    number, _, _ = problem(Refused(Refusal("ALREADY_EXISTS", reasons.CONTENT_MISMATCH, "")))
    assert number == 422


def test_every_code_has_a_status() -> None:
    import grpc

    later = {"OK", "CANCELLED", "UNKNOWN", "DATA_LOSS"}
    assert STATUS.keys() == {code.name for code in grpc.StatusCode} - later


# ---- beside the body ----


def test_parameters() -> None:
    assert asking.parameters("level=decided&timeout=1s", ["level", "timeout"]) == {
        "level": "decided",
        "timeout": "1s",
    }
    for query, words in (("levl=x", "there are level"), ("level=a&level=b", "twice")):
        with pytest.raises(Refused, match=words):
            asking.parameters(query, ["level"])
    assert [asking.seconds(text, "t") for text in ("10", "10s", "500ms", "1.5m")] == [10, 10, 0.5, 90]
    for text in ("", "-1", "1h", "ten", "1e3", "\u0661"):
        with pytest.raises(Refused, match="duration"):
            asking.seconds(text, "timeout")
    assert [asking.truth(text, "t") for text in ("", "true", "false")] == [True, True, False]


def test_prefer() -> None:
    assert asking.prefer('foo; bar, wait=10, Respond-Async;x="1"') == asking.Prefer(10.0, True)
    assert asking.prefer("wait=1, wait=2") == asking.Prefer(1.0)
    for text in ("", "wait", "wait=", "wait=-1", "wait=x", "wait=1.5"):
        assert asking.prefer(text) == asking.Prefer()


def test_idempotency_keys() -> None:
    for text in ('"order-7"', "order-7", ' "order-7" ;v=1'):
        assert asking.idempotency_key(text) == "order-7"
    for text in ("", '""', '"a b"', "a, b", '"a', "x" * 49, "ümlaut"):
        with pytest.raises(Refused) as caught:
            asking.idempotency_key(text)
        assert caught.value.refusal.reason == "BAD_GID"


def test_a_key_that_is_there_twice_is_found_in_one_pass() -> None:
    """Else one request, or one result of a participant, would stop the whole node for minutes."""
    looks = 0

    class Key(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    keys = [Key(n) for n in range(1_000)]
    with pytest.raises(ValueError, match="'999' is there twice"):
        mapping._object([(key, 0) for key in [*keys, Key(999)]])
    assert looks < 10_000
