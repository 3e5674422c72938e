"""The example of FastAPI, Flask, Django and gRPC runs as its README says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.acceptance import ROOT


@pytest.mark.timeout(180)
def test_the_example_does_every_order_in_all_databases_or_in_none() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.between_services.run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 done" in done.stdout
    assert done.stdout.rstrip().endswith("nothing left prepared: yes")
