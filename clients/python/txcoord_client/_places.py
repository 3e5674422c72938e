"""Where participants are, for whoever calls their tries, and what they are shown."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from ._pb import common_pb2 as c
from .errors import Rejected
from .protocol import identifiers, reasons

_SCHEMES = ("grpc://", "grpcs://", "http://", "https://")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    token: str = ""
    """Bearer token that its calls bring."""
    by_name: bool = False
    """The coordinator's settings have the participant's addresses: branches name it, and this address is only for this
    process."""
    ca_file: str = ""
    """TLS: whom to believe, in PEM; empty: the system's authorities."""
    cert_file: str = ""
    """TLS: this process's own certificate, in PEM."""
    key_file: str = ""
    """Its key, unless that is in the same file."""


@dataclass(frozen=True, slots=True)
class ParticipantAt(_Shown):
    """Where a participant is, in ``Coordinator(participants={"stock": ParticipantAt("grpcs://stock:9000", …)})``."""

    address: str
    """``grpc://host:port``, ``http://host:port/path``, or ``grpcs://`` and ``https://`` for TLS."""

    @property
    def is_http(self) -> bool:
        """Is it reached over HTTP?"""
        return self.address.startswith("http")

    @property
    def host(self) -> str:
        """Without its scheme."""
        return self.address.partition("://")[2]

    @property
    def authorization(self) -> str:
        """The value of the header; empty for none."""
        return f"Bearer {self.token}" if self.token else ""

    def context(self) -> ssl.SSLContext:
        """For HTTP. Raises OSError for files that cannot be used."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None)
        return context

    @property
    def options(self) -> list[tuple[str, int]]:
        """Of a channel to it."""
        # One that is back is found within seconds: gRPC's own pauses grow to two minutes.
        return [
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ]

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For gRPC; None without TLS. Raises OSError."""
        if not self.address.startswith("grpcs://"):
            return None
        files = (self.ca_file, self.key_file or self.cert_file, self.cert_file)
        return grpc.ssl_channel_credentials(*(Path(f).read_bytes() if f else None for f in files))


def places_of(participants: Mapping[str, str | ParticipantAt]) -> dict[str, ParticipantAt]:
    """As ``Coordinator`` takes them. Raises Rejected."""
    out = {}
    for name, said in participants.items():
        place = ParticipantAt(said) if isinstance(said, str) else said
        if not identifiers.is_name(name) or not place.address.startswith(_SCHEMES):
            raise Rejected(
                f"participants={{{name!r}: {place.address!r}}}: a name, and an address such as grpc://host:port or "
                "http://host:port",
                reason=reasons.UNKNOWN_PARTICIPANT,
            )
        out[name] = place
    return out


def place_of(places: Mapping[str, ParticipantAt], name: str) -> ParticipantAt:
    """Where a participant is. Raises Rejected."""
    found = places.get(name)
    if found is None:
        raise Rejected(
            f"participant {name!r} has no address: Coordinator(participants={{{name!r}: 'grpc://host:port'}}), or "
            "'http://host:port'",
            reason=reasons.UNKNOWN_PARTICIPANT,
            facts={"participant": name},
        )
    return found


def target_of(places: Mapping[str, ParticipantAt], name: str) -> str:
    """What a branch names: the address, or the name where the coordinator has the addresses itself."""
    found = places.get(name)
    return name if found is None or found.by_name else found.address


_OF_THE_CALL = frozenset({reasons.UNKNOWN_OPERATION, reasons.BAD_REQUEST})


def said_of(answer: c.BranchAnswer) -> str:
    """What a participant answered, for people."""
    return f"{answer.reason}: {answer.message}" if answer.message else answer.reason


def refuse_misspelt(place: ParticipantAt, answer: c.BranchAnswer, attempt: int) -> None:
    """Raises Rejected where the call itself is wrong, so that it need not be made again: the operation is not there, or
    its arguments do not fit."""
    if answer.kind == c.ANSWER_KIND_FAILED and answer.reason in _OF_THE_CALL:
        raise Rejected(
            f"{place.address}: {answer.message or 'the call is wrong'}",
            reason=answer.reason,
            # An earlier attempt may have come to another instance, which has not answered.
            definite=attempt <= 1,
            facts=dict(answer.facts),
        )
