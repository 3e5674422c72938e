"""``scripts/bugs``: the record of bugs that were found, and each of them once more."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import page
from .bugs import BUGS, BY_NAME, Bug, Edit

ROOT = Path(__file__).resolve().parents[2]
_LINES = 8
_TEST_S = 300


def main() -> int:
    """Parse, do, say."""
    parser = argparse.ArgumentParser(prog="scripts/bugs", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="all that were found")
    for name, text in (
        ("show", "take the mend out of a copy of the code, and see the test fail"),
        ("needs", "the database servers that show would need"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("names", nargs="*", metavar="NAME", help="; ".join(BY_NAME))
        verb.add_argument("--all", action="store_true")
    verbs.add_parser("page", help="write docs/bugs.md")
    asked = parser.parse_args()
    if asked.verb == "page":
        page.PAGE.write_text(page.generated())
        return 0
    if asked.verb == "list":
        for bug in BUGS:
            print(f"{bug.name:26} {bug.found_by}")
        return 0
    unknown = [name for name in asked.names if name not in BY_NAME]
    if unknown or not (asked.names or asked.all):
        parser.error(f"which? {', '.join(unknown or BY_NAME)}")
    bugs = BUGS if asked.all else [BY_NAME[name] for name in asked.names]
    if asked.verb == "needs":
        print("mariadb" if any(bug.services for bug in bugs) else "")
        return 0
    missed = 0
    for bug in bugs:
        shown, said = show(bug)
        missed += not shown
        print(f"{bug.name}: {'it shows' if shown else 'NOT SHOWN'}")
        print("\n".join(f"    {line}" for line in said))
    return 1 if missed else 0


def show(bug: Bug) -> tuple[bool, list[str]]:
    """Does its test fail without the mend, and with it not? What pytest says of it."""
    with tempfile.TemporaryDirectory(prefix="txcoord-bug-") as folder:
        copy = Path(folder)
        copy.chmod(0o755)  # Servers that root starts run as somebody else.
        for name in ("txcoord", "clients", "tests", "scripts", "requirements", "pyproject.toml"):
            source, target = ROOT / name, copy / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        for name in (".venv", ".cache"):
            if (ROOT / name).exists():
                (copy / name).symlink_to(ROOT / name)
        for edit in bug.edits:
            take_out(copy, edit)
        code, said = _pytest(copy, bug.test)
    failed = [line for line in said if line.startswith("FAILED")]
    why = [line for line in said if line.startswith("E  ")]
    if bug.test.startswith("tests/sim/"):
        # The story of a simulated world is told to its end.
        why = list(itertools.takewhile(lambda line: not line.startswith("E   assert "), why))
    else:
        why = why[:_LINES]
    # 1: tests were run. One that could not be set up is no proof.
    return code == 1 and bool(failed), [*failed, *why] or said[-_LINES:]


def take_out(root: Path, edit: Edit) -> None:
    """Bring one place back to what it was. Raises ValueError where the mend is not there, or not once."""
    path = root / edit.file
    text = path.read_text()
    if text.count(edit.mended) != 1:
        raise ValueError(f"{edit.file} has {edit.mended!r} {text.count(edit.mended)} times")
    path.write_text(text.replace(edit.mended, edit.broken))


def _pytest(root: Path, arguments: str) -> tuple[int, list[str]]:
    options = ["-q", "--tb=short", "-rfE", "-p", "no:cacheprovider", f"--timeout={_TEST_S}"]
    ran = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", *options, *shlex.split(arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'clients' / 'python'}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, (ran.stdout + ran.stderr).strip().splitlines()


if __name__ == "__main__":
    raise SystemExit(main())
