"""Links between pages lead somewhere, and every page and every public name can be found."""

import re
from collections import Counter
from pathlib import Path

import pytest
from tests.docs.pages import PAGES, prose

import lorank


def anchors(page: Path) -> set[str]:
    """Of headings, as a Git host and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: list[str] = []
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.M):
        slug = (
            re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).strip().replace(" ", "-")
        )
        found.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page.resolve()
        assert file.exists(), f"{page}: {target}"
        assert file.is_file() or not anchor, f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {target}"


def test_the_index_has_every_page() -> None:
    listed = set(re.findall(r"(?:^|<)([\w./-]+?)>?$", Path("docs/index.md").read_text(encoding="utf-8"), re.M))
    missing = {page.stem for page in Path("docs").glob("*.md")} - listed - {"index"}
    assert not missing


def test_the_reference_has_every_public_name() -> None:
    text = Path("docs/api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.M)) | set(re.findall(r"`lorank\.(\w+)`", text))
    assert set(lorank.__all__) <= named


def test_the_readme_is_short() -> None:
    assert len(Path("README.md").read_text(encoding="utf-8").splitlines()) <= 130
