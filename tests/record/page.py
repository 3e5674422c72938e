"""``docs/bugs.md``, made from the record: ``./scripts/bugs page``."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from .bugs import BUGS, Bug

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bugs.md"
_HEAD = """# Bugs that were found

What the tools of this repository, and reviews, have found in txcoord before anybody could be hurt by it: what was
wrong, what found it, and **the command that shows it once more**. It takes the mend out of a copy of the code, runs the
test that knows of it, and says what fails:

```sh
./scripts/bugs list
./scripts/bugs show limbo-beyond-w     # one
./scripts/bugs show --all              # all: some minutes; those marked * need databases, which are brought
```

Tests see to it that each entry is true: its mend is in the code, once, and its test fails without it. Where nobody
wrote down what had found a bug, the tests that came with its mend are named. How txcoord is tested, and what is not
promised, is in [Reliability](reliability.md). This page is made by `./scripts/bugs page`.

"""


def generated() -> str:
    """The page."""
    return _HEAD + "\n".join(_entry(bug) for bug in BUGS)


def _entry(bug: Bug) -> str:
    files = ", ".join(f"[`{edit.file}`](../{edit.file})" for edit in bug.edits)
    also = f", and `{bug.also}`" if bug.also else ""
    needs = " *" if bug.services else ""
    return (
        f"## {bug.name}\n\n"
        + fill(bug.wrong, 118)
        + f"\n\n- found by {bug.found_by}\n"
        + f"- mended in {files}: *{bug.commit}*\n"
        + f"- to see it: `./scripts/bugs show {bug.name}`{needs}{also}\n"
    )
