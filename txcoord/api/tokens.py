"""Who calls, and what he may do: bearer tokens from a file, for every API of a node.

The file has a line for each token: its name, its role, its namespace (``*``: all), and the token, or ``sha256:`` and
the SHA-256 of it in hexadecimal digits. Empty lines and those that begin with ``#`` count for nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path

from txcoord_client.protocol import bearer, identifiers, reasons

from ..core.errors import Refusal, Refused
from ..observe import logs

log = logs.get("txcoord.tokens")

EVERY = "*"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class May(Enum):
    """What is to be done."""

    READ = "look"
    TAKE_PART = "begin and end transactions"
    OPERATE = "give orders about transactions and targets"
    ADMINISTER = "drain nodes"


class Role(StrEnum):
    """What a token is for."""

    VIEWER = "viewer"
    CLIENT = "client"
    OPERATOR = "operator"
    ADMIN = "admin"


_MAY = {
    Role.VIEWER: {May.READ},
    Role.CLIENT: {May.READ, May.TAKE_PART},
    Role.OPERATOR: {May.READ, May.OPERATE},
    Role.ADMIN: set(May),
}


@dataclass(frozen=True, slots=True)
class Token:
    """One line of the file. ``digest``: the token itself is kept nowhere."""

    name: str
    role: Role
    namespace: str
    digest: bytes


def read(text: str) -> tuple[Token, ...]:
    """The tokens of a file. Raises ValueError that names the line, and never what is in it."""
    out: list[Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            token = _token(words)
            if any(t.name == token.name or t.digest == token.digest for t in out):
                raise ValueError("its name or its token is in a line before")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        out.append(token)
    if not out:
        raise ValueError("there is no token in it: a line is NAME ROLE NAMESPACE TOKEN")
    return tuple(out)


def _token(words: list[str]) -> Token:
    if len(words) != 4:
        raise ValueError(f"{len(words)} words; 4 are needed: NAME ROLE NAMESPACE TOKEN")
    name, role, namespace, token = words
    if not identifiers.is_name(name):
        raise ValueError("the name has 1 to 63 characters of [A-Za-z0-9_.-]")
    if role not in set(Role):
        raise ValueError(f"the role is one of {', '.join(Role)}")
    if namespace != EVERY and not identifiers.is_name(namespace):
        raise ValueError("the namespace has 1 to 63 characters of [A-Za-z0-9_.-], or is *")
    if token.startswith("sha256:"):
        found = _DIGEST.fullmatch(token)
        if found is None:
            raise ValueError("64 hexadecimal digits in lower case belong behind sha256:")
        return Token(name, Role(role), namespace, bytes.fromhex(found[1]))
    return Token(name, Role(role), namespace, _digest(bearer.checked(token)))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class Tokens:
    """Those of one file, which may be written anew at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()
        self._serial = 0
        """Grows with each change."""

    def load(self) -> None:
        """Read the file. Raises OSError, ValueError."""
        seen = self._stat()
        tokens = read(self._path.read_text(encoding="utf-8"))
        self._seen = seen
        if tokens != self._tokens:
            self._tokens = tokens
            self._serial += 1

    def refresh(self) -> None:
        """Read it again if it has changed; one that cannot be used changes nothing, and is logged."""
        try:
            if (seen := self._stat()) == self._seen:
                return
            self._seen = seen
            self.load()
        except (OSError, ValueError) as error:
            log.error("tokens.not_read", file=str(self._path), reason=str(error))
        else:
            log.info("tokens.read", file=str(self._path), tokens=[t.name for t in self._tokens])

    def _stat(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def caller(self, header: str) -> Caller:
        """Who sends this header ``authorization``. Raises Refused."""
        digest = _digest(bearer.shown(header))
        found: Token | None = None
        for token in self._tokens:  # All of them: how long it takes says nothing.
            if hmac.compare_digest(token.digest, digest):
                found = token
        if found is None:
            raise _unknown()
        return Caller(self, found, self._serial)

    def knows(self, token: Token, serial: int) -> int:
        """Is it in the file still? What serial it is known by now. Raises Refused."""
        if serial != self._serial and token not in self._tokens:
            raise _unknown()
        return self._serial


class Caller:
    """Whoever has shown a token. It counts as long as the file has it, also on a stream that stays open."""

    __slots__ = ("_serial", "_token", "_tokens")

    def __init__(self, tokens: Tokens, token: Token, serial: int) -> None:
        self._tokens = tokens
        self._token = token
        self._serial = serial

    @property
    def name(self) -> str:
        """Of the token, for the audit trail."""
        return self._token.name

    def check(self, what: May) -> None:
        """May he do that? Raises Refused."""
        self._serial = self._tokens.knows(self._token, self._serial)
        role = self._token.role
        if what not in _MAY[role]:
            raise _forbidden(f"the token {self.name!r} has the role {role}, which may not {what.value}")

    def check_namespace(self, namespace: str) -> None:
        """Does he belong there? Raises Refused."""
        self._serial = self._tokens.knows(self._token, self._serial)
        if self._token.namespace not in (EVERY, namespace):
            raise _forbidden(f"the token {self.name!r} is not for the namespace {namespace!r}")

    def check_everywhere(self) -> None:
        """May he do what concerns all namespaces? Raises Refused."""
        if self._token.namespace != EVERY:
            whose = self._token.namespace
            text = f"the token {self.name!r} is for the namespace {whose!r}: what concerns all of them, such as nodes"
            raise _forbidden(f"{text}, needs one whose namespace is *")


def _unknown() -> Refused:
    return Refused(
        Refusal(
            "UNAUTHENTICATED",
            reasons.UNAUTHENTICATED,
            "a bearer token that this coordinator knows is needed: Coordinator(auth=Token(…)), --token-file, or the "
            "header Authorization",
            True,
        )
    )


def _forbidden(why: str) -> Refused:
    return Refused(Refusal("PERMISSION_DENIED", reasons.FORBIDDEN, why, True))


_caller: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("txcoord_caller", default=None)


def current() -> Caller | None:
    """Who made the request that is being answered; None where nobody must say who he is."""
    return _caller.get()


def set_current(caller: Caller | None) -> None:
    """Say so, for the task that answers it."""
    _caller.set(caller)


@contextlib.contextmanager
def calling(caller: Caller | None) -> Iterator[None]:
    """For as long as the request is answered."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def demand(what: May) -> None:
    """May the current caller do that? Raises Refused."""
    caller = _caller.get()
    if caller is not None:
        caller.check(what)


def may(what: May) -> bool:
    """May the current caller do that?"""
    try:
        demand(what)
    except Refused:
        return False
    return True


def may_everywhere() -> bool:
    """May the current caller see what concerns all namespaces?"""
    try:
        demand_everywhere()
    except Refused:
        return False
    return True


def demand_everywhere() -> None:
    """May the current caller do what concerns all namespaces? Raises Refused."""
    caller = _caller.get()
    if caller is not None:
        caller.check_everywhere()
