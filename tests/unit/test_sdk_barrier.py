"""The barrier of a participant: what it refuses before it writes."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine

from txcoord_client import Rejected
from txcoord_client.sync._barrier import refuse_autocommit


def test_an_engine_without_transactions_is_refused() -> None:
    with create_engine("sqlite://").connect() as connection:
        refuse_autocommit(connection)
    with create_engine("sqlite://", isolation_level="AUTOCOMMIT").connect() as connection:
        with pytest.raises(Rejected):
            refuse_autocommit(connection)
        refuse_autocommit(connection.execution_options(isolation_level="SERIALIZABLE"))
    with (
        create_engine("sqlite://").execution_options(isolation_level="AUTOCOMMIT").connect() as connection,
        pytest.raises(Rejected),
    ):
        refuse_autocommit(connection)
