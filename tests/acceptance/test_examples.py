"""The small examples run, and print what their READMEs say."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.acceptance import ROOT


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["travel", "coupon_and_stock", "mixed_checkout"])
def test_an_example_prints_what_its_readme_says(name: str) -> None:
    readme = (ROOT / "examples" / name / "README.md").read_text(encoding="utf-8")
    [expected] = re.findall(r"^```text\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}.run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, expected), done.stdout + done.stderr
