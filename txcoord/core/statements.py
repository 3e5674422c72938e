"""SQL that is run once the whole is COMMITTED: what may be asked for."""

from __future__ import annotations

import re
from collections.abc import Collection

PREFIX = "sql:"
OPERATION = "sql"
CONTENT_TYPE = "application/x-protobuf; messageType=txcoord.v1.SqlUnit"
_OWN = re.compile(r"txcoord_|\bU&[\"']", re.IGNORECASE)
"""Tables of txcoord's, also where PostgreSQL would read them out of escapes: a marker that anybody may write proves
nothing."""
_PARAMETER = re.compile(r"(?<![:\w\\]):(\w+)(?!:)")
"""As SQLAlchemy's ``text()`` finds them, in quotes too."""
_DML = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|MERGE|REPLACE|WITH)\b", re.IGNORECASE)


def why_not(text: str, given: Collection[str]) -> str:
    """Why a statement is not run with these parameters; empty: it may be. Nothing in it may end the transaction that
    its marker is in, nor write a marker."""
    if not _DML.match(text):
        return f"{text[:60]!r}: INSERT, UPDATE, DELETE, MERGE, REPLACE or WITH is expected, without a remark before it"
    if ";" in text:
        return "one statement each, and what it writes in parameters: it has a semicolon"
    if "\0" in text:
        return "it has a NUL"
    if _OWN.search(text):
        return "tables of txcoord's are not touched by it: it has 'txcoord_', or an escaped name (U&)"
    if missing := [name for name in _PARAMETER.findall(text) if name not in given]:
        return (
            f"its parameter :{missing[0][:60]} has no value; a colon that begins no parameter is written \\:"
        )
    return ""
