"""The file of bearer tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from txcoord.api.grpc.guard import of_method
from txcoord.api.grpc.replays import audit_of
from txcoord.api.tokens import May, Role, Tokens, calling, read
from txcoord.core.errors import Refused
from txcoord_client._pb import admin_pb2, coordinator_pb2

WORD = "correct-horse-battery"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no token"),
        ("# only a remark", "there is no token"),
        (f"a client {WORD}", "line 1: 3 words"),
        (f"a root * {WORD}", "the role is one of viewer, client, operator, admin"),
        (f"a client sh/op {WORD}", "namespace"),
        (f"a/b client * {WORD}", "name"),
        ("\na client * short-word", "line 2: a token is one word of 20"),
        ("a client * sha256:abc", "64 hexadecimal digits"),
        (f"a client * {WORD}\nb viewer * {WORD}", "line 2: its name or its token"),
        (f"a client * {WORD}\na viewer * {WORD}2", "line 2: its name or its token"),
    ],
)
def test_a_file_that_is_wrong_says_where(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        read(text)
    assert WORD not in str(refused.value)
    assert "short-word" not in str(refused.value)


def test_a_token_or_its_digest(tmp_path: Path) -> None:
    digest = hashlib.sha256(WORD.encode()).hexdigest()
    file = tmp_path / "tokens"
    for line in (f"a client shop {WORD}", f"a client shop sha256:{digest}  "):
        file.write_text(line)
        tokens = Tokens(file)
        tokens.load()
        caller = tokens.caller(f"bearer {WORD}")
        caller.check(May.TAKE_PART)
        caller.check_namespace("shop")
        for wrong in ("", "Bearer", f"Bearer {WORD}x", f"Basic {WORD}", f"Bearer {digest}", WORD):
            with pytest.raises(Refused, match="UNAUTHENTICATED"):
                tokens.caller(wrong)
        with pytest.raises(Refused, match="FORBIDDEN"):
            caller.check_namespace("bank")
        with pytest.raises(Refused, match="FORBIDDEN"):
            caller.check_everywhere()
        with pytest.raises(Refused, match="FORBIDDEN"):
            caller.check(May.OPERATE)
        assert WORD not in repr(read(line))


def test_an_order_says_whose_token_it_had(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"desk operator * {WORD}")
    tokens = Tokens(file)
    tokens.load()
    order = admin_pb2.Audit(actor="ann", reason="moved")
    assert audit_of(order, "park", 1).actor == "ann"
    with calling(tokens.caller(f"Bearer {WORD}")):
        assert audit_of(order, "park", 1).actor == "ann (token desk)"
        order.actor = "desk"
        assert audit_of(order, "park", 1).actor == "desk"


def test_each_method_needs_something() -> None:
    needs = {
        method.full_name: of_method(f"/{service.full_name}/{method.name}")
        for file in (coordinator_pb2, admin_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert None not in needs.values()
    admin = {name.rpartition(".")[2] for name, need in needs.items() if need is May.ADMINISTER}
    assert admin == {"DrainNode", "AliasTarget"}
    for name in ("Begin", "Enlist", "Commit", "Rollback", "Submit", "Vote", "Report"):
        assert needs[f"txcoord.v1.CoordinatorService.{name}"] is May.TAKE_PART
    for name in (
        "Park",
        "Skip",
        "Resolve",
        "Retry",
        "StartReplay",
        "CancelReplay",
        "ResumeReplay",
        "PauseTarget",
        "ResumeTarget",
        "LimitTarget",
    ):
        assert needs[f"txcoord.v1.AdminService.{name}"] is May.OPERATE
    for name in (
        "ListParkedGroups",
        "GetReplay",
        "ListReplays",
        "ListReplayItems",
        "ListTargets",
        "ListAudit",
    ):
        assert needs[f"txcoord.v1.AdminService.{name}"] is May.READ
    assert of_method("/grpc.health.v1.Health/Check") is None
    assert of_method("/who.knows.Service/Method") is May.READ
    assert set(Role) == {"viewer", "client", "operator", "admin"}
