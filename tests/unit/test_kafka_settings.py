"""What Kafka is shown comes from the settings, and what cannot be used is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from txcoord.config import Settings
from txcoord.wiring import StartError
from txcoord.wiring.queue import kafka_connection, kafka_queue


def settings(**kafka: object) -> Settings:
    return Settings.model_validate({"kafka": {"bootstrap_servers": "a:1, b:2", **kafka}})


def test_password_from_a_file_and_tls(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    found = kafka_connection(
        settings(
            security_protocol="sasl_ssl",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_username="me",
            sasl_password_file=str(secret),
        ).kafka,
        "node",
    )
    assert found.bootstrap_servers == ("a:1", "b:2")
    assert (found.security_protocol, found.sasl_mechanism) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (found.sasl_username, found.sasl_password, found.client_id) == ("me", "hush", "node")
    assert found.ssl_context is not None
    assert found.ssl_context.check_hostname


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "ca.pem"
    wrong.write_text("none")
    with pytest.raises(StartError) as error:
        kafka_connection(settings(security_protocol="SSL", ca_file=str(wrong)).kafka, "node")
    assert error.value.reason == "BAD_CREDENTIALS"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bootstrap_servers": "kafka"}, "no broker's address"),
        ({"tiers": ""}, "at least one delay"),
        ({"tiers": "100ms"}, "between 200ms and 1d"),
        ({"prefix": "a/b"}, "pattern"),
        ({"security_protocol": "SASL_SSL", "sasl_username": "me"}, "and a password"),
        ({"sasl_username": "me"}, "security_protocol must be"),
        ({"replication_factor": 2, "min_insync_replicas": 3}, "not be more than"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(**wrong)


def test_defaults() -> None:
    queue = kafka_queue(settings().kafka)
    assert (queue.group, queue.consume, len(queue.tiers_us)) == ("txcoord.retry", True, 9)
