"""SQL that is run once the whole is COMMITTED: what may be asked for."""

from __future__ import annotations

import re

PREFIX = "sql:"
OPERATION = "sql"
CONTENT_TYPE = "application/x-protobuf; messageType=txcoord.v1.SqlUnit"
_DML = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|WITH)\b", re.IGNORECASE)


def why_not(text: str) -> str:
    """Why a statement is not run; empty: it may be. Nothing in it may end the transaction that its marker is in."""
    if not _DML.match(text):
        return f"{text[:60]!r}: INSERT, UPDATE, DELETE, MERGE, REPLACE or WITH is expected, without a remark before it"
    if ";" in text:
        return "one statement each, and what it writes in parameters: it has a semicolon"
    if "\0" in text:
        return "it has a NUL"
    return ""
