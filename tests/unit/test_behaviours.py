"""The list of behaviours names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ACCEPTANCE = Path(__file__).parents[1] / "acceptance"


def test_each_test_that_the_list_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::([\w*]+)`", (ACCEPTANCE / "README.md").read_text())
    assert len(named) > 50
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ACCEPTANCE / file).is_file()
        or (name != "*" and f"def {name}(" not in (ACCEPTANCE / file).read_text())
    ]
    assert not missing
