"""Notifications: whom they are sent to, how they are signed, and when they are tried again."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import standardwebhooks
from cloudevents.core.bindings.http import HTTPMessage, from_http_event

from txcoord.adapters.calling.webhooks import SecretFile, Webhooks, answer_of, prepared
from txcoord.core.action import Action, AnswerKind, Delivery, Event, Op, Retry
from txcoord.core.calling import NOTIFY_SCHEDULE_US, own_retry, pause_us, spent
from txcoord.core.model import Branch, BranchState, Kind, Tx
from txcoord.core.targets import Target, Targets
from txcoord.core.webhooks import WebhookTargets
from txcoord.ports import CallRequest
from txcoord_client.webhooks import NotVerified, Webhook

OLD, NEW = (f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))
TARGET = Target.parse("https://partner.example")
DAY_US = 86_400_000_000


def request(body: bytes = b'{"order":7}', event: Event | None = None, kind: str = "") -> CallRequest:
    action = Action("/hook", content_type=kind, headers={"x-shop": "berlin"}, delivery=Delivery(event=event))
    branch = Branch(
        "2", Kind.NOTIFY, BranchState.FINISHING, "https://partner.example", payload=body, action=action
    )
    tx = Tx("0" * 32, "shop", 1, decided_us=1_700_000_000_123_456, branches=(branch,))
    return CallRequest(tx, branch, Op.NOTIFY, 1, 0)


def signed_by(tmp_path: Path, *secrets: str) -> Webhooks:
    file = tmp_path / "secrets"
    file.write_text("# newest first\n" + "\n".join(secrets) + "\n")
    return Webhooks(secrets=[SecretFile(file, ["*.example"])])


def sent(how: Webhooks, asked: CallRequest) -> tuple[dict[str, str], bytes]:
    assert TARGET is not None
    return prepared(asked, TARGET, how, datetime.now(UTC).timestamp())


def test_what_is_signed_is_verified_by_an_independent_library_while_secrets_are_rotated(
    tmp_path: Path,
) -> None:
    headers, body = sent(signed_by(tmp_path, NEW, OLD), request())
    for secret in (OLD, NEW):
        assert standardwebhooks.Webhook(secret).verify(body, headers) == {"order": 7}
    headers, body = sent(signed_by(tmp_path, NEW), request())
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(OLD).verify(body, headers)


def test_a_file_that_is_written_anew_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = signed_by(tmp_path, OLD)
    headers, body = sent(how, request())
    standardwebhooks.Webhook(OLD).verify(body, headers)
    signed_by(tmp_path, NEW)
    headers, body = sent(how, request())
    standardwebhooks.Webhook(OLD).verify(body, headers)  # It was read within the last ten seconds.
    monkeypatch.setattr("txcoord.adapters.calling.webhooks._FRESH_S", -1.0)
    headers, body = sent(how, request())
    standardwebhooks.Webhook(NEW).verify(body, headers)
    (tmp_path / "secrets").write_text("")  # caught while it is written
    headers, body = sent(how, request())
    standardwebhooks.Webhook(NEW).verify(body, headers)
    with pytest.raises(ValueError, match="has no secret"):
        Webhooks(secrets=[SecretFile(tmp_path / "secrets", ["*.example"])]).check()
    (tmp_path / "secrets").write_text(f"{OLD}\n\nwhsec_short\n")
    with pytest.raises(ValueError, match=r"webhook_secrets.a.file /.*/secrets, line 3: a secret"):
        SecretFile(tmp_path / "secrets", ["*.example"], "webhook_secrets.a.file").secrets()
    with pytest.raises(ValueError, match=r"webhook_secrets.a.file /none: No such file"):
        SecretFile(Path("/none"), ["*.example"], "webhook_secrets.a.file").secrets()


def test_what_an_independent_library_signs_is_verified() -> None:
    at, body = datetime.now(UTC), '{"a":1}'
    said = standardwebhooks.Webhook(OLD).sign("msg_1", at, body)
    headers = {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": said,
    }
    told = Webhook(NEW, OLD).verify(body.encode(), headers)
    assert (told.id, told.json()) == ("msg_1", {"a": 1})
    for changed in ({"Webhook-Id": "msg_2"}, {"Webhook-Signature": "v1,AAAA"}, {"Webhook-Timestamp": "1"}):
        with pytest.raises(NotVerified):
            Webhook(OLD).verify(body.encode(), {**headers, **changed})
    with pytest.raises(NotVerified):
        Webhook(OLD).verify(b'{"a":2}', headers)
    with pytest.raises(NotVerified):
        Webhook(OLD, clock=lambda: at.timestamp() + 301).verify(body.encode(), headers)


def test_only_its_own_host_is_signed_for(tmp_path: Path) -> None:
    how = signed_by(tmp_path, NEW)
    other = Target.parse("https://example.org")
    assert other is not None
    assert "webhook-signature" not in prepared(request(), other, how, datetime.now(UTC).timestamp())[0]


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(("body", "kind"), [(b'{"order":7}', ""), (b"\x00\xff", "application/octet-stream")])
def test_cloud_events_are_read_by_their_sdk(tmp_path: Path, structured: bool, body: bytes, kind: str) -> None:
    event = Event("shop.order.paid", "/shop", "größe 7", structured=structured, extensions={"tenant": "a%b"})
    headers, sent_body = sent(signed_by(tmp_path, NEW), request(body, event, kind))
    read = from_http_event(HTTPMessage(headers, sent_body))
    assert (read.get_type(), read.get_source(), read.get_subject()) == ("shop.order.paid", "/shop", "größe 7")
    assert (read.get_id(), read.get_extension("tenant")) == (headers["webhook-id"], "a%b")
    assert read.get_time() == datetime.fromtimestamp(1_700_000_000.123456, UTC)
    assert read.get_data() == (json.loads(body) if not kind else body)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, "done"),
        (204, "done"),
        (301, "failed"),
        (409, "refused"),
        (410, "refused"),
        (429, "failed"),
        (500, "failed"),
    ],
)
def test_what_is_answered(status: int, kind: str) -> None:
    answer = answer_of(status, {"Retry-After": "7", "Location": "http://127.0.0.1/"}, b"body")
    assert answer.kind == AnswerKind(kind)
    assert answer.result == b""
    assert answer.retry_after_us == (7_000_000 if status == 429 else 0)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::a9fe:a9fe", False),
        ("64:ff9b:1:2::808:808", False),
        ("fec0::1", False),
        ("::10.0.0.1", False),
        ("::ffff:0:10.0.0.1", False),
        ("fd00::1", False),
        ("169.254.169.254", False),
        ("fd00:ec2::254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
    ],
)
def test_public_addresses_by_default(address: str, allowed: bool) -> None:
    targets = WebhookTargets(Targets())
    assert (targets.why_not_dialled("partner.example", 443, address) is None) is allowed
    host = f"[{address}]" if ":" in address else address
    assert (targets.why_not(f"http://{host}/hook") is None) is allowed


def test_private_ones_are_allowed_by_the_settings_and_metadata_never() -> None:
    assert WebhookTargets(Targets(), ["10.0.0.0/8"]).why_not("http://10.1.1.1") is None
    assert (
        WebhookTargets(Targets(), ["hooks.internal"]).why_not_dialled("hooks.internal", 80, "10.1.1.1")
        is None
    )
    assert WebhookTargets(Targets(["loopback"])).why_not("http://127.0.0.1:80") is None
    for everything in (WebhookTargets(Targets(), ["*"]), WebhookTargets(Targets(["*"]))):
        assert everything.why_not("http://169.254.169.254") is not None
        assert everything.why_not_dialled("a.example", 80, "169.254.169.254") is not None
    refused = WebhookTargets(Targets()).why_not("http://10.1.1.1")
    assert refused is not None
    assert "TXCOORD_WEBHOOKS__ALLOW=10.1.1.1:80" in refused.message
    assert WebhookTargets(Targets()).why_not("grpc://8.8.8.8:1") is not None


def test_ten_attempts_by_the_usual_schedule_then_parked() -> None:
    branch = request().branch
    defaults = Retry(5_000_000, 500_000, 2.0, 60_000_000, give_up_us=DAY_US)
    pauses = []
    at_us = began_us = 1
    for failures in range(1, 11):
        branch = replace(branch, failures=failures, attempts=failures, since_us=began_us)
        if spent(branch, defaults, at_us):
            break
        pauses.append(pause_us(own_retry(branch), defaults, failures, 0.5))
        at_us += pauses[-1]
    assert failures == 10
    assert tuple(pauses) == NOTIFY_SCHEDULE_US
    assert sum(pauses) > DAY_US  # Which is when anything else would be given up.


def test_what_its_sender_chooses_goes_before() -> None:
    branch = request().branch
    assert branch.action is not None
    for own in (Retry(schedule_us=(1, 2)), Retry(max_attempts=3), Retry(first_us=5)):
        mine = replace(branch, action=replace(branch.action, retry=own))
        assert own_retry(mine) == own
    patient = replace(branch, action=replace(branch.action, retry=Retry(call_timeout_us=9)))
    assert own_retry(patient) == Retry(call_timeout_us=9, schedule_us=NOTIFY_SCHEDULE_US)
