"""The pages hang together: links lead somewhere, the index names them all, the README is short."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pages import LINK, PAGES, ROOT, prose, read


def test_the_readme_reads_in_five_minutes() -> None:
    assert len(prose("README.md").split()) < 5 * 240


def anchors(page: str) -> set[str]:
    """What a link may name after ``#``: the headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for file, anchor in LINK.findall(prose(page)):
        target = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert target.exists(), f"{page} links to {file}"
        if anchor:
            name = target.relative_to(ROOT).as_posix()
            assert anchor in anchors(name), f"{page} links to {file}#{anchor}"


def test_the_index_names_every_page() -> None:
    listed = {file for file, _ in LINK.findall(read("docs/README.md"))}
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= listed and "demo-study/README.md" in listed
