"""Why a node does not start."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends; `docs/reference` lists these."""

    OK = 0
    CRASHED = 1
    """A bug."""
    USAGE = 2
    """The command line is wrong."""
    CONFIG = 3
    """The settings are wrong, or do not fit what they lead to."""
    UNAVAILABLE = 4
    """The log, the coordinator or the address to listen on cannot be had now."""
    SCHEMA = 5
    """The log's schema is not this version's."""
    REFUSED = 6
    """The coordinator said no; the reason code is in the message."""
    PROBLEMS = 7
    """A check found something that needs to be mended."""
    INTERRUPTED = 130


class StartError(Exception):
    """A node cannot start; one line that says why and what to do."""

    def __init__(self, code: ExitCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
