"""What can be set, and the defaults.

Each setting that exists has an effect: those of kinds that this version does not carry out yet come with them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from ..core.targets import Targets
from ..core.webhooks import WebhookTargets
from .events import EventsSettings
from .kafka import KafkaSettings
from .targets import TargetSettings
from .values import (
    PREFIX,
    CommaList,
    Duration,
    LogUrl,
    RedisUrl,
    ResourceUrl,
    Size,
    database_of,
    host_name,
    is_loopback,
    items,
    participant_name,
    resource_name,
    split_listen,
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TlsSettings(_Part):
    """TLS of what listens: the gRPC API and the HTTP API."""

    cert_file: FilePath | None = Field(None, description="The server's certificate and its chain, in PEM.")
    key_file: FilePath | None = Field(None, description="Its key, unless that is in the same file.")
    client_ca_file: FilePath | None = Field(
        None,
        description="Mutual TLS: who must have signed a client's certificate, in PEM. Default: none is asked for.",
    )

    @model_validator(mode="after")
    def _whole(self) -> TlsSettings:
        if self.cert_file is None and (self.key_file or self.client_ca_file):
            raise ValueError("key_file or client_ca_file without cert_file")
        return self


class AuthSettings(_Part):
    """Who may do what."""

    token_file: FilePath | None = Field(
        None,
        description="Bearer tokens, a line each: name, role (viewer, client, operator, admin), namespace or *, token. "
        "Without it whoever can connect may do everything.",
    )


class NodeSettings(_Part):
    """This process among its like."""

    name: str = Field("", description="Name of this node; must be its own. Default: host name and port.")
    drain_timeout: Duration = Field(
        timedelta(seconds=10), description="At SIGTERM: how long phase two of what is live may still take."
    )
    clock_tolerance: Duration = Field(
        timedelta(seconds=2), description="A node whose clock is further off neither scans nor takes over."
    )


class LogSettings(_Part):
    """The transaction log."""

    url: LogUrl = Field(
        SecretStr("sqlite+aiosqlite:///txcoord.db"),
        description="SQLite, PostgreSQL or MariaDB.",
        validate_default=True,
    )
    statement_timeout: Duration = Field(timedelta(seconds=10), description="Of one statement on it.")


class ResourceSettings(_Part):
    """A database on which the coordinator finishes branches."""

    url: ResourceUrl = Field(description="postgresql://user:password@host:5432/database")
    width: int = Field(8, ge=1, le=100, description="Connections at most.")
    timeout: Duration = Field(timedelta(seconds=5), description="Of one statement on it.")
    execute_url: ResourceUrl | None = Field(
        None,
        description="The same database under a role of its own, for best-effort SQL. Without it none is run here.",
    )
    execute_namespaces: CommaList = Field(
        "default", description="For which namespaces it is run, with commas; * for all."
    )


class ParticipantSettings(_Part):
    """A participant that branches name."""

    addresses: CommaList = Field(
        description="grpc://host:port, grpcs://, http://host:port/path, https://; with commas: the first that is well."
    )
    token_file: FilePath | None = Field(
        None, description="A bearer token that its calls bring, and no others."
    )

    @field_validator("addresses")
    @classmethod
    def _readable(cls, value: str) -> str:
        if not items(value):
            raise ValueError("at least one address is needed")
        Targets(named={"it": items(value)})
        return value


class WebhookSettings(_Part):
    """Notifications over HTTP, to whoever has asked for them."""

    allow: CommaList = Field(
        "",
        description="Private addresses that are sent to all the same, with commas, as in targets.allow. Public ones "
        "always are; link-local and metadata addresses never.",
    )

    @field_validator("allow")
    @classmethod
    def _entries(cls, value: str) -> str:
        Targets(items(value))
        return value


class WebhookSecretSettings(_Part):
    """Secrets that sign what is sent to some hosts."""

    hosts: CommaList = Field(
        description="With commas: partner.example, partner.example:8443, *.partner.example."
    )
    file: FilePath = Field(
        description="Secrets, one a line, the newest first, such as whsec_…: all of them sign. May be written anew."
    )

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: str) -> str:
        if not items(value):
            raise ValueError("at least one host is needed")
        Targets(items(value))
        return value


class DeadlineSettings(_Part):
    """Deadlines of transactions."""

    default: Duration = Field(timedelta(seconds=30), description="When the caller gives none.")
    max: Duration = Field(timedelta(hours=24), description="Further away is refused.")

    @model_validator(mode="after")
    def _ordered(self) -> DeadlineSettings:
        if self.default > self.max:
            raise ValueError("default must not be longer than max")
        return self


class RecoverySettings(_Part):
    """What finishes what nobody else finishes."""

    lease: Duration = Field(timedelta(seconds=10), description="Of a row in phase two, and of a node's name.")
    scan_interval: Duration = Field(timedelta(seconds=10), description="Between two scans of a resource.")
    grace: Duration = Field(
        timedelta(seconds=5), description="After its deadline, before an orphan is rolled back."
    )
    hold: Duration = Field(
        timedelta(seconds=2),
        description="MariaDB: how long the session that prepared a branch has to finish it, before it is ended. With "
        "several nodes more than 1s: that often a session asks for what another node has decided.",
    )


class BackoffSettings(_Part):
    """Pauses between attempts of phase two, full jitter."""

    first: Duration = timedelta(milliseconds=500)
    factor: float = Field(2.0, ge=1.0, le=10.0)
    cap: Duration = timedelta(seconds=60)


class RetentionSettings(_Part):
    """How long what is kept; see *Windows* in the docs."""

    detail: Duration = Field(timedelta(days=7), description="Branches and history of ended transactions.")
    rows: Duration = Field(
        timedelta(days=90), description="The bare row of a tx id and its gid, and after it the marker rows."
    )

    @model_validator(mode="after")
    def _ordered(self) -> RetentionSettings:
        if not self.detail < self.rows:
            raise ValueError("detail < rows must hold, or a late repetition could act twice")
        if self.rows < timedelta(minutes=2):
            raise ValueError("rows must be at least 2m: a statement of the log may take that long")
        return self


class RedisSettings(_Part):
    """What the nodes of a fleet share. Without it, or while it is away, all is right as well, only later or dearer."""

    url: RedisUrl = Field(
        SecretStr(""),
        description="Redis or Valkey: redis://user:password@host:6379, rediss:// (TLS), unix:///a.sock; empty: none.",
    )
    prefix: str = Field(
        "txcoord",
        pattern=r"^[A-Za-z0-9_.-]{1,40}$",
        description="Before each key and channel; the log's id comes after it.",
    )
    timeout: Duration = Field(
        timedelta(milliseconds=250), description="Of one command; then this node goes on without."
    )
    ca_file: FilePath | None = Field(
        None, description="TLS: whom to believe, in PEM. Default: the system's authorities."
    )


class LimitSettings(_Part):
    """What a request may bring."""

    payload: Size = 256 * 1024
    message: Size = 4 * 1024 * 1024
    operations: int = Field(1_000, ge=1, description="In one message.")
    branches: int = Field(1_000, ge=1, description="Of one transaction.")
    http_connections: int = Field(
        1_000, ge=1, description="To the HTTP API at a time; a further one is answered 503."
    )


class Settings(BaseSettings):
    """All settings of a coordinator."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        hide_input_in_errors=True,
    )

    insecure_listen: bool = Field(
        False, description="Listen on other than loopback also without TLS or without tokens."
    )
    tls: TlsSettings = TlsSettings()
    auth: AuthSettings = AuthSettings()
    listen: str = Field("127.0.0.1:7070", description="Where the gRPC API listens.")
    http_address: str = Field("", description="Where the HTTP/JSON API listens; empty: it does not.")
    http_hosts: CommaList = Field(
        "",
        description="Names by which the HTTP API is called, with commas: txcoord.internal, *.internal; another Host is "
        "refused. Default: on loopback localhost, elsewhere any name. Set it where browsers can reach the API.",
    )
    metrics_address: str = Field(
        "",
        description="Where Prometheus finds /metrics; empty: nowhere. It shows figures and names of targets, and takes "
        "nothing: it may be reached from other machines.",
    )
    reflection: bool = Field(False, description="gRPC server reflection.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else JSON."
    )
    node: NodeSettings = NodeSettings()
    log: LogSettings = LogSettings()
    resources: dict[Annotated[str, AfterValidator(resource_name)], ResourceSettings] = Field(
        default_factory=dict
    )
    participants: dict[Annotated[str, AfterValidator(participant_name)], ParticipantSettings] = Field(
        default_factory=dict
    )
    targets: TargetSettings = TargetSettings()
    webhooks: WebhookSettings = WebhookSettings()
    webhook_secrets: dict[Annotated[str, AfterValidator(participant_name)], WebhookSecretSettings] = Field(
        default_factory=dict
    )
    deadline: DeadlineSettings = DeadlineSettings()
    recovery: RecoverySettings = RecoverySettings()
    backoff: BackoffSettings = BackoffSettings()
    retention: RetentionSettings = RetentionSettings()
    limits: LimitSettings = LimitSettings()
    redis: RedisSettings = RedisSettings()
    kafka: KafkaSettings = KafkaSettings()
    events: EventsSettings = EventsSettings()

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("listen", "http_address")
    @classmethod
    def _guarded(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.field_name == "http_address":
            return value
        host, port = split_listen(value)
        if info.field_name == "http_address" and port and value == info.data.get("listen"):
            raise ValueError(f"{value!r} is where the gRPC API listens: HTTP needs an address of its own")
        tls, auth = info.data.get("tls"), info.data.get("auth")
        if is_loopback(host) or info.data.get("insecure_listen") or tls is None or auth is None:
            return value  # What is wrong with tls or auth is told already.
        missing = [
            setting
            for setting, there in (("TLS__CERT_FILE", tls.cert_file), ("AUTH__TOKEN_FILE", auth.token_file))
            if there is None
        ]
        if missing:
            raise ValueError(
                f"{value!r} can be reached from other machines: without TLS and tokens whoever is on the way can read, "
                f"commit and abort anything. Set {' and '.join(PREFIX + m for m in missing)}. If the network is yours "
                f"alone, say so: {PREFIX}INSECURE_LISTEN=true (or --insecure-listen)"
            )
        return value

    @field_validator("metrics_address")
    @classmethod
    def _apart(cls, value: str, info: ValidationInfo) -> str:
        if (
            value
            and split_listen(value)[1]
            and value in (info.data.get("listen"), info.data.get("http_address"))
        ):
            raise ValueError(f"{value!r} is taken by an API: metrics need an address of their own")
        return value

    @field_validator("events")
    @classmethod
    def _somewhere(cls, value: EventsSettings, info: ValidationInfo) -> EventsSettings:
        kafka = info.data.get("kafka")
        if value.any and kafka is not None and not kafka.addresses:
            which = "events.enabled" if value.enabled else "events.dead_letters"
            raise ValueError(
                f"{which} needs Kafka, which is where events go: set kafka.bootstrap_servers "
                f"({PREFIX}KAFKA__BOOTSTRAP_SERVERS)"
            )
        return value

    @field_validator("http_hosts")
    @classmethod
    def _names(cls, value: str) -> str:
        for name in items(value):
            host_name(name)
        return value

    @field_validator("resources")
    @classmethod
    def _different(cls, value: dict[str, ResourceSettings]) -> dict[str, ResourceSettings]:
        seen: dict[tuple[str, int, str], str] = {}
        for name, resource in value.items():
            database = database_of(resource.url.get_secret_value())
            if database in seen:
                raise ValueError(
                    f"{seen[database]!r} and {name!r} are the same database ({database[0]}:{database[1]}/"
                    f"{database[2]}): a database has one name, or the scanner of one would judge the branches of "
                    "the other"
                )
            seen[database] = name
        return value

    @field_validator("participants")
    @classmethod
    def _once(cls, value: dict[str, ParticipantSettings]) -> dict[str, ParticipantSettings]:
        seen: dict[object, str] = {}
        for name, participant in value.items():
            for target in Targets(named={name: items(participant.addresses)}).named[name]:
                other = seen.setdefault(target, name)
                if value[other].token_file != participant.token_file:
                    raise ValueError(
                        f"{other!r} and {name!r} have one address, {target}, but not one token_file"
                    )
        return value

    @property
    def called(self) -> Targets:
        """Which participants are called."""
        allow = self.targets.allow
        if allow == "auto":
            # Who can reach this node is on its machine, and could call there himself.
            here = all(is_loopback(split_listen(at)[0]) for at in (self.listen, self.http_address) if at)
            allow = "loopback" if here else ""
        named = {name: items(p.addresses) for name, p in self.participants.items()}
        return Targets(items(allow), named, items(self.targets.reserved_headers))

    def notified(self, called: Targets) -> Targets:
        """Whom notifications are sent to, beside the participants that are called."""
        return WebhookTargets(called, items(self.webhooks.allow))

    @property
    def node_name(self) -> str:
        """The node's name: its own, or one that no other node has, and that it has again after a restart.

        By its name a node takes its rows back at once, instead of waiting for their leases to run out.
        """
        if self.node.name:
            return self.node.name
        if self.log.url.get_secret_value().startswith("sqlite"):
            return socket.gethostname()  # A log on SQLite has only one node, wherever it listens.
        port = split_listen(self.listen)[1]
        return f"{socket.gethostname()}-{port or f'pid{os.getpid()}'}"


def leaves(model: BaseModel, above: str = "") -> Iterator[tuple[str, object]]:
    """Every setting as ``a.b`` and its value, in order."""
    for name, field in type(model).model_fields.items():
        key = f"{above}{field.alias or name}"
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{key}.")
        elif isinstance(value, dict):
            for item, part in value.items():
                yield from leaves(part, f"{key}.{item}.")
        else:
            yield key, value
