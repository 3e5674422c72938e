"""Addresses of participants, as they are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

_HOST = r"(?P<host>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?\.?|\[[0-9A-Fa-f:.]+\])"
_PATH = r"(?P<path>(?:/[\w.~!$&'()*+,;=:@%-]*)*)"
_TARGET = re.compile(
    rf"(?P<scheme>grpc|http|https)://{_HOST}(?::(?P<port>[1-9][0-9]{{0,4}}))?{_PATH}", re.ASCII
)
_OPERATION = re.compile(rf"{_PATH}(?:\?[\w.~!$&'()*+,;=:@%/?-]*)?", re.ASCII)
_PORTS = {"http": 80, "https": 443}
_MOST = 250


@dataclass(frozen=True, slots=True)
class Target:
    """An address: ``grpc://host:port``, ``http://host:port/path`` or ``https://…``."""

    scheme: str
    host: str
    """In lower case, an IPv6 address without its brackets."""
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None for what is no such address, or leads elsewhere than it seems to."""
        found = _TARGET.fullmatch(text) if len(text) <= _MOST else None
        if found is None:
            return None
        scheme, path = found["scheme"], found["path"].rstrip("/")
        port = int(found["port"] or _PORTS.get(scheme, 0))
        if not 0 < port < 65_536 or (scheme == "grpc" and path) or not stays(path):
            return None
        return cls(scheme, found["host"].strip("[]").rstrip(".").lower(), port, path)

    @property
    def is_http(self) -> bool:
        """Not gRPC."""
        return self.scheme in _PORTS


def is_path(text: str) -> bool:
    """May it be an HTTP operation: an absolute path, perhaps with a query?"""
    return len(text) <= 200 and text.startswith("/") and bool(_OPERATION.fullmatch(text)) and stays(text)


def stays(path: str) -> bool:
    """Does a path lead nowhere above itself, nor to another host?"""
    plain = re.sub("%2[eE]", ".", path.partition("?")[0])
    hidden = re.search("%(?:2[fF]|5[cC]|0|1|7[fF])", plain)
    return not hidden and "//" not in plain and not {".", ".."} & set(plain.split("/"))
