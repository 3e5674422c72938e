"""Whom a Coordinator believes over TLS, and what it shows of itself."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from .errors import Rejected
from .protocol import bearer, reasons

_FRESH_S = 5.0


@dataclass(frozen=True, slots=True)
class TLS:
    """TLS to the coordinator. Files in PEM.

    ``ca_file``: who must have signed the coordinator's certificate (default: whom gRPC believes). ``cert_file`` and
    ``key_file``: this service's own certificate, where the coordinator asks for one. ``server_name``: the name in the
    coordinator's certificate, where it is not the one in the address.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel, from the files as they are now. Raises Rejected for those that cannot be read."""
        key_file = self.key_file or self.cert_file
        try:
            ca, key, cert = (
                None if file is None else Path(file).read_bytes()
                for file in (self.ca_file, key_file, self.cert_file)
            )
        except OSError as error:
            raise Rejected(f"tls: {error}", reason=reasons.BAD_CREDENTIALS) from error
        return grpc.ssl_channel_credentials(ca, key, cert)

    @property
    def options(self) -> Sequence[tuple[str, str]]:
        """Of the channel."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()


class Token:
    """A bearer token, which says to the coordinator who calls.

    ``file`` has it instead of ``value``, and may be written anew at any time. It is shown over TLS and on this machine
    only, unless ``over_plaintext`` says that the network is yours alone. Raises Rejected for what is no token.
    """

    __slots__ = ("_file", "_read_at", "_value", "over_plaintext")

    def __init__(
        self, value: str = "", *, file: str | Path | None = None, over_plaintext: bool = False
    ) -> None:
        if bool(value) == (file is not None):
            raise Rejected("a Token has a value or a file", reason=reasons.BAD_CREDENTIALS)
        self._file = None if file is None else Path(file)
        self._value = _checked(value) if value else ""
        self._read_at = float("-inf")
        self.over_plaintext = over_plaintext

    def __repr__(self) -> str:
        return f"Token(file={str(self._file)!r})" if self._file is not None else "Token('…')"

    def value(self) -> str:
        """The token. Raises Rejected where its file has none."""
        if self._file is not None and time.monotonic() - self._read_at > _FRESH_S:
            try:
                self._value = _checked(self._file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise Rejected(f"the token cannot be read: {error}", reason=reasons.BAD_CREDENTIALS) from None
            self._read_at = time.monotonic()
        return self._value


def _checked(text: str) -> str:
    try:
        return bearer.checked(text)
    except ValueError as error:
        raise Rejected(str(error), reason=reasons.BAD_CREDENTIALS) from None


@dataclass(frozen=True, slots=True)
class Access:
    """Both, for all addresses of one Coordinator."""

    tls: TLS | None = None
    token: Token | None = field(default=None, repr=False)

    def check(self, address: str) -> None:
        """Raises Rejected where the token would travel in the clear."""
        if self.token is None or self.tls is not None or self.token.over_plaintext:
            return
        for one in address.split(","):
            if not bearer.stays_here(one):
                raise Rejected(
                    f"a token is not sent to {one} without TLS, where others can read it: give tls=TLS(…), or "
                    "Token(…, over_plaintext=True) if the network is yours alone",
                    reason=reasons.BAD_CREDENTIALS,
                )

    def of_host(self, host: str) -> Access:
        """For an address that this name has led to: the certificate is that of the name."""
        if self.tls is None or self.tls.server_name or not host:
            return self
        return replace(self, tls=replace(self.tls, server_name=host))

    def metadata(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """What each call brings, as its keyword arguments. Raises Rejected where there is no token in its file."""
        if self.token is None:
            return {}
        return {"metadata": ((bearer.HEADER, bearer.credentials(self.token.value())),)}


def access_of(tls: TLS | None, auth: Token | None, environment: Mapping[str, str] = os.environ) -> Access:
    """What was given; what was not, from ``TXCOORD_CA_FILE``, ``TXCOORD_CERT_FILE``, ``TXCOORD_KEY_FILE``,
    ``TXCOORD_TOKEN_FILE`` and ``TXCOORD_TOKEN_OVER_PLAINTEXT=true``."""

    def file(name: str) -> str | None:
        return environment.get(f"TXCOORD_{name}") or None

    if tls is None and (file("CA_FILE") or file("CERT_FILE")):
        tls = TLS(file("CA_FILE"), file("CERT_FILE"), file("KEY_FILE"))
    if auth is None and (token_file := file("TOKEN_FILE")):
        plain = (file("TOKEN_OVER_PLAINTEXT") or "").lower() in ("true", "1", "yes", "on")
        auth = Token(file=token_file, over_plaintext=plain)
    return Access(tls, auth)
