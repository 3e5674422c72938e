"""Django, unchanged: ``atomic``, autocommit and ``on_commit`` inside a global transaction."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.conf import settings
from sqlalchemy.engine import make_url

from tests.support.acceptance import Db, Site, new_gid
from tests.support.acceptance_sync import SyncClient, sync_client
from txcoord_client.sync import Aborted, NoTransaction, OverlappingUnits, Rejected


def settings_of(url: str, **more: Any) -> dict[str, Any]:
    parts = make_url(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.database,
        "USER": parts.username,
        "PASSWORD": parts.password or "",
        "HOST": parts.host,
        "PORT": parts.port,
        **more,
    }


def configured() -> None:
    """One process has one configuration: other tests need the same."""
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="", SECRET_KEY="x", DATABASES={}, DEBUG=False)
        django.setup()


@pytest.fixture(scope="module")
def site_with_django(sqlite_site: Site) -> Site:
    configured()
    return sqlite_site


@pytest.fixture(params=["request", "persistent"])
def shop(site_with_django: Site, request: pytest.FixtureRequest) -> Iterator[Shop]:
    age = 0 if request.param == "request" else 600
    with using(site_with_django, "refuse", CONN_MAX_AGE=age) as shop:
        yield shop


class Shop:
    """An application that knows nothing of global transactions."""

    def __init__(self, client: SyncClient, site: Site) -> None:
        self.client, self.site, self.coord = client, site, client.coord
        self.body = new_gid()

    def add(self, body: str = "") -> Any:
        return note_model().objects.create(body=body or self.body)

    def notes(self) -> list[str]:
        rows = self.site.accounts.sql(f"SELECT body FROM note WHERE body LIKE '{self.body}%' ORDER BY body")
        return rows.split()


class using:
    """Django on the site's first database, instrumented."""

    def __init__(
        self, site: Site, outside: Any, *, database: Db | None = None, resource: str = "accounts", **more: Any
    ) -> None:
        self.site, self.outside, self.more = site, outside, more
        self.database, self.resource = database or site.accounts, resource

    def __enter__(self) -> Shop:
        from django.db import connections

        self.kind = connections.__class__
        self.settings = dict(connections.settings)
        connections.settings["default"] = connections.configure_settings(
            {"default": settings_of(self.database.url, **self.more)}
        )["default"]
        if hasattr(connections._connections, "default"):
            del connections["default"]
        self.client = sync_client(self.site)
        client = self.client.__enter__()
        assert client.coord.instrument("default", resource=self.resource, outside=self.outside) == "default"
        return Shop(client, self.site)

    def __exit__(self, *args: Any) -> None:
        from django.db import connections

        instrumented: Any = connections.txcoord["default"]  # type: ignore[attr-defined]
        while instrumented._spare._idle:
            instrumented._spare._idle.pop().close()
        connections["default"].close()
        del connections["default"]
        connections.__class__ = self.kind
        connections.settings.update(self.settings)
        self.client.__exit__(None, None, None)
        assert self.site.prepared() == []


_made: list[Any] = []


def note_model() -> Any:
    if not _made:
        from django.db import models

        class Note(models.Model):
            body = models.TextField(primary_key=True)

            class Meta:
                app_label = "tests"
                db_table = "note"
                managed = False

        _made.append(Note)
    return _made[0]


def test_autocommit_and_atomic(shop: Shop) -> None:
    from django.db import connection, transaction

    with shop.coord.begin("t") as g:
        shop.add(f"{shop.body}-1")
        assert connection.get_autocommit()
        with transaction.atomic():
            assert connection.in_atomic_block
            shop.add(f"{shop.body}-2")
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                shop.add(f"{shop.body}-3")
                raise ZeroDivisionError
            with transaction.atomic():
                shop.add(f"{shop.body}-4")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            shop.add(f"{shop.body}-5")
            raise ZeroDivisionError
        with transaction.atomic():
            shop.add(f"{shop.body}-6")
            transaction.set_rollback(True)
        seen = note_model().objects.filter(body__startswith=shop.body).order_by("body")
        assert [note.body for note in seen] == [f"{shop.body}-{n}" for n in (1, 2, 4)]
        assert [note.body for note in seen.iterator(chunk_size=1)] == [f"{shop.body}-{n}" for n in (1, 2, 4)]
        assert shop.notes() == []
        assert len(g._branches) == 1
    assert shop.notes() == [f"{shop.body}-{n}" for n in (1, 2, 4)]


def test_an_exception_undoes_all(shop: Shop) -> None:
    from django.db import transaction

    with pytest.raises(ZeroDivisionError), shop.coord.begin("t"):
        shop.add(f"{shop.body}-1")
        with transaction.atomic():
            shop.add(f"{shop.body}-2")
        raise ZeroDivisionError
    assert shop.notes() == []


def test_a_failed_statement_undoes_only_its_unit(shop: Shop) -> None:
    from django.db import DataError, connection, transaction

    with shop.coord.begin("t"):
        shop.add(f"{shop.body}-1")
        with pytest.raises(DataError), connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")
        shop.add(f"{shop.body}-2")
        with pytest.raises(DataError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO note VALUES (%s)", [f"{shop.body}-3"])
            cursor.execute("SELECT 1/0")
        shop.add(f"{shop.body}-4")
    assert shop.notes() == [f"{shop.body}-{n}" for n in (1, 2, 4)]


def test_on_commit_hooks_run_when_the_unit_is_released(shop: Shop) -> None:
    from django.db import transaction

    ran: list[int] = []
    with shop.coord.begin("t"):
        with transaction.atomic():
            shop.add()
            transaction.on_commit(lambda: ran.append(1))
            assert ran == []
        assert (ran, shop.notes()) == ([1], [])
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            transaction.on_commit(lambda: ran.append(2))
            raise ZeroDivisionError
        transaction.on_commit(lambda: ran.append(3))
    assert ran == [1, 3]


def test_requests_as_units(shop: Shop) -> None:
    """``ATOMIC_REQUESTS`` wraps views in atomic, and Django closes old connections before and after."""
    from django.core.signals import request_finished, request_started
    from django.db import transaction

    with shop.coord.begin("t"):
        request_started.send(sender=None, environ={})
        with transaction.atomic():
            shop.add()
        request_finished.send(sender=None)
        shop.add(f"{shop.body}-2")
    assert shop.notes() == [shop.body, f"{shop.body}-2"]


def test_manual_commits(shop: Shop) -> None:
    from django.db import transaction

    with shop.coord.begin("t"):
        transaction.set_autocommit(False)
        shop.add(f"{shop.body}-1")
        transaction.commit()
        shop.add(f"{shop.body}-2")
        transaction.rollback()
        transaction.set_autocommit(True)
        shop.add(f"{shop.body}-3")
    assert shop.notes() == [f"{shop.body}-1", f"{shop.body}-3"]


def test_work_that_is_not_ended_dooms_it(shop: Shop) -> None:
    from django.db import transaction

    block = transaction.atomic()
    with pytest.raises(Aborted) as caught, shop.coord.begin("t"):
        block.__enter__()
        shop.add()
    assert caught.value.reason == "UNIT_OPEN"
    assert shop.notes() == []


def test_beside_sqlalchemy(shop: Shop) -> None:
    """Two resources of one coordinator: Django's is one branch, the other one another."""
    from django.db import transaction
    from sqlalchemy import text

    with shop.coord.begin("t") as g:
        with transaction.atomic():
            shop.add()
        with g.xa(shop.client.ledger) as db:
            db.execute(text("INSERT INTO note VALUES (:body)"), {"body": shop.body})
    assert shop.site.counts(shop.body) == (1, 1)


def test_writes_outside_are_refused(shop: Shop) -> None:
    from django.db import connection, transaction

    for _ in range(2):
        assert note_model().objects.filter(body=shop.body).count() == 0
        with pytest.raises(NoTransaction):
            shop.add()
        with pytest.raises(NoTransaction), transaction.atomic():
            shop.add()
        with pytest.raises(NoTransaction), connection.cursor() as cursor:
            cursor.execute("WITH x AS (INSERT INTO note VALUES (%s)) SELECT 1", [shop.body])
    with shop.coord.outside():
        shop.add(f"{shop.body}-1")
        with transaction.atomic():
            shop.add(f"{shop.body}-2")
    with shop.coord.begin("t"), shop.coord.outside():
        shop.add(f"{shop.body}-3")
        assert f"{shop.body}-3" in shop.notes()
    with pytest.raises(NoTransaction):
        shop.add()
    assert shop.notes() == [f"{shop.body}-{n}" for n in (1, 2, 3)]


def test_a_block_around_it_is_another_transaction(shop: Shop) -> None:
    """What is open on the thread's usual connection stays as it is."""
    from django.db import connection, transaction

    with transaction.atomic():
        assert note_model().objects.filter(body=shop.body).count() == 0
        with shop.coord.begin("t"):
            assert not connection.in_atomic_block
            shop.add()
        assert connection.in_atomic_block
        assert shop.notes() == [shop.body]


def test_threads(shop: Shop) -> None:
    raised: list[BaseException] = []

    def run(work: Any) -> None:
        from django.db import connections

        try:
            work()
        except BaseException as error:
            raised.append(error)
        finally:
            connections["default"].close()

    def start(work: Any) -> None:
        thread = threading.Thread(target=run, args=(work,))
        thread.start()
        thread.join()

    with shop.coord.begin("t"):
        shop.add(f"{shop.body}-1")
        start(lambda: shop.add(f"{shop.body}-2"))
        assert [type(error) for error in raised] == [NoTransaction]
        context = contextvars.copy_context()
        start(lambda: context.run(shop.add, f"{shop.body}-3"))
        assert len(raised) == 1
    assert shop.notes() == [f"{shop.body}-1", f"{shop.body}-3"]


def test_isolation_level_of_the_settings(site_with_django: Site) -> None:
    from django.db import connection
    from psycopg import IsolationLevel

    options = {"isolation_level": IsolationLevel.SERIALIZABLE}
    with using(site_with_django, "local", OPTIONS=options) as shop:
        shop.add(f"{shop.body}-1")
        with shop.coord.begin("t"), connection.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            assert cursor.fetchone() == ("serializable",)
            shop.add(f"{shop.body}-2")
        assert shop.notes() == [f"{shop.body}-1", f"{shop.body}-2"]


def test_with_djangos_pool(site_with_django: Site) -> None:
    from django.db import connection, transaction

    with using(site_with_django, "refuse", OPTIONS={"pool": {"min_size": 1, "max_size": 2}}) as shop:
        for number in range(3):
            with shop.coord.begin("t"), transaction.atomic():
                shop.add(f"{shop.body}-{number}")
            with pytest.raises(NoTransaction):
                shop.add()
            connection.close()
        assert len(shop.notes()) == 3
        connection.close_pool()


def test_what_is_refused(shop: Shop, site_with_django: Site) -> None:
    from django.db import connection

    with pytest.raises(Rejected, match="already"):
        shop.coord.instrument("default", resource="accounts")
    with shop.coord.begin("t"):
        with pytest.raises(Rejected), connection.cursor() as cursor:
            cursor.execute("COMMIT")
        shop.add()
    assert shop.notes() == [shop.body]


def test_overlapping_blocks_of_threads(shop: Shop) -> None:
    from django.db import transaction

    def younger() -> None:
        block = transaction.atomic()
        block.__enter__()
        shop.add(f"{shop.body}-2")

    with pytest.raises((Aborted, OverlappingUnits)) as caught, shop.coord.begin("t"), transaction.atomic():
        shop.add(f"{shop.body}-1")
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(younger))
        thread.start()
        thread.join()
    assert caught.value.reason == "OVERLAPPING_UNITS"
    assert shop.notes() == []


def test_a_block_of_its_own_by_the_alias(shop: Shop) -> None:
    """``g.xa(alias)`` gives the driver's connection of the branch that the models write on."""
    with shop.coord.begin("t") as g, g.xa("default") as db:
        db.execute("INSERT INTO note (body) VALUES (%s)", (f"{shop.body}-1",))
        shop.add(f"{shop.body}-2")
        assert db.execute("SELECT count(*) FROM note WHERE body LIKE %s", (f"{shop.body}%",)).fetchone() == (
            2,
        )
        assert shop.notes() == []
    assert shop.notes() == [f"{shop.body}-1", f"{shop.body}-2"]
    with pytest.raises(Rejected, match="instrument"), shop.coord.begin("t") as g, g.xa("reporting"):
        pass
