"""Signatures of webhooks, as *Standard Webhooks* has them (version 1, symmetric): pure functions that sign and verify.

``webhook-signature`` is one or several of ``v1,<base64>`` with blanks between: while a secret is rotated both sign.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping

PREFIX = "whsec_"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
TOLERANCE_S = 300
"""How far the timestamp may be from the receiver's clock: an old request is not one more time believed."""
_SHORTEST = 16


class NotVerified(Exception):
    """This request was not signed by who is believed, or not for now."""


def secret_of(text: str) -> bytes:
    """The key in a secret such as ``whsec_MfKQ…``. Raises ValueError."""
    try:
        key = base64.b64decode(text.strip().removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"a secret is {PREFIX} and base64") from None
    if len(key) < _SHORTEST:
        raise ValueError(f"a secret has at least {_SHORTEST} bytes: it has {len(key)}")
    return key


def sign(secrets: Iterable[bytes], message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp_s, body)
    return " ".join(f"v1,{_of(secret, signed)}" for secret in secrets)


def verify(secrets: Iterable[bytes], headers: Mapping[str, str], body: bytes, now_s: float) -> str:
    """The message's id, once any of the secrets has signed it. ``headers``: by lower-case names. Raises NotVerified."""
    message_id, at, said = (headers.get(name, "") for name in (ID, TIMESTAMP, SIGNATURE))
    if not message_id or not said or not at.isdecimal() or len(at) > 15:
        raise NotVerified(f"{ID}, {TIMESTAMP} or {SIGNATURE} is missing, or is none")
    if abs(now_s - int(at)) > TOLERANCE_S:
        raise NotVerified(f"its {TIMESTAMP} is more than {TOLERANCE_S} s away")
    signed = b"%s.%d.%s" % (message_id.encode(), int(at), body)
    given = [one.removeprefix("v1,") for one in said.split() if one.startswith("v1,")]
    if not any(hmac.compare_digest(_of(s, signed).encode(), g.encode()) for s in secrets for g in given):
        raise NotVerified("no signature is of a secret that is known here")
    return message_id


def _of(secret: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
