"""Two participants with threads, behind Flask or Django, for a WSGI server: stock on PostgreSQL, coupons on MariaDB.

What they do they write into their databases as notes. A body that ends with ``-no`` is refused, one with ``-later`` is
pending once.
"""

from __future__ import annotations

import os
from typing import Any

import django
import flask
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from sqlalchemy import create_engine, text

from txcoord_client import Pending, Refused
from txcoord_client.sync import Participant

INSERT = text("INSERT INTO note (body) VALUES (:body)")
_begun: set[str] = set()


def _said(body: str) -> None:
    if body.endswith("-no"):
        raise Refused("NO", "not this one")
    if body.endswith("-later") and body not in _begun:
        _begun.add(body)
        raise Pending(retry_after=0.05)


def participant(name: str, url: str) -> Participant:
    """One with a TCC operation, ``Reserve``, and an action, ``pack``. Without a URL only to be called."""
    made = Participant(name, db=create_engine(url) if url else None, token=os.environ.get("TOKEN") or ())

    class Reserve:
        def attempt(self, db: Any, *, body: str) -> dict[str, str]:
            db.execute(INSERT, {"body": f"try {body}"})
            _said(body)
            return {"body": body}

        def confirm(self, db: Any, hold: dict[str, str]) -> None:
            db.execute(INSERT, {"body": f"confirm {hold['body']}"})

        def cancel(self, db: Any, hold: dict[str, str]) -> None:
            db.execute(INSERT, {"body": f"cancel {hold['body']}"})

    def pack(db: Any, *, body: str) -> dict[str, str]:
        db.execute(INSERT, {"body": f"action {body}"})
        if name.endswith("coupons"):
            _said(body)
        return {"body": body}

    def unpack(db: Any, result: dict[str, str]) -> None:
        db.execute(INSERT, {"body": f"compensate {result['body']}"})

    made.tcc(Reserve)
    # Each participant's own class: `g.tcc` takes it.
    made.reserve = Reserve  # type: ignore[attr-defined]
    made.pack = made.action(pack)  # type: ignore[attr-defined]
    made.pack.compensate(unpack)  # type: ignore[attr-defined]
    return made


def flask_app() -> flask.Flask:
    app = flask.Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "a shop")
    stock, coupons = _both("flask")
    app.wsgi_app = stock.wsgi(app.wsgi_app, others=[coupons])  # type: ignore[method-assign]
    return app


urlpatterns: list[Any] = []


def django_app() -> Any:
    settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="x", ALLOWED_HOSTS=["*"])
    django.setup()
    stock, coupons = _both("django")
    urlpatterns.extend(stock.django_urls(others=[coupons]))
    return get_wsgi_application()


def _both(framework: str) -> tuple[Participant, Participant]:
    return (
        participant(f"{framework}-stock", os.environ["STOCK_URL"]),
        participant(f"{framework}-coupons", os.environ["COUPONS_URL"]),
    )
