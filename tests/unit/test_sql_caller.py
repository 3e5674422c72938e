"""What an error of a database means for best-effort SQL."""

from __future__ import annotations

import pytest
from asyncmy.errors import IntegrityError, OperationalError
from sqlalchemy.exc import DBAPIError

from txcoord.adapters.calling.sql_ import answer_of
from txcoord.core.action import AnswerKind
from txcoord.core.breaker import means_away
from txcoord.core.statements import why_not


class FromPostgres(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__("as the driver says it")
        self.sqlstate = sqlstate


def wrapped(error: Exception, cause: BaseException | None = None) -> DBAPIError:
    error.__cause__ = cause
    made = DBAPIError.instance("UPDATE", {}, error, Exception)
    assert isinstance(made, DBAPIError)
    return made


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        # Its client was refused by the operating system, whose number is another one.
        (
            wrapped(OperationalError(2003, "Can't connect"), ConnectionRefusedError(111, "refused")),
            "SQL_2003",
        ),
        (wrapped(OperationalError(2013, "Lost connection")), "SQL_2013"),
        (wrapped(FromPostgres("57P03")), "SQLSTATE_57P03"),
        (wrapped(Exception("wrapped"), FromPostgres("08006")), "SQLSTATE_08006"),
    ],
)
def test_a_database_that_is_away(error: DBAPIError, reason: str) -> None:
    answer = answer_of(error)
    assert answer.kind is AnswerKind.FAILED
    assert answer.reason.startswith(f"{reason}: ")
    assert means_away(answer.reason)


@pytest.mark.parametrize(
    "error",
    [
        wrapped(IntegrityError(1062, "Duplicate entry")),
        wrapped(OperationalError(4025, "CONSTRAINT failed")),
        wrapped(FromPostgres("23505")),
    ],
)
def test_a_no_to_the_statement(error: DBAPIError) -> None:
    assert answer_of(error).kind is AnswerKind.REFUSED


@pytest.mark.parametrize(
    "error",
    [
        wrapped(OperationalError(1213, "Deadlock found")),
        wrapped(FromPostgres("40P01")),
        wrapped(FromPostgres("28P01")),  # a password that was changed
        wrapped(FromPostgres("3D000")),
    ],
)
def test_what_passes_by_itself_is_no_sign_that_it_is_away(error: DBAPIError) -> None:
    answer = answer_of(error)
    assert answer.kind is AnswerKind.FAILED
    assert not means_away(answer.reason)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE t SET n = n + :n WHERE id = :id", "its parameter :id"),
        ("INSERT INTO t VALUES (' :b', :n)", "its parameter :b"),
        (r"INSERT INTO t VALUES (' \:b', :n::int)", ""),
        ("COMMIT", "INSERT, UPDATE"),
        ("UPDATE t SET n = :n; COMMIT", "semicolon"),
        ("INSERT INTO txcoord_marker VALUES (:n)", "txcoord_"),
        ("DELETE FROM public.TXCOORD_marker", "txcoord_"),
        (r'INSERT INTO U&"\0074xcoord_marker" VALUES (:n)', "txcoord_"),
    ],
)
def test_what_is_never_run(statement: str, why: str) -> None:
    found = why_not(statement, {"n"})
    assert why in found
    assert bool(why) == bool(found)
