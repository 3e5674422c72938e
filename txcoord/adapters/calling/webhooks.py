"""Notifications over HTTP: a POST to an endpoint that knows nothing of txcoord, signed as *Standard Webhooks* has it,
with a CloudEvent for a body where that is asked for.

2xx is *done*. 409 (no) and 410 (gone) park at once; anything else, a redirect too, is a failure. What an endpoint
answers is not kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from txcoord_client.protocol import webhooks

from ...core.action import Answer, AnswerKind, Event, Op
from ...core.targets import ANYBODY, Target, Targets
from ...observe import logs
from ...ports import CallRequest
from . import cloud_event, http_plain, plain

log = logs.get("txcoord.webhooks")

_FRESH_S = 10.0
_HELD = (*http_plain.RESERVED, "webhook-", "ce-")


def is_one(request: CallRequest, target: Target) -> bool:
    """Is it sent so, and not to a participant with the SDK?"""
    return request.op is Op.NOTIFY and target.is_http and bool(plain.method_of(request))


class SecretFile:
    """Secrets of some hosts, one a line, the newest first: all of them sign. It may be written anew at any time."""

    def __init__(self, path: Path, hosts: Sequence[str], setting: str = "") -> None:
        self._path = path
        self._named = f"{setting} {path}".strip()
        self._hosts = Targets(hosts)
        self._read_at = float("-inf")
        self._secrets: tuple[bytes, ...] = ()

    def signs(self, target: Target) -> bool:
        """Is it for this one?"""
        return self._hosts.names(target.host, target.port)

    def secrets(self) -> tuple[bytes, ...]:
        """They. Raises OSError, ValueError."""
        if time.monotonic() - self._read_at > _FRESH_S:
            try:
                self._secrets = self._read()
            except (OSError, ValueError) as error:
                if not self._secrets:
                    raise
                # Caught while it is written, perhaps: those that it had are good until it can be read again.
                log.warning("webhook.secrets_unreadable", file=str(self._path), error=str(error))
            self._read_at = time.monotonic()
        return self._secrets

    def _read(self) -> tuple[bytes, ...]:
        try:
            content = self._path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self._named}: it is no text in UTF-8") from None
        except OSError as error:
            raise ValueError(f"{self._named}: {error.strerror}") from error
        found = []
        for number, line in enumerate(map(str.strip, content.splitlines()), 1):
            if line and line[0] != "#":
                try:
                    found.append(webhooks.secret_of(line))
                except ValueError as error:
                    raise ValueError(f"{self._named}, line {number}: {error}") from None
        if not found:
            raise ValueError(f"{self._named} has no secret: one a line, such as {webhooks.PREFIX}…")
        return tuple(found)


@dataclass(frozen=True)
class Webhooks:
    """Whom to send to, and what signs."""

    targets: Targets = ANYBODY
    secrets: Sequence[SecretFile] = field(default_factory=tuple)

    def check(self) -> None:
        """Raises OSError, ValueError for files that cannot be used."""
        for file in self.secrets:
            file.secrets()


def prepared(
    request: CallRequest, target: Target, how: Webhooks, now_s: float
) -> tuple[dict[str, str], bytes]:
    """Headers and body. Raises OSError, ValueError where its secret cannot be read."""
    action = request.branch.action
    assert action is not None
    headers = {
        key.lower(): value
        for key, value in action.headers.items()
        if plain.is_carried(key.lower(), value, _HELD) and not how.targets.reserves(key)
    }
    kind, body = action.content_type or "application/json", request.branch.sent
    if action.delivery.event is not None:
        kind, body, more = _as_event(action.delivery.event, request, kind, body)
        headers |= more
    headers["content-type"] = kind
    headers["txcoord-attempt"] = str(request.attempt)
    secrets = [secret for file in how.secrets if file.signs(target) for secret in file.secrets()]
    headers[webhooks.ID] = request.message_id
    headers[webhooks.TIMESTAMP] = str(int(now_s))
    if secrets:
        headers[webhooks.SIGNATURE] = webhooks.sign(secrets, request.message_id, int(now_s), body)
    return headers, body


def _as_event(
    event: Event, request: CallRequest, kind: str, body: bytes
) -> tuple[str, bytes, dict[str, str]]:
    """Content type, body and headers (CloudEvents 1.0, HTTP protocol binding)."""
    said = cloud_event.attributes(event, request)
    if not event.structured:
        # Visible ASCII stays as it is, but for quotes and the percent sign itself.
        safe = "".join(map(chr, range(0x21, 0x7F))).translate({ord(c): None for c in '"%'})
        return kind, body, {f"ce-{name}": quote(value, safe=safe) for name, value in said.items()}
    return cloud_event.STRUCTURED, cloud_event.structured(said, kind, body), {}


def answer_of(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """What a reply means."""
    if status == 410:
        return Answer(AnswerKind.REFUSED, reason="GONE: the endpoint says that it takes no more of them")
    answer = http_plain.answer_of(status, headers, body)
    return Answer(AnswerKind.DONE) if answer.kind is AnswerKind.DONE else answer
