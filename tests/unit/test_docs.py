"""The docs: links resolve, code compiles, what comes from the code is current, nothing is left out."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from txcoord.config import variables
from txcoord.core.model import BranchState, TxState
from txcoord_client import errors
from txcoord_client.protocol import reasons

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.md"),
        ROOT / "clients" / "python" / "README.md",
    ]
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


def prose(text: str) -> str:
    """Without code."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def blocks(page: Path, language: str) -> Iterator[str]:
    for found, code in _FENCE.findall(page.read_text(encoding="utf-8")):
        if found == language:
            yield code


@pages
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pages
def test_python_compiles(page: Path) -> None:
    for number, code in enumerate(blocks(page, "python"), 1):
        compile(code, f"{name_of(page)}, block {number}", "exec", flags=_TOP_LEVEL_AWAIT)


@pages
def test_names_of_the_sdk_exist(page: Path) -> None:
    """What a block imports from the SDK is there."""
    import txcoord_client
    import txcoord_client.sync

    missing = [
        alias.name
        for code in blocks(page, "python")
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module == "txcoord_client"
        for alias in node.names
        if not hasattr(txcoord_client, alias.name)
    ]
    assert not missing


@pages
def test_code_fences_are_closed(page: Path) -> None:
    assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0


@pages
def test_no_address_of_an_index_and_no_path_of_a_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"/(?:work|home|root|Users)/|index-url|simple/", text)


def test_every_page_is_linked() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in _LINK.findall(page.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+:", link)
    }
    lonely = [name_of(p) for p in PAGES if p.is_relative_to(ROOT / "docs") and p.resolve() not in linked]
    assert not lonely


def test_what_comes_from_the_code_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/lib/diagrams.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    missing = [v for v in variables() if f"`{v.replace('<name>', 'NAME')}`" not in page]
    assert not missing
    rows = re.findall(r"^\| `[a-z_.A-Z]+` \| `TXCOORD_\w+` \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == len(variables())
    assert all(text for _, text in rows), "a setting says nothing of itself"


def test_every_state_has_a_meaning() -> None:
    page = (ROOT / "docs" / "reference" / "states.md").read_text(encoding="utf-8")
    assert not [s for s in (*TxState, *BranchState) if f"| {s} | " not in page]


def test_every_reason_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
    codes = [v for k, v in vars(reasons).items() if k.isupper() and isinstance(v, str)]
    assert codes
    assert not [code for code in codes if f"| `{code}`" not in page]


def test_every_error_of_the_sdk_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "sdk.md").read_text(encoding="utf-8")
    names = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.TxcoordError)
    ]
    assert names
    assert not [name for name in names if not re.search(rf"\b{name}\b", page)]


def test_license_is_in_both_packages() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert len(text.splitlines()) > 190
    assert (ROOT / "clients" / "python" / "LICENSE").read_text(encoding="utf-8") == text


def test_the_picture_of_the_readme_is_well_formed() -> None:
    from xml.etree import ElementTree

    for picture in (ROOT / "docs" / "images").glob("*.svg"):
        root = ElementTree.parse(picture).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.find("{http://www.w3.org/2000/svg}title") is not None


def test_the_example_of_the_readme_is_short() -> None:
    code = next(blocks(ROOT / "README.md", "python"))
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


_CODE = re.compile(r"""(?:reason=|default_reason = |ExitCode\.\w+, |Trouble\([^,()]+, )"([A-Z][A-Z_]+)\"""")


def test_every_reason_code_in_the_code_is_explained() -> None:
    page = (ROOT / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
    sources = [*(ROOT / "txcoord").rglob("*.py"), *(ROOT / "clients" / "python").rglob("*.py")]
    used = {code for path in sources for code in _CODE.findall(path.read_text(encoding="utf-8"))}
    assert len(used) > 5
    assert sorted(code for code in used - {"OTHER"} if f"`{code}`" not in page) == []
