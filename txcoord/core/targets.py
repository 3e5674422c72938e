"""Addresses of participants, as they are written, which of them a coordinator calls, and what it says there only in its
own name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

_HOST = r"(?P<host>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?\.?|\[[0-9A-Fa-f:.]+\])"
_PATH = r"(?P<path>(?:/[\w.~!$&'()*+,;=:@%-]*)*)"
_TARGET = re.compile(
    rf"(?P<scheme>grpcs?|https?)://{_HOST}(?::(?P<port>[1-9][0-9]{{0,4}}))?{_PATH}", re.ASCII
)
_OPERATION = re.compile(rf"{_PATH}(?:\?[\w.~!$&'()*+,;=:@%/?-]*)?", re.ASCII)
_PORTS = {"http": 80, "https": 443}
_MOST = 250


@dataclass(frozen=True, slots=True)
class Target:
    """An address: ``grpc://host:port``, ``http://host:port/path``, or ``grpcs://`` and ``https://`` for TLS."""

    scheme: str
    host: str
    """In lower case, an IPv6 address without its brackets."""
    port: int
    path: str = ""

    @staticmethod
    @lru_cache(maxsize=4_096)
    def parse(text: str) -> Target | None:
        """None for what is no such address, or leads elsewhere than it seems to."""
        found = _TARGET.fullmatch(text) if len(text) <= _MOST else None
        if found is None:
            return None
        scheme, path = found["scheme"], found["path"].rstrip("/")
        port = int(found["port"] or _PORTS.get(scheme, 0))
        if not 0 < port < 65_536 or (path and scheme not in _PORTS) or not stays(path):
            return None
        host = found["host"].strip("[]").rstrip(".").lower()
        # Such as 2130706433, or 127.1: what is dialled would not be what was checked.
        if (host.replace(".", "").isdigit() or ":" in host) and meant(host) is None:
            return None
        return Target(scheme, host, port, path)

    @property
    def is_http(self) -> bool:
        """Not gRPC."""
        return self.scheme in _PORTS

    @property
    def tls(self) -> bool:
        """Is it called over TLS?"""
        return self.scheme in ("grpcs", "https")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def is_name(text: str) -> bool:
    """May it be the name of a participant?"""
    return bool(_NAME.fullmatch(text))


def is_path(text: str) -> bool:
    """May it be an HTTP operation: an absolute path, perhaps with a query?"""
    return len(text) <= 200 and text.startswith("/") and bool(_OPERATION.fullmatch(text)) and stays(text)


def stays(path: str) -> bool:
    """Does a path lead nowhere above itself, nor to another host?"""
    plain = re.sub("%2[eE]", ".", path.partition("?")[0])
    hidden = re.search("%(?:2[fF]|5[cC]|0|1|7[fF])", plain)
    # Some servers take what follows a semicolon away before they go by a segment: /..;/ is /../ to them.
    segments = {segment.partition(";")[0] for segment in re.sub("%3[bB]", ";", plain).split("/")}
    return not hidden and "//" not in plain and not {".", ".."} & segments


# ---- whom a coordinator calls ----

NOT_ALLOWED = "TARGET_NOT_ALLOWED"
UNKNOWN = "UNKNOWN_PARTICIPANT"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,63}", re.ASCII)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEVER: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "::/128",  # this host, by other names
        "169.254.0.0/16", "fe80::/10",  # link-local: the metadata service of most clouds
        "fd00:ec2::/32", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",  # those of others
        "224.0.0.0/4", "ff00::/8", "255.255.255.255/32",
    )
)  # fmt: skip
"""Called for nobody, whatever the settings say."""
_LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_HIDING: tuple[ipaddress.IPv6Network, ...] = tuple(
    ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")
)
"""In these the last 32 bits are an address of IPv4 (RFC 6052, 2765, 4291)."""
_SMALLEST_IPV4 = 1 << 16
"""Below it ``::/96`` has what is no address of IPv4: ``::`` and ``::1``."""
_PATTERN = re.compile(
    r"(?P<host>(?:\*\.)?[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?)(?::(?P<port>[1-9][0-9]{0,4}))?", re.ASCII
)


_RESERVED = (
    "authorization", "client-cert", "client-cert-*", "cookie", "forwarded", "proxy-*", "remote-*", "true-client-ip",
    "via", "x-auth-*", "x-authenticated-*", "x-client-cert*", "x-client-ip", "x-forwarded-*", "x-http-method*",
    "x-method-override", "x-original-*", "x-real-ip", "x-remote-*", "x-rewrite-*", "x-ssl-*",
)  # fmt: skip
"""Headers by which services believe who calls them and from where, or that lead to another method or path: a service
that trusts the coordinator's address, or its token, would believe any client."""
_HEADER = re.compile(r"[a-z0-9][a-z0-9-]*\*?", re.ASCII)


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """Why an address is not called."""

    reason: str
    message: str


def meant(text: str) -> Address | None:
    """The address that is reached by an address: that which another form of it hides. None for what is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour
        if hidden is None and int(address) >= _SMALLEST_IPV4 and any(address in net for net in _HIDING):
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return hidden or address
    return address


def plain_name(header: str) -> str:
    """A header's name as it may arrive: many servers (CGI, WSGI, PHP) make one of dashes, underscores and dots."""
    return header.lower().replace("_", "-").replace(".", "-")


def _header(text: str) -> str:
    name = plain_name(text)
    if not _HEADER.fullmatch(name):
        raise ValueError(
            f"{text[:80]!r} is no header's name, such as x-user, or x-user-* for all that begin so"
        )
    return name


class Targets:
    """Which participants a coordinator calls: those that its settings name, and for clients that name addresses those
    whose host or network is allowed.

    ``allow``: ``host``, ``host:port``, ``*.domain``, a network such as ``10.0.0.0/8``, ``loopback``, or ``*``.
    ``reserved``: headers that clients may not send to them, beside those that nobody may: ``x-user``, ``x-user-*``.
    Raises ValueError for what is none of them.
    """

    def __init__(
        self,
        allow: Iterable[str] = (),
        named: Mapping[str, Iterable[str]] | None = None,
        reserved: Iterable[str] = (),
    ) -> None:
        headers = [*_RESERVED, *map(_header, reserved)]
        self._reserved = frozenset(h for h in headers if not h.endswith("*"))
        self._reserved_beginnings = tuple(h[:-1] for h in headers if h.endswith("*"))
        self._hosts: list[tuple[str, int]] = []
        self._networks: list[Network] = []
        self._all = self._loopback = False
        for entry in allow:
            self._allow(entry)
        self.named: dict[str, tuple[Target, ...]] = {}
        for name, addresses in (named or {}).items():
            self.named[name] = tuple(map(_read, addresses))
        self._own: dict[Target, str] = {}
        for name, targets in self.named.items():
            for target in targets:
                self._own.setdefault(target, name)
        self._own_places = {(target.host, target.port) for target in self._own}
        self.is_registered: Callable[[str], bool] = _nobody
        """Has a participant of this name told by itself where it is? The settings win over that."""

    def _allow(self, entry: str) -> None:
        if entry == "*":
            self._all = True
        elif entry == "loopback":
            self._loopback = True
        elif (network := _network(entry)) is not None:
            self._networks.append(network)
        elif (found := _PATTERN.fullmatch(entry)) is not None and int(found["port"] or 1) < 65_536:
            self._hosts.append((found["host"].lower(), int(found["port"] or 0)))
        else:
            raise ValueError(
                f"{entry[:80]!r} is no host (stock.internal, stock.internal:8080, *.internal), no network "
                "(10.0.0.0/8), not loopback and not *"
            )

    def name_of(self, target: Target) -> str:
        """A participant that has this address by the settings; empty if there is none."""
        return self._own.get(target, "")

    def why_not(self, text: str) -> NotAllowed | None:
        """Why a participant that a client names is not called, as far as that can be told before its host is looked
        up; None: it may be."""
        if "://" not in text and _NAME.fullmatch(text):
            if text in self.named or self.is_registered(text):
                return None
            return NotAllowed(
                UNKNOWN,
                f"this coordinator knows no participant {text!r}: set participants.{text}.addresses, let it register "
                "itself, or give its address, such as grpc://host:port",
            )
        target = Target.parse(text)
        if target is None:
            return NotAllowed(
                UNKNOWN,
                f"{text[:120]!r} is no address of a participant, such as grpc://host:port or http://host:port/path",
            )
        if target in self._own:
            return None
        address = meant(target.host)
        if address is not None:
            return self.why_not_dialled(target.host, target.port, str(address))
        if self.by_host(target.host, target.port) or self._networks:
            return None
        return self._refused(target.host, target.port)

    def reserves(self, header: str) -> bool:
        """Is a header none that a client may have sent to a participant?"""
        name = plain_name(header)
        return name in self._reserved or name.startswith(self._reserved_beginnings)

    def is_own(self, host: str, port: int) -> bool:
        """Is an address there by the settings?"""
        return (host, port) in self._own_places

    def why_not_dialled(self, host: str, port: int, address: str, *, own: bool = False) -> NotAllowed | None:
        """Why ``address``, which ``host`` has been found to be, is not dialled; None: it may be. ``own``: the settings
        say so."""
        found = meant(address)
        if found is None or any(found in network for network in _NEVER):
            return NotAllowed(
                NOT_ALLOWED,
                f"{host}:{port} is {address}: link-local, multicast and metadata addresses are never called",
            )
        if own or self.by_host(host, port):
            return None
        if any(found in network for network in self._networks) or (self._loopback and is_loopback(found)):
            return None
        return self._refused(host, port, address)

    def names(self, host: str, port: int) -> bool:
        """Is it among them, without being looked up?"""
        return self.by_host(host, port) or (
            meant(host) is not None and self.why_not_dialled(host, port, host) is None
        )

    def by_host(self, host: str, port: int) -> bool:
        """Is it allowed by its name?"""
        if self._all or (self._loopback and (host == "localhost" or host.endswith(".localhost"))):
            return True
        return any(
            (host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:])))
            and wanted in (0, port)
            for pattern, wanted in self._hosts
        )

    def _refused(self, host: str, port: int, address: str = "") -> NotAllowed:
        seen = f" ({address})" if address and address != host else ""
        return NotAllowed(
            NOT_ALLOWED,
            f"this coordinator does not call {host}:{port}{seen}: allow it by TXCOORD_TARGETS__ALLOW={host}:{port} "
            "(targets.allow: hosts and networks), or name the participant: TXCOORD_PARTICIPANTS__<name>__ADDRESSES",
        )


def _nobody(_name: str) -> bool:
    return False


def is_loopback(address: Address) -> bool:
    """Is it this machine's own?"""
    return any(address in network for network in _LOOPBACK)


ANYBODY = Targets(["*"])


def _read(text: str) -> Target:
    target = Target.parse(text)
    if target is None:
        raise ValueError(f"{text[:120]!r} is no address such as grpc://host:port or https://host/path")
    return target


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        if "/" in text:
            raise ValueError(f"{text[:80]!r} is no network: {error}") from None
        return None
