"""A service whose workers are forked, as gunicorn --preload and Celery do it. Its module is loaded in the parent.

The environment says where coordinator and databases are, and whether the parent uses the Coordinator while it loads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from celery import Celery
from sqlalchemy import create_engine, text

from txcoord_client.sync import Coordinator

ENGINES = {name: create_engine(url) for name, url in json.loads(os.environ["SERVICE_DATABASES"]).items()}
COORD = Coordinator(os.environ["SERVICE_COORDINATOR"], resources=ENGINES)
INSERT = text("INSERT INTO note (body) VALUES (:body)")

if os.environ.get("SERVICE_PARENT_USES"):
    COORD.get("nothing")


def write(body: str) -> str:
    """A note in each database, in one transaction: the caller's if there is one."""
    with COORD.begin("forked") as g:
        for engine in ENGINES.values():
            with g.xa(engine) as db:
                db.execute(INSERT, {"body": body})
    return f"written by {os.getpid()}"


# ---- gunicorn ----


def plain(environ: Any, start_response: Any) -> Iterable[bytes]:
    """``GET /BODY`` writes BODY."""
    body = environ["PATH_INFO"].strip("/")
    try:
        said, status = write(body) if body else "ready", "200 OK"
    except Exception as error:
        said, status = f"{type(error).__name__}: {error}", "500 Internal Server Error"
    start_response(status, [("Content-Type", "text/plain")])
    return [said.encode()]


application = COORD.wsgi(plain)


# ---- celery ----


def celery(folder: str) -> Celery:
    """Its queue is a folder."""
    queue = dict.fromkeys(("data_folder_in", "data_folder_out"), f"{folder}/queue")
    app = Celery("forked", broker="filesystem://", backend=f"file://{folder}/results")
    app.conf.broker_transport_options = {
        **queue,
        "control_folder": f"{folder}/control",
        "polling_interval": 0.05,
    }
    app.conf.broker_connection_retry_on_startup = True
    app.conf.worker_hijack_root_logger = False
    app.task(write, name="write")
    return app


if "SERVICE_FOLDER" in os.environ:
    app = celery(os.environ["SERVICE_FOLDER"])
