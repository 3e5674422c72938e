"""Settings of events."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EventsSettings(BaseModel):
    """What the world outside hears of transactions, on topics of Kafka."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    enabled: bool = Field(
        False,
        description="Every decision, end, parking and heuristic outcome as a CloudEvent on the topic "
        "<kafka.prefix>.events, and dead letters. Needs Kafka; the same for all nodes.",
    )
    dead_letters: bool = Field(
        False,
        description="Every parking as a CloudEvent on the topic <kafka.prefix>.dead-letter, also without the other "
        "events. Needs Kafka; the same for all nodes.",
    )

    @property
    def any(self) -> bool:
        """Is anything told?"""
        return self.enabled or self.dead_letters
