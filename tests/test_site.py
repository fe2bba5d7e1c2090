"""Builds the documentation site: it loads nothing from elsewhere, and a broken link fails the build."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOADED_FROM_ELSEWHERE = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=["']?(?:https?:)?//[^"'\s>]+"""
)


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Builds the site of the tree at `root` in strict mode, as `make docs` does."""
    command: list[str | Path] = [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--site-dir", site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """Returns a tree with our mkdocs.yml and hook, whose docs/ holds one page. Tests write to that page."""
    root = tmp_path / "tree"
    (root / "docs").mkdir(parents=True)
    (root / "tools").mkdir()
    (root / "client").mkdir()
    (root / "LICENSE").write_text("")
    shutil.copy(ROOT / "tools" / "docs_links.py", root / "tools")
    settings = (ROOT / "mkdocs.yml").read_text()
    (root / "mkdocs.yml").write_text(re.sub(r"^nav:\n(?:  .*\n)+", "", settings, flags=re.MULTILINE))
    return root


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = build(ROOT, tmp_path)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: LOADED_FROM_ELSEWHERE.findall(page.read_text()) for page in pages} == {
        page.name: [] for page in pages
    }
    assert not [
        style for style in tmp_path.rglob("*.css") if re.search(r"url\(\s*[\"']?(https?:)?//", style.read_text())
    ]
    assert (tmp_path / "search" / "search_index.json").exists()


def test_a_broken_link_fails_the_build(small_tree: Path, tmp_path: Path) -> None:
    links = ["missing.md", "#no-such-heading", "images/missing.png", "../missing.py", "/absolute.md", "unknown"]
    (small_tree / "docs" / "README.md").write_text("# Home\n\n" + "".join(f"[somewhere]({link})\n" for link in links))
    built = build(small_tree, tmp_path / "site")
    assert built.returncode == 1
    assert built.stderr.count("WARNING") == len(links), built.stderr
    assert all(link in built.stderr for link in links), built.stderr


def test_a_link_to_a_source_file_becomes_its_path(small_tree: Path, tmp_path: Path) -> None:
    (small_tree / "docs" / "README.md").write_text("# Home\n\n[The licence\nof it](../LICENSE)\n")
    (small_tree / "docs" / "deep").mkdir()
    (small_tree / "docs" / "deep" / "page.md").write_text(
        "# Page\n\n[The licence](../../LICENSE), [home](../README.md)\n"
    )
    built = build(small_tree, tmp_path / "site")
    assert built.returncode == 0, built.stderr
    assert "<p>The licence\nof it (<code>LICENSE</code>)</p>" in (tmp_path / "site" / "index.html").read_text()
    page = (tmp_path / "site" / "deep" / "page.html").read_text()
    assert '<p>The licence (<code>LICENSE</code>), <a href="../index.html">home</a></p>' in page


def test_a_link_to_a_source_file_leads_to_the_repository_where_one_is_set(small_tree: Path, tmp_path: Path) -> None:
    settings = small_tree / "mkdocs.yml"
    settings.write_text(settings.read_text().replace("# repo_url: ", "repo_url: "))
    (small_tree / "docs" / "README.md").write_text("# Home\n\n[The licence](../LICENSE)\n")
    built = build(small_tree, tmp_path / "site")
    assert built.returncode == 0, built.stderr
    assert 'href="https://github.com/OWNER/zfserve/blob/main/LICENSE"' in (tmp_path / "site" / "index.html").read_text()
