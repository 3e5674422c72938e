"""What the coordinator shows to participants, and whom it believes over TLS."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from ...core.targets import Target, Targets

_FRESH_S = 10.0


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. Without ``ca`` the system's own authorities are believed."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For HTTP. Raises OSError (ssl.SSLError is one) for files that cannot be used."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context

    def channel(self) -> grpc.ChannelCredentials:
        """For gRPC. Raises OSError."""
        return grpc.ssl_channel_credentials(*(None if f is None else f.read_bytes() for f in self._files()))

    def _files(self) -> tuple[Path | None, Path | None, Path | None]:
        # gRPC takes both or none; a key may be in the file of its certificate.
        return self.ca, (self.key or self.cert), self.cert


class TokenFile:
    """A bearer token in a file, which may be written anew at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at = float("-inf")
        self._token = ""

    def token(self) -> str:
        """The token. Raises OSError, ValueError."""
        if time.monotonic() - self._read_at > _FRESH_S:
            token = self._path.read_text(encoding="utf-8").strip()
            if not token or not token.isascii() or not token.isprintable() or " " in token:
                raise ValueError(f"{self._path} has no token: one word of printable ASCII")
            self._token, self._read_at = token, time.monotonic()
        return self._token


@dataclass(frozen=True)
class Credentials:
    """For all calls of a node."""

    targets: Targets
    tls: Tls = Tls()
    tokens: Mapping[str, TokenFile] = field(default_factory=dict)
    """By the participant's name. Only its own addresses get it, never one that a client has made up."""

    def check(self) -> None:
        """Raises OSError, ValueError for files that cannot be used."""
        if self.tls != Tls():
            self.tls.context()
            self.tls.channel()
        for file in self.tokens.values():
            file.token()

    def authorization(self, target: Target) -> str:
        """The value of the header; empty for none. Raises OSError, ValueError."""
        file = self.tokens.get(self.targets.name_of(target))
        return f"Bearer {file.token()}" if file is not None else ""
