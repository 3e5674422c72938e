"""docs/reliability.md and docs/bugs.md are true: what they name is there, and the record's mends are in the code."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from tests.record import page
from tests.record.__main__ import ROOT, main, show, take_out
from tests.record.bugs import BUGS, BY_NAME, Bug

PAGE = ROOT / "docs" / "reliability.md"
_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
_COMMAND = re.compile(r"\./scripts/[a-z-]+[^`#\n]*")
_MODULE = re.compile(r"exec python -m ([\w.]+)")


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


def promises() -> dict[str, str]:
    """By heading."""
    parts = re.split(r"^### (\d+\. .+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {name: text.split("\n## ")[0] for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_promise_names_a_test_and_every_test_is_there() -> None:
    assert [name.split(".")[0] for name in promises()] == [str(n + 1) for n in range(10)]
    for name, text in promises().items():
        named = _TEST.findall(text)
        assert named, name
        missing = [f"{file}::{test}" for file, test in named if test not in names_in(file)]
        assert not missing


def commands() -> list[str]:
    texts = [PAGE.read_text(), page.PAGE.read_text()]
    return sorted({" ".join(found.split()) for text in texts for found in _COMMAND.findall(text)})


@pytest.mark.parametrize("command", commands())
def test_every_command_is_there_with_its_options(command: str) -> None:
    script, *arguments = shlex.split(command)
    path = ROOT / script
    assert path.exists()
    text = path.read_text()
    for module in _MODULE.findall(text):
        place = ROOT / module.replace(".", "/")
        folder = place if place.is_dir() else place.parent
        text += "".join(source.read_text() for source in folder.glob("*.py"))
    if script == "./scripts/test":
        _pytest_knows(arguments)
        return
    for argument in arguments:
        if argument.startswith("--"):
            assert f'"{argument}"' in text, argument
    if arguments and arguments[0].isalpha():
        assert f'"{arguments[0]}"' in text


def _pytest_knows(arguments: list[str]) -> None:
    """Its paths are there, and what -k names is in one of them."""
    paths = [ROOT / a for a in arguments if a.startswith("tests/")]
    assert all(path.exists() for path in paths)
    if "-k" in arguments:
        wanted = arguments[arguments.index("-k") + 1]
        files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*.py"))]
        assert any(wanted in file.read_text() for file in files)


# ---- the record of bugs ----


def test_the_page_of_bugs_is_made_from_the_record() -> None:
    assert page.PAGE.read_text() == page.generated(), "run: ./scripts/bugs page"
    assert len(BY_NAME) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_mend_is_in_the_code_and_its_test_is_there(bug: Bug, tmp_path: Path) -> None:
    assert bug.edits
    for edit in bug.edits:
        copy = tmp_path / edit.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / edit.file).read_text())
    for edit in bug.edits:
        take_out(tmp_path, edit)
        ast.parse((tmp_path / edit.file).read_text())
    _pytest_knows(shlex.split(bug.test))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["fence-after-w", "order-over-the-end", "late-report"])
def test_without_its_mend_a_bug_shows(name: str) -> None:
    """Those that take a second or two; ``./scripts/bugs show --all`` has them all."""
    shown, said = show(BY_NAME[name])
    assert shown, "\n".join(said)
    assert any(line.startswith("FAILED") for line in said)


@pytest.mark.timeout(300)
def test_the_story_of_a_simulated_bug_is_told_to_its_end() -> None:
    shown, said = show(BY_NAME["looks-for-ever"])
    assert shown, "\n".join(said)
    assert "what is wrong:" in said[-2]
    assert "StandsStill" in said[-1]


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        (["late-report"], ""),
        (["late-report", "holder-cut-short"], ""),
        (["vote-of-another-call"], "mariadb"),
        (["--all"], "mariadb"),
    ],
)
def test_databases_are_brought_for_those_that_need_them(
    asked: list[str], needed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bugs", "needs", *asked])
    assert main() == 0
    assert capsys.readouterr().out.strip() == needed
