"""What to do when a service that a test needs cannot be had on this machine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(service: str, why: str) -> NoReturn:
    """Skip the test; with CI=true fail it, so that nothing goes untested unseen."""
    message = f"{service} is missing: {why}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
