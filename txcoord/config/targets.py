"""Settings of whom a coordinator calls."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field, FilePath, field_validator, model_validator

from ..core.targets import Targets
from .values import CommaList, DurationOrNone, items


class TargetSettings(BaseModel):
    """Which participants are called, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    allow: CommaList = Field(
        "auto",
        description="Addresses that clients may give, with commas: stock.internal, stock.internal:8080, *.internal, "
        "10.0.0.0/8, loopback, *. auto: loopback if the coordinator listens on loopback, else none.",
    )
    reserved_headers: CommaList = Field(
        "",
        description="Headers that clients may not send to participants without the SDK, with commas: x-user, x-user-*; "
        "beside authorization, cookie, forwarded, x-forwarded-* and their like.",
    )
    drain_rate: int = Field(
        100,
        ge=1,
        le=100_000,
        description="How many branches a second are called again when their participant is back, or is resumed, before "
        "their own time: by the whole fleet.",
    )
    disable_after: DurationOrNone = Field(
        timedelta(days=5),
        description="A target at which no notification has arrived for so long is disabled: what is due for it is "
        "parked and not sent, until `txcoord target resume`. 0: none is.",
    )
    ca_file: FilePath | None = Field(
        None, description="TLS to participants: whom to believe, in PEM. Default: the system's authorities."
    )
    cert_file: FilePath | None = Field(
        None, description="TLS to participants: the client's certificate, in PEM."
    )
    key_file: FilePath | None = Field(None, description="Its key, unless that is in the same file.")

    @field_validator("allow")
    @classmethod
    def _entries(cls, value: str) -> str:
        if value != "auto":
            Targets(items(value))
        return value

    @field_validator("reserved_headers")
    @classmethod
    def _names(cls, value: str) -> str:
        Targets(reserved=items(value))
        return value

    @model_validator(mode="after")
    def _both(self) -> TargetSettings:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file without cert_file")
        return self
