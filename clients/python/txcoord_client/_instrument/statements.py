"""What a statement of the application means to a unit. Pure: text in, facts out."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from ..protocol import reasons


class Facts(NamedTuple):
    """What is known of a statement."""

    refused: str = ""
    """Why it is not sent; empty: it is."""
    reason: str = ""
    reads: bool = False
    """Does it certainly look as if it only read? Locking reads, CTEs and functions that are not known do not."""
    savepoint: str = ""
    """``SAVEPOINT``, ``RELEASE`` or ``ROLLBACK TO``."""
    name: str = ""
    """Of the savepoint."""


_BLANK = re.compile(r"(?:\s|;|--[^\n]*(?:\n|$)|#[^\n]*(?:\n|$)|/\*(?!!).*?\*/|\()*", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]+")
_NEXT = re.compile(r"[A-Za-z]+\b(?:\s|/\*.*?\*/)*([A-Za-z_@]*)", re.DOTALL)
_PIECES = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | \$(\w*)\$.*?\$\1\$ | --[^\n]* | /\*.*?\*/ | (;)""",
    re.DOTALL | re.VERBOSE,
)
_SAVEPOINT = re.compile(
    r"""\s*(SAVEPOINT|RELEASE(?:\s+SAVEPOINT)?|ROLLBACK(?:\s+WORK|\s+TRANSACTION)?\s+TO(?:\s+SAVEPOINT)?)\s+
    (["`]?)(\w+)\2\s*(?:;\s*)?""",
    re.IGNORECASE | re.VERBOSE,
)
_TO = re.compile(r"ROLLBACK\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b", re.IGNORECASE)
_ENDS = frozenset({"COMMIT", "ROLLBACK", "ABORT", "END", "BEGIN", "START", "XA"})
_MODE = re.compile(
    r"SET\s+(?:SESSION\s+CHARACTERISTICS\b|(?:(?:SESSION|LOCAL|GLOBAL)\s+)?TRANSACTION\b(?!_)"
    r"|(?:@@)?(?:(?:SESSION|LOCAL)[\s.]\s*)?AUTOCOMMIT\b)",
    re.IGNORECASE,
)
_READS = frozenset({"SELECT", "SHOW", "VALUES", "TABLE"})
_CALL = re.compile(r"""((?<![\w$])[\w$]+|"|`|\])\s*\(""")
"""Of a word only as a whole: from each of its letters on, a long one would take hours."""
_LOCKS = re.compile(
    r"\bFOR\s+(?:NO\s+KEY\s+|KEY\s+)?(?:UPDATE|SHARE)\b|\bINTO\b|\bLOCK\s+IN\b", re.IGNORECASE
)
_NO_FUNCTIONS = (
    "all and any array as between by case cross distinct else end except exists filter from group having in intersect "
    "is join lateral left like limit not offset on or over partition right row rows select set some then union using "
    "values when where within with "
    "bit char character decimal float interval nchar numeric time timestamp varbinary varbit varchar varying binary"
)
_BUILT_IN = (
    "abs array_agg array_length avg bool_and bool_or cast ceil ceiling char_length coalesce concat concat_ws convert "
    "count cume_dist date date_format date_part date_trunc dense_rank every extract first_value floor format "
    "generate_series greatest group_concat if ifnull json_agg json_build_object json_extract json_object "
    "jsonb_agg jsonb_build_object lag last_value lead least left length lower ltrim max md5 min mod now ntile nullif "
    "octet_length overlay percent_rank position power rank regexp_replace replace right round row_number row_to_json "
    "rtrim sign split_part sqrt string_agg strpos substr substring sum to_char to_date to_json to_jsonb to_number "
    "to_timestamp to_tsquery to_tsvector trim trunc ts_rank unnest upper version "
    "current_database current_schema current_schemas pg_get_expr pg_get_constraintdef pg_table_is_visible "
    "format_type has_schema_privilege has_table_privilege obj_description col_description"
)
_HARMLESS = frozenset((*_NO_FUNCTIONS.split(), *_BUILT_IN.split()))
"""Words before a parenthesis that are no functions, and functions that change nothing."""
_DDL = frozenset({"CREATE", "ALTER", "DROP", "TRUNCATE", "RENAME", "GRANT", "REVOKE", "LOCK", "UNLOCK"})
_TEMPORARY = re.compile(r"(?:CREATE|DROP)\s+(?:OR\s+REPLACE\s+)?TEMPORARY\b", re.IGNORECASE)


def facts(statement: str, family: str) -> Facts:
    """What a statement is. ``family``: ``postgresql`` or ``mysql``."""
    return _facts(statement, family) if len(statement) <= 20_000 else _read(statement, family)


def renamed(statement: str, suffix: str) -> str:
    """A savepoint of one unit must not meet that of another: on MariaDB it would replace it."""
    match = _SAVEPOINT.fullmatch(statement)
    if match is None:
        return statement
    return f"{match[1]} {match[2]}{match[3]}{suffix}{match[2]}"


def _read(statement: str, family: str) -> Facts:
    out: Facts | None = None
    for piece in _split(statement, family):
        one = _one(piece, family)
        if one.refused:
            return one
        # Savepoints among other statements are not followed: whatever it is, it is work.
        out = one if out is None else Facts()
    return out or Facts()


_facts = functools.lru_cache(maxsize=1024)(_read)


def _split(statement: str, family: str) -> Iterator[str]:
    """The statements of a text. MySQL's drivers send one only, and a COMMIT is refused by the server there."""
    if family != "postgresql" or ";" not in statement:
        yield statement
        return
    start = 0
    for match in _PIECES.finditer(statement):
        if match[2]:
            yield statement[start : match.start()]
            start = match.end()
    if statement[start:].strip():
        yield statement[start:]


def _one(statement: str, family: str) -> Facts:
    blank = _BLANK.match(statement)
    text = statement[blank.end() :] if blank else statement
    word = _WORD.match(text)
    verb = word[0].upper() if word else ""
    second = _NEXT.match(text)
    then = second[1].upper() if second else ""
    savepoint = "ROLLBACK TO" if _TO.match(text) else verb
    if savepoint in ("SAVEPOINT", "RELEASE", "ROLLBACK TO"):
        match = _SAVEPOINT.fullmatch(text)
        return Facts(savepoint=savepoint, name=match[3].lower() if match else "")
    if verb in _ENDS or (verb == "PREPARE" and then == "TRANSACTION"):
        return Facts(
            f"{verb} inside a global transaction: commit or roll back by the driver's or the session's own methods; "
            "they end this unit of work, and the branch ends with the transaction",
            reasons.GUARD,
        )
    if verb == "SET" and _MODE.match(text):
        return Facts(
            "the isolation level and the mode of a transaction cannot be changed inside a global one: "
            "give them to the engine or the connection's settings",
            reasons.NOT_SUPPORTED,
        )
    if family == "mysql" and verb in _DDL and not _TEMPORARY.match(text):
        return Facts(
            f"{verb} ends a transaction on MariaDB and MySQL: not inside a global one", reasons.NOT_SUPPORTED
        )
    return Facts(reads=verb in _READS and _only_reads(text))


def _only_reads(text: str) -> bool:
    if _LOCKS.search(text):
        return False
    return all(name.lower() in _HARMLESS for name in _CALL.findall(text))
