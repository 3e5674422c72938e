"""Whom notifications are sent to: anybody who is public, and of those who are not only whom the settings allow."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from .targets import _NEVER, NOT_ALLOWED, Address, NotAllowed, Target, Targets, meant

_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All that IANA gives out as global unicast. What lies outside of it may lead into a network of one's own (fec0::/10,
the local NAT64 of RFC 8215)."""


def _is_public(address: Address) -> bool:
    return address.is_global and (address.version == 4 or address in _PUBLIC_IPV6)


class WebhookTargets(Targets):
    """Targets of notifications: participants as ever, and any public address over HTTP.

    ``allow``: those of the private addresses that are sent to all the same, written as for participants: a host, a
    network, ``loopback``, ``*``. Raises ValueError for what is none of them.
    """

    def __init__(self, participants: Targets, allow: Iterable[str] = ()) -> None:
        super().__init__(allow)
        self._participants = participants
        self.named = participants.named

    def name_of(self, target: Target) -> str:
        """A participant that has this address by the settings; empty if there is none."""
        return self._participants.name_of(target)

    def is_own(self, host: str, port: int) -> bool:
        """Is an address there by the settings?"""
        return self._participants.is_own(host, port)

    def reserves(self, header: str) -> bool:
        """Is a header none that a client may have sent?"""
        return self._participants.reserves(header) or header.lower().startswith(("webhook-", "ce-"))

    def why_not(self, text: str) -> NotAllowed | None:
        """Why nothing is sent there, as far as that can be told before its host is looked up; None: it may be."""
        why = self._participants.why_not(text)
        target = Target.parse(text)
        if why is None or target is None or not target.is_http:
            return why
        address = meant(target.host)
        return self.why_not_dialled(target.host, target.port, str(address)) if address is not None else None

    def why_not_dialled(self, host: str, port: int, address: str, *, own: bool = False) -> NotAllowed | None:
        """Why ``address``, which ``host`` has been found to be, is not dialled; None: it may be."""
        found = meant(address)
        if found is None or any(found in network for network in _NEVER):
            return NotAllowed(
                NOT_ALLOWED,
                f"{host}:{port} is {address}: link-local, multicast and metadata addresses are never called",
            )
        if _is_public(found) or self._participants.why_not_dialled(host, port, address, own=own) is None:
            return None
        if super().why_not_dialled(host, port, address) is None:
            return None
        seen = f" ({address})" if address != host else ""
        return NotAllowed(
            NOT_ALLOWED,
            f"notifications are not sent to {host}:{port}{seen}, which is private: allow it by "
            f"TXCOORD_WEBHOOKS__ALLOW={host}:{port} (webhooks.allow: hosts and networks)",
        )
