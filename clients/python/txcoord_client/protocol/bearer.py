"""Bearer tokens: what one looks like, and to whom one may be shown in the clear."""

from __future__ import annotations

import ipaddress

HEADER = "authorization"
_SHORTEST = 20


def checked(token: str) -> str:
    """A token without the blanks around it. Raises ValueError, which does not say the token."""
    token = token.strip()
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"a token is one word of {_SHORTEST} or more printable ASCII characters")
    return token


def credentials(token: str) -> str:
    """The value of the header."""
    return f"Bearer {token}"


def shown(header: str) -> str:
    """The token in the header's value; empty where there is none."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def stays_here(address: str) -> bool:
    """Does this gRPC target, ``host:port``, lead to this machine only?"""
    name = address.removeprefix("dns:///")
    if name.startswith(("unix:", "unix-abstract:")):
        return True
    bracketed = name.startswith("[")
    host = name[1:].partition("]")[0] if bracketed else name.rpartition(":")[0] or name
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
