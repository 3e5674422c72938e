"""The history of a run: what was asked, answered, broken and seen, in the order in which it happened.

`check` says what the records are. They are kept in memory, and written to a file as they come, so that nothing is
missing if the run itself ends badly.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from .check import Record


class History:
    """Records, each with the seconds since the run began."""

    def __init__(self, file: Path | None = None) -> None:
        self.records: list[Record] = []
        self.file = file
        self._begun = time.monotonic()
        self._calls = 0
        self._out: TextIO | None = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._out = file.open("w")

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None

    def now(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self._begun, 4)

    def add(self, kind: str, **facts: Any) -> None:
        """Something happened now."""
        record = {"kind": kind, "t": self.now(), **facts}
        self.records.append(record)
        if self._out is not None:
            self._out.write(_line(record))

    def call(self, gid: str, **facts: Any) -> int:
        """A client asks. Answers the number of the call."""
        self._calls += 1
        self.add("call", call=self._calls, gid=gid, **facts)
        return self._calls

    def save(self, file: Path) -> None:
        """Write it all, where it was not written as it came."""
        file.write_text("".join(map(_line, self.records)))
        self.file = file


def _line(record: Record) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"
