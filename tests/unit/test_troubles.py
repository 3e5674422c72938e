"""What goes wrong again and again."""

from __future__ import annotations

from structlog.testing import capture_logs

from txcoord.engine.troubles import Troubles
from txcoord.ports import ResourceTrouble


def test_it_is_said_once_then_rarely_and_when_it_is_over() -> None:
    now_us = 0
    troubles = Troubles("scan:orders", lambda: now_us)
    with capture_logs() as said:
        troubles.well()
        for _ in range(31):
            troubles.trouble(ResourceTrouble("orders", "RESOURCE_UNREACHABLE", "it does not answer"))
            now_us += 20_000_000
        troubles.well()
        troubles.well()
    assert [(line["event"], line["log_level"], line.get("for_s"), line.get("after_s")) for line in said] == [
        ("resource.trouble", "warning", None, None),
        ("resource.trouble", "warning", 600, None),
        ("resource.well_again", "info", None, 620),
    ]
