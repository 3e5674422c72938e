"""The log says that its database is away: at once, then now and then, and when it is back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from structlog.testing import capture_logs

from txcoord.adapters.sql import outage as module
from txcoord.adapters.sql.outage import Outage
from txcoord.observe import logs


@pytest.fixture(autouse=True)
def _logging_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test before may have set it up to say less."""
    before = structlog.get_config()
    structlog.reset_defaults()
    monkeypatch.setattr(module, "log", logs.get("txcoord.log"))
    yield
    structlog.configure(**before)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_is_said_once_then_every_ten_seconds_and_in_the_end() -> None:
    clock = Clock()
    outage = Outage(clock)
    outage.well("reading")
    with capture_logs() as said:
        for tick in range(125):  # Five times a second, for 25 seconds.
            clock.now = 100.0 + tick / 5
            outage.trouble(("reading", "writing")[tick % 2], OSError("refused"))
        clock.now = 130.0
        outage.well("reading")
        assert outage.fails("writing")
        outage.well("writing")
        outage.well("writing")
    for entry in said:
        del entry["logger_name"]
    away = {"event": "log.unavailable", "log_level": "error", "reason": "refused"}
    assert said == [
        away,
        away | {"for_s": 10.0},
        away | {"for_s": 20.0},
        {"event": "log.back", "log_level": "info", "after_s": 30.0},
    ]


def test_what_works_beside_what_fails_says_nothing() -> None:
    clock = Clock()
    outage = Outage(clock)
    with capture_logs() as said:
        for _ in range(50):  # A full disk: it can be read.
            outage.trouble("writing", OSError("disk full"))
            outage.well("reading")
    assert [entry["event"] for entry in said] == ["log.unavailable"]
