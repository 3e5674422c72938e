"""The small examples run, and print what their READMEs say."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from examples.order_service.run import run
from tests.support.acceptance import ROOT
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer


def expected(name: str) -> str:
    readme = (ROOT / "examples" / name / "README.md").read_text(encoding="utf-8")
    [found] = re.findall(r"^```text\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    return str(found)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["travel", "coupon_and_stock", "mixed_checkout"])
def test_an_example_prints_what_its_readme_says(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}.run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, expected(name)), done.stdout + done.stderr


@pytest.mark.timeout(180)
def test_the_order_service_on_servers_that_are_there(
    pg18: PostgresServer, mariadb: MariaDBServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(pg18, mariadb)
    assert capfd.readouterr().out == expected("order_service")
