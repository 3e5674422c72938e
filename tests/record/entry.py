"""What an entry of the record says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """Takes a mend out of one file."""

    file: str
    mended: str
    broken: str


@dataclass(frozen=True)
class Bug:
    """One that was found, and is mended."""

    name: str
    wrong: str
    """What was wrong, and what came of it."""
    found_by: str
    commit: str
    """The subject of the commit that mended it."""
    edits: tuple[Edit, ...]
    test: str
    """What fails without the mend: arguments for pytest."""
    also: str = ""
    """Another command that shows it, if there is one."""
    services: bool = False
    """Does its test need databases?"""
