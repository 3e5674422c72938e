"""Settings: from `TXCOORD_*` variables and a TOML file, checked at once, errors in plain words.

A variable wins over the file, an option of the command line over both. ``TXCOORD_LOG__URL`` is the setting
``log.url``; in the file it is ``url`` in the table ``[log]``.
"""

from .kafka import KafkaSettings
from .load import ConfigError, load, variables
from .model import LogSettings, ResourceSettings, Settings, leaves
from .values import (
    engine_of,
    is_loopback,
    items,
    microseconds,
    parse_duration,
    redacted,
    show_duration,
    split_listen,
)

__all__ = [
    "ConfigError",
    "KafkaSettings",
    "LogSettings",
    "ResourceSettings",
    "Settings",
    "engine_of",
    "is_loopback",
    "items",
    "leaves",
    "load",
    "microseconds",
    "parse_duration",
    "redacted",
    "show_duration",
    "split_listen",
    "variables",
]
