"""The customer's points: Flask and Flask-SQLAlchemy, as their tutorials write it.

gunicorn examples.between_services.points_flask:app
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy

from txcoord_client.sync import Coordinator

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
db = SQLAlchemy(app)


class Account(db.Model):  # type: ignore[name-defined]
    id = db.Column(db.Integer, primary_key=True)
    balance = db.Column(db.BigInteger, nullable=False)


@app.post("/credit")
def credit() -> dict[str, Any]:
    order = request.get_json()
    account = db.get_or_404(Account, order["account"], description="no such account")
    account.balance = Account.balance + order["cents"]
    db.session.commit()
    return {"balance": account.balance}


@app.get("/health")
def health() -> str:
    return "ok"


# ---- with these lines it takes part in its caller's transaction ----

coord = Coordinator(os.environ["TXCOORD_ADDRESS"])
with app.app_context():
    coord.instrument(db.engine, resource="points")
app.wsgi_app = coord.wsgi(app.wsgi_app)  # type: ignore[method-assign]
