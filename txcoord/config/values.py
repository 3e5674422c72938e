"""Durations, sizes, URLs and addresses as people write them."""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from txcoord_client.protocol import identifiers

PREFIX = "TXCOORD_"

# ---- durations and sizes ----

_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:us|ms|s|m|h|d))+")
_SIZES = {"": 1, "b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


def parse_duration(value: object) -> timedelta:
    """``2s``, ``500ms``, ``1h30m``, ``7d``."""
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower().replace(" ", "")
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{str(value)[:40]!r} is no duration: write it like 500ms, 2s, 10m, 24h or 7d")
    parts = re.findall(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)", text)
    return timedelta(microseconds=round(sum(float(number) * _UNITS[unit] for number, unit in parts)))


def show_duration(value: timedelta) -> str:
    """The way it would be written in a setting."""
    left, out = microseconds(value), ""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, left = divmod(left, _UNITS[unit])
        out += f"{count}{unit}" if count else ""
    return out or "0s"


def microseconds(value: timedelta) -> int:
    """A duration as the engine takes it."""
    return value // timedelta(microseconds=1)


def parse_size(value: object) -> int:
    """Bytes: a number, or ``256KiB``, ``4MiB``."""
    match = re.fullmatch(r"(\d+)\s*([a-z]*)", str(value).strip().lower())
    if match is None or match[2] not in _SIZES:
        raise ValueError(f"{str(value)[:40]!r} is no size: write it like 4096, 256KiB or 4MiB")
    return int(match[1]) * _SIZES[match[2]]


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than nothing")
    return value


Duration = Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_positive)]
DurationOrNone = Annotated[
    timedelta, BeforeValidator(lambda v: timedelta(0) if v in (0, "0") else parse_duration(v))
]
"""0 is none."""
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]

# ---- addresses of databases ----


def redacted(url: str) -> str:
    """The URL without its passwords. Also of a URL that is written wrong: rather too much is hidden."""
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        return url
    main, mark, query = rest.partition("?")
    if "@" not in main and "@" in query and ":" in main.partition("/")[0]:
        main, mark, query = rest, "", ""  # Perhaps a "?" in a password.
    head, at, tail = main.rpartition("@")
    if at:
        user, colon, _ = head.partition(":")
        main = f"{user}{':***' if colon else ''}@{tail}"
    query = re.sub(r"(?i)((?:^|&)[^=&]*pass[^=&]*=)[^&]*", r"\1***", query)
    return f"{scheme}://{main}{mark}{query}"


def engine_of(url: str) -> str:
    """``postgresql``, ``sqlite`` … whatever the driver."""
    scheme = urlsplit(url).scheme.lower().partition("+")[0]
    return {"postgres": "postgresql", "mysql": "mariadb"}.get(scheme, scheme)


def database_of(url: str) -> tuple[str, int, str]:
    """Which database a PostgreSQL URL leads to, as far as the URL shows it."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    host = (query.get("host") or parts.hostname or "localhost").lower()
    port = int(query.get("port") or parts.port or 5432)
    name = query.get("dbname") or query.get("database") or parts.path.lstrip("/") or (parts.username or "")
    return ("127.0.0.1" if host == "localhost" else host, port, name)


_LOG_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "mariadb": "mysql+asyncmy",
}


def _log_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    engine = engine_of(url)
    driver = _LOG_DRIVERS.get(engine)
    if driver is None:
        raise ValueError(
            f"{redacted(url)[:80]!r}: the log can be on sqlite:///file.db, postgresql://user@host/database or "
            "mariadb://user@host/database"
        )
    _readable(url)
    if engine == "mariadb" and not urlsplit(url).path.strip("/"):
        raise ValueError(f"{redacted(url)[:80]!r} names no database: mariadb://user@host/database")
    if engine == "sqlite" and (":memory:" in url or not urlsplit(url).path.strip("/")):
        raise ValueError("a log in memory would lose every decision at the end: `txcoord dev --memory`")
    return SecretStr(driver + ":" + url.partition(":")[2])


def _resource_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    engine = engine_of(url)
    if engine == "sqlite":
        raise ValueError(
            "SQLite cannot take part in XA: it has no PREPARE TRANSACTION, so a commit across databases could "
            "be half done after a crash. Use PostgreSQL here (the log itself may be on SQLite)"
        )
    if engine not in ("postgresql", "mariadb"):
        raise ValueError(
            f"{redacted(url)[:80]!r} is no URL like postgresql://user:password@host:5432/database"
            " (or mariadb://, mysql://)"
        )
    _readable(url)
    if engine == "mariadb":
        _mariadb(url)
    return value


_MARIADB_OPTIONS = frozenset({"unix_socket", "ssl", "ssl_ca", "ssl_cert", "ssl_key", "charset"})


def _mariadb(url: str) -> None:
    """A URL of MariaDB or MySQL names a database, and no option that would be passed by in silence."""
    parts = urlsplit(url)
    if not parts.path.strip("/"):
        raise ValueError(
            f"{redacted(url)[:80]!r}: it must name the database, as in mariadb://user@host/database"
        )
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _MARIADB_OPTIONS:
            known = ", ".join(sorted(_MARIADB_OPTIONS))
            raise ValueError(
                f"{redacted(url)[:80]!r}: the option {name[:40]!r} is not known; these are: {known}"
            )


def _readable(url: str) -> None:
    if "://" not in url:
        # Not the URL itself: a password in it would not be found, and so not be hidden.
        raise ValueError("a URL has :// behind its scheme, as in postgresql://user@host/database")
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError(f"{redacted(url)[:80]!r}: the port is not a number up to 65535") from None


def _redis_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if url and urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise ValueError(
            f"{redacted(url)[:80]!r} is no URL like redis://user:password@host:6379/0 (rediss:// for TLS, or "
            "unix:///path/of/a.sock)"
        )
    if url:
        _readable(url)
    return value


RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
LogUrl = Annotated[SecretStr, AfterValidator(_log_url)]
ResourceUrl = Annotated[SecretStr, AfterValidator(_resource_url)]


def split_listen(value: str) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[::1]:7070`` or ``:7070`` (loopback)."""
    host, colon, port = value.strip().rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise ValueError(f"{value[:80]!r} is no address like 127.0.0.1:7070")
    return host or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Can only this machine reach it?"""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def comma_list(value: object) -> object:
    """A text with commas, or a list."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return value


def items(text: str) -> tuple[str, ...]:
    """What is in a text with commas."""
    return tuple(item for part in text.split(",") if (item := part.strip()))


CommaList = Annotated[str, BeforeValidator(comma_list)]

_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?", re.ASCII | re.IGNORECASE)


def host_name(text: str) -> str:
    """Check the name of a host, or ``*.domain`` for all below it."""
    if not _HOST_NAME.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} is no host's name, such as txcoord.internal or *.internal, without a port"
        )
    return text


def resource_name(name: str) -> str:
    """Check the name of a resource."""
    if not identifiers.is_name(name):
        raise ValueError("a resource's name has 1 to 63 characters of [A-Za-z0-9_.-]")
    return name


def participant_name(name: str) -> str:
    """Check the name of a participant."""
    if not identifiers.is_name(name):
        raise ValueError("a participant's name has 1 to 63 characters of [A-Za-z0-9_.-]")
    return name
