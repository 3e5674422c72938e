"""Settings of Apache Kafka."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    field_validator,
    model_validator,
)

from ..core.topics import Topics
from .values import CommaList, Duration, items, microseconds, parse_duration, show_duration

_SHORTEST = timedelta(milliseconds=200)
_LONGEST = timedelta(hours=24)


class KafkaSettings(BaseModel):
    """Apache Kafka, for what waits for a later attempt (without it that is held in the coordinators' processes), and
    for messages to topics."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    bootstrap_servers: CommaList = Field(
        "", description="host:port of some brokers, with commas. Empty: no Kafka is used."
    )
    prefix: str = Field(
        "txcoord",
        pattern=r"^[a-zA-Z0-9._-]{1,100}$",
        description="What the names of topics begin with; one for each log.",
    )
    group: str = Field(
        "", description="The consumer group of those who read retries. Default: <prefix>.retry."
    )
    consume: bool = Field(
        True,
        description="Does this coordinator read retries, too? false: only workers do (`txcoord worker`); while there "
        "is none, the take-over of what is overdue does it, later.",
    )
    tiers: CommaList = Field(
        "1s, 2s, 4s, 8s, 16s, 32s, 64s, 5m, 1h",
        description="Delays of the retry topics, with commas, each longer than the one before; the same for all nodes.",
    )
    partitions: int = Field(
        4, ge=1, le=1000, description="Of a topic that is made: how many may read it side by side."
    )
    replication_factor: int = Field(
        0, ge=0, le=10, description="Of a topic that is made. 0: as many as there are brokers, at most 3."
    )
    min_insync_replicas: int = Field(
        0,
        ge=0,
        le=10,
        description="Of a topic that is made. 0: one less than there are replicas, at least 1.",
    )
    topics: CommaList = Field(
        "",
        description="On which topics messages and notifications may be put, with commas: orders.paid, orders.*; of a "
        "namespace other than default: shop/orders.*; of any: */audit. Empty: none.",
    )
    session_timeout: Duration = Field(
        timedelta(seconds=10), description="When others read on for a worker that is not heard of any more."
    )
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
    ] = Field("PLAINTEXT", description="How brokers are reached.")
    ca_file: FilePath | None = Field(
        None, description="TLS to brokers: whom to believe, in PEM. Default: the system's authorities."
    )
    cert_file: FilePath | None = Field(None, description="TLS to brokers: our certificate, in PEM.")
    key_file: FilePath | None = Field(None, description="Its key, unless that is in the same file.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="How we say who we are, with SASL."
    )
    sasl_username: str = Field("", description="With SASL: our name.")
    sasl_password: SecretStr | None = Field(None, description="With SASL: our password.")
    sasl_password_file: FilePath | None = Field(None, description="A file with that password, instead.")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The brokers that are asked first."""
        return items(self.bootstrap_servers)

    @property
    def tiers_us(self) -> tuple[int, ...]:
        """The delays, shortest first."""
        return tuple(microseconds(parse_duration(tier)) for tier in items(self.tiers))

    @property
    def group_name(self) -> str:
        """The consumer group."""
        return self.group or f"{self.prefix}.retry"

    @field_validator("bootstrap_servers")
    @classmethod
    def _with_port(cls, value: str) -> str:
        for address in items(value):
            host, colon, port = address.rpartition(":")
            if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
                raise ValueError(f"{address[:80]!r} is no broker's address, such as kafka1:9092")
        return value

    @field_validator("topics")
    @classmethod
    def _topics(cls, value: str) -> str:
        Topics(items(value))
        return value

    @field_validator("tiers")
    @classmethod
    def _growing(cls, value: str) -> str:
        delays = [parse_duration(tier) for tier in items(value)]
        if not delays:
            raise ValueError("at least one delay is needed")
        if any(later <= earlier for earlier, later in pairwise(delays)):
            raise ValueError("each delay must be longer than the one before")
        if delays[0] < _SHORTEST or delays[-1] > _LONGEST:
            raise ValueError(
                f"delays are between {show_duration(_SHORTEST)} and {show_duration(_LONGEST)} long"
            )
        if any(delay % timedelta(milliseconds=1) for delay in delays):
            raise ValueError("delays are whole milliseconds")
        return value

    @model_validator(mode="after")
    def _whole(self) -> KafkaSettings:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file without cert_file")
        if self.sasl_password_file is not None and self.sasl_password is not None:
            raise ValueError("sasl_password and sasl_password_file: one of them")
        sasl = self.security_protocol.startswith("SASL")
        if sasl and not (self.sasl_username and (self.sasl_password or self.sasl_password_file)):
            raise ValueError(f"security_protocol {self.security_protocol} needs sasl_username and a password")
        if self.sasl_username and not sasl:
            raise ValueError("sasl_username: security_protocol must be SASL_SSL or SASL_PLAINTEXT")
        if (self.ca_file or self.cert_file) and not self.security_protocol.endswith("SSL"):
            raise ValueError("ca_file, cert_file: security_protocol must be SSL or SASL_SSL")
        if self.topics and not self.addresses:
            raise ValueError("topics: bootstrap_servers must be set too")
        if 0 < self.replication_factor < self.min_insync_replicas:
            raise ValueError("min_insync_replicas must not be more than replication_factor")
        return self
