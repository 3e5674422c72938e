"""How a transaction travels with a call, and its vote with the reply: words, names and rules. No I/O.

gRPC has both as binary metadata, HTTP as headers in base64url. What a vote means is the same for both.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from ._pb import common_pb2 as c
from .errors import Rejected, TxcoordError, Unavailable
from .protocol import identifiers, reasons

CONTEXT_HEADER = "Txcoord-Context"
VOTE_HEADER = "Txcoord-Vote"
CONTEXT_KEY = "txcoord-context-bin"
VOTE_KEY = "txcoord-vote-bin"
MAX_HELD_BYTES = 4 * 1024 * 1024
"""How much of an HTTP reply is held back until its service has voted."""
MAX_TEXT = 500
"""What a reply's metadata may hold is limited: a reply whose text is too long would arrive without its vote."""
MAX_HEADER = 8_000
"""Servers refuse longer headers (gunicorn: 8,190 with the name), each in its own words."""
_TRY_LATER = 503
_EVENT_STREAM = "text/event-stream"


class Carried(Protocol):
    """What of a transaction its vote is made of."""

    tx_id: str

    @property
    def initiator(self) -> bool: ...

    @property
    def rollback_only(self) -> bool: ...

    def set_rollback_only(self, reason: str = ..., message: str = ...) -> None: ...

    _parent: str
    _remote: dict[str, c.Branch]
    _rollback_only: str
    _rollback_message: str

    @property
    def _local(self) -> Sequence[Any]: ...


# ---- the context ----


def read_context(data: bytes, namespace: str) -> c.CallContext:
    """The context in gRPC metadata. Raises Rejected for what is none, or another namespace's."""
    try:
        context = c.CallContext.FromString(data)
    except (DecodeError, TypeError) as error:
        raise Rejected("the transaction's context cannot be read", reason=reasons.BAD_REQUEST) from error
    if not identifiers.is_tx_id(context.tx_id) or not identifiers.is_branch(context.branch):
        raise Rejected("the transaction's context is no such thing", reason=reasons.BAD_REQUEST)
    if context.namespace != namespace:
        raise Rejected(
            f"the caller's namespace is {context.namespace!r}, this service's is {namespace!r}",
            reason=reasons.BAD_NAMESPACE,
        )
    return context


def context_header(context: c.CallContext) -> str:
    """The context as a header's value. Raises Rejected when no server would take it."""
    value = _encoded(context.SerializeToString())
    if len(value) > MAX_HEADER:
        raise Rejected(
            f"name and headers of the transaction make a header of {len(value)} characters; at most {MAX_HEADER} "
            "travel with an HTTP call",
            reason=reasons.TOO_LARGE,
        )
    return value


def context_in(values: Sequence[str], namespace: str) -> c.CallContext:
    """The context in the ``Txcoord-Context`` headers of a request. Raises Rejected."""
    data = _decoded(values[0]) if len(values) == 1 else None
    if data is None:
        raise Rejected("the header Txcoord-Context cannot be read", reason=reasons.BAD_REQUEST)
    return read_context(data, namespace)


# ---- the vote ----


def vote_of(tx: Carried) -> c.CallVote:
    """What a called service tells its caller, once it has prepared."""
    vote = c.CallVote(tx_id=tx.tx_id, branch=tx._parent)
    vote.branches.extend(pb for pb in (b.to_pb() for b in tx._local) if pb.vote != c.VOTE_NO)
    vote.branches.extend(tx._remote.values())
    for branch in vote.branches:
        # What a try returned is in its participant's marker; a header has little room.
        if branch.WhichOneof("part") == "action":
            branch.action.ClearField("result")
            if not branch.action.ByteSize():
                branch.ClearField("action")
    if tx.rollback_only:
        vote.rollback_only = True
        vote.reason, vote.message = tx._rollback_only, why(tx)
    return vote


def no_vote(context: c.CallContext, error: TxcoordError) -> c.CallVote:
    """That of a service whose doors stay closed: nothing was done there, and the caller may know why."""
    vote = c.CallVote(tx_id=context.tx_id, branch=context.branch, rollback_only=True)
    vote.reason, vote.message = error.reason, error.message[:MAX_TEXT]
    return vote


def why(tx: Carried) -> str:
    """Why the transaction cannot commit, for people."""
    text = tx._rollback_message
    if tx._rollback_only == reasons.LOCK_TIMEOUT and not tx.initiator:
        hint = (
            "another transaction holds the lock, or an earlier call of this one does, which neither sees nor waits "
            "for this: in one transaction write a row from one call only, or pass the data along"
        )
        text = f"{text[: MAX_TEXT - len(hint) - 3]} ({hint})"
    return text[:MAX_TEXT]


def vote_header(vote: c.CallVote) -> str:
    """The vote as a header's value."""
    return _encoded(vote.SerializeToString())


def vote_in(values: Sequence[str]) -> c.CallVote | None:
    """The vote in the ``Txcoord-Vote`` headers of a reply; None: there is none that can be read."""
    data = _decoded(values[0]) if len(values) == 1 else None
    return _vote(data) if data is not None else None


def vote_in_metadata(metadata: Iterable[Any] | None) -> c.CallVote | None:
    """The vote in the trailing metadata of a gRPC reply, if any."""
    for key, value in metadata or ():
        if key == VOTE_KEY and isinstance(value, bytes):
            return _vote(value)
    return None


def _vote(data: bytes) -> c.CallVote | None:
    try:
        return c.CallVote.FromString(data)
    except DecodeError:
        return None


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(value: str) -> bytes | None:
    try:
        raw = value.strip().encode("ascii")
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None


# ---- who may get it ----


class Targets:
    """``propagate_to``: where the context may go.

    ``stock.internal`` is a host with any port, ``stock.internal:8080`` with that one, ``*.shop.svc`` every host below
    ``shop.svc``. A gRPC target may also be named as it is given to the channel.
    """

    def __init__(self, names: str | Iterable[str]) -> None:
        named = (names,) if isinstance(names, str) else tuple(names)
        self.names = named
        self._exact: set[tuple[str, int | None]] = set()
        self._below: set[tuple[str, int | None]] = set()
        for name in named:
            self._add(name)

    def __bool__(self) -> bool:
        return bool(self.names)

    def __repr__(self) -> str:
        return f"Targets({', '.join(self.names)})"

    def _add(self, name: str) -> None:
        plain = _grpc_address(name)
        if plain is None:
            return  # Compared as it stands.
        host, port = split_host(plain)
        below = host.startswith("*.")
        bare = host[2:] if below else host
        if not bare or "*" in bare or any(sign in bare for sign in "/@?# "):
            raise Rejected(
                f"propagate_to: {name!r} is no host. Name each as 'host', 'host:port' or '*.domain'; everybody at once "
                "cannot be named: a third party has no use for the transaction",
                reason=reasons.BAD_REQUEST,
            )
        (self._below if below else self._exact).add((bare, port))

    def host(self, host: str, port: int | None) -> bool:
        """Is this host named? An HTTP client knows the port even where the URL has none."""
        host = _normal(host)
        if (host, None) in self._exact or (host, port) in self._exact:
            return True
        while "." in host:
            host = host.partition(".")[2]
            if (host, None) in self._below or (host, port) in self._below:
                return True
        return False

    def grpc(self, target: str) -> bool:
        """Is this gRPC target named?"""
        if target in self.names:
            return True
        plain = _grpc_address(target)
        return plain is not None and self.host(*split_host(plain))


def split_host(address: str) -> tuple[str, int | None]:
    """``host``, ``host:port`` or ``[v6]:port`` in its parts. Raises Rejected for a port that is none."""
    host, colon, port = address.rpartition(":")
    if not colon or "]" in port or (":" in host and not host.endswith("]")):
        return _normal(address), None
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise Rejected(f"{address!r}: {port!r} is no port", reason=reasons.BAD_REQUEST)
    return _normal(host), int(port)


def _normal(host: str) -> str:
    host = host.strip("[]").rstrip(".").lower()
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError as error:
            raise Rejected(f"{host!r} is no host", reason=reasons.BAD_REQUEST) from error
    return host


def _grpc_address(target: str) -> str | None:
    """``host:port`` of a gRPC target; None where it has none, as a Unix socket."""
    for scheme in ("dns:", "passthrough:", "ipv4:", "ipv6:"):
        if target.startswith(scheme):
            rest = target[len(scheme) :].rpartition("/")[2]
            return rest if rest and "," not in rest else None
    return None if target.startswith(("unix:", "unix-abstract:", "vsock:", "xds:")) else target


# ---- what an HTTP reply must be ----


@dataclass(frozen=True, slots=True)
class Problem:
    """An error reply (RFC 9457)."""

    status: int
    reason: str
    detail: str

    @property
    def body(self) -> bytes:
        """JSON."""
        said = {
            "type": "about:blank",
            "title": _TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }
        return json.dumps(said).encode()

    @property
    def line(self) -> str:
        """Status and title."""
        return f"{self.status} {_TITLES.get(self.status, 'Error')}"

    def headers(self) -> list[tuple[str, str]]:
        """Those of the reply."""
        return [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(self.body))),
            ("Cache-Control", "no-store"),
        ]


_TITLES = {
    400: "Bad Request",
    409: "Conflict",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}
_NO_ENTRY = {
    reasons.BAD_REQUEST: 400,
    reasons.DEADLINE_TOO_FAR: 400,
    reasons.BAD_NAMESPACE: 409,
    reasons.BAD_XID: 409,
}
_REFUSED = {reasons.NOT_SUPPORTED: 501, reasons.TOO_LARGE: 500}


def no_entry(error: TxcoordError) -> Problem:
    """The answer to a call whose transaction cannot be joined."""
    status = _TRY_LATER if isinstance(error, Unavailable) else _NO_ENTRY.get(error.reason, 500)
    return Problem(status, error.reason, error.message)


def refuse_stream(content_type: str) -> None:
    """Raises Rejected for a reply that has no end at which it could vote."""
    if content_type.partition(";")[0].strip().lower() == _EVENT_STREAM:
        raise Rejected(
            f"a reply of {_EVENT_STREAM} cannot be part of a transaction: it is held back until it has ended",
            reason=reasons.NOT_SUPPORTED,
        )


def refuse_size(held_bytes: int) -> None:
    """Raises Rejected for more than can be held back."""
    if held_bytes > MAX_HELD_BYTES:
        raise Rejected(
            f"the reply has more than {MAX_HELD_BYTES} bytes: it is held back until the service has voted",
            reason=reasons.TOO_LARGE,
        )


def doom_by_reply(tx: Carried, status: int | None, whole: bool) -> None:
    """An error reply is a no, and so is one that has no end."""
    if status is None or not whole:
        tx.set_rollback_only(reasons.APPLICATION_ERROR, "the application ended without a whole reply")
    elif status >= 400:
        tx.set_rollback_only(reasons.APPLICATION_ERROR, f"the service answered {status}")


def problem_instead(
    tx: Carried, status: int | None, whole: bool, *, doomed: bool, failed: bool
) -> Problem | None:
    """What is answered instead of the application's own reply, which would tell of work that is not there; None:
    its own. ``doomed``: was it rollback-only before it was prepared? ``failed``: did the application raise?"""
    if not tx.rollback_only:
        return None
    reason, detail = tx._rollback_only, why(tx)
    if status is not None and whole and status >= 400 and reason not in _REFUSED:
        return None
    if reason in _REFUSED:
        status = _REFUSED[reason]
    elif not doomed or reason in reasons.RETRYABLE_ABORTS:
        status = _TRY_LATER
    elif failed or status is None or not whole:
        status = 500
    else:
        status = 409
    return Problem(status, reason, detail)
