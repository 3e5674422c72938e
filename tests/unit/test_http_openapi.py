"""The description of the HTTP API: valid, current, and true to the routes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from txcoord.api.http import mapping
from txcoord.api.http.front import ROUTES, Route

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = json.loads((ROOT / "txcoord" / "api" / "http" / "openapi.json").read_text())


def test_it_is_valid() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_it_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/lib/openapi.py", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_it_has_every_route_and_no_other() -> None:
    told = {
        (method.upper(), path)
        for path, item in DOCUMENT["paths"].items()
        if path.startswith("/v1/")
        for method in item
    }
    assert told == {(route.method, route.path) for route in ROUTES}
    names = [operation["operationId"] for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_examples_are_read(route: Route) -> None:
    operation = DOCUMENT["paths"][route.path][route.method.lower()]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in body:
        mapping.read(body["example"], route.request())
        schema = {**body["schema"], "components": DOCUMENT["components"]}
        assert list(OAS31Validator(schema).iter_errors(body["example"])) == []
