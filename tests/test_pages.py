"""Tests the pages in Markdown: links, snippets, the map, and the page of the Python client."""

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import zfserve
from zfserve import AsyncClient, Client, TlsOptions, errors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MAP = DOCS / "README.md"
DOCS_PAGES = sorted(DOCS.rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS_PAGES]
CLIENT_PAGE = (DOCS / "client.md").read_text()
QUESTIONS: dict[str, str] = dict(re.findall(r"^\| \[[^]]+\]\(([^)]+)\) \| (.+\?) \|$", MAP.read_text(), re.MULTILINE))
"""Maps each page to the question that the map says it answers."""


def anchors(page: str) -> set[str]:
    """Returns the anchors that GitHub makes of the page's headings."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    headings: list[str] = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        if link.startswith("https://"):
            continue
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


def test_the_readme_links_the_map() -> None:
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", [page for page in DOCS_PAGES if page != MAP], ids=name_of)
def test_every_page_is_on_the_map(page: Path) -> None:
    assert f"]({page.relative_to(DOCS)})" in MAP.read_text()


@pytest.mark.parametrize("page", [page for page in DOCS_PAGES if page != MAP], ids=name_of)
def test_every_page_begins_with_the_question_that_it_answers(page: Path) -> None:
    title, empty, question, *_ = page.read_text().splitlines()
    assert title.startswith("# ")
    assert not empty
    assert question == f"*{QUESTIONS[str(page.relative_to(DOCS))]}*"


def test_the_site_has_the_pages_of_the_map_in_the_same_order() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\n\n")[0]
    on_the_map = re.findall(r"^## (.*)$|^\| \[([^]]+)\]\(([^)]+)\)", MAP.read_text(), re.MULTILINE)
    on_the_site = re.findall(r"^  - (.*):$|^      - (.*): (.*)$", navigation, re.MULTILINE)
    assert on_the_site == on_the_map


def paths_on(page: Path) -> list[str]:
    """Returns the paths of the repository that the page names as code: `folder/file`, from the repository's root."""
    folders = {entry.name for entry in ROOT.iterdir() if entry.is_dir()} - {"models", "runs"}
    code = re.findall(r"`([\w.-]+(?:/[\w.-]*)+)`", page.read_text())
    return [path for path in code if path.split("/")[0] in folders or path.endswith((".py", ".proto"))]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_every_path_on_the_page_exists(page: Path) -> None:
    assert [path for path in paths_on(page) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", DOCS / "architecture.md"], ids=name_of)
def test_the_pages_for_contributors_name_paths(page: Path) -> None:
    assert len(paths_on(page)) > 40


def test_the_page_of_the_installation_has_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    listed = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "install.md").read_text(), re.MULTILINE)
    assert set(listed) == extras - {"runtime", "model"}, "these two are parts of the others"


def test_every_snippet_is_python_that_imports_just_what_it_uses(tmp_path: Path) -> None:
    for page in PAGES:
        snippets: list[str] = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for number, snippet in enumerate(snippets):
            (tmp_path / f"{page.stem}-{number}.py").write_text(snippet)
    assert len(list(tmp_path.iterdir())) > 10
    command: list[str | Path] = [Path(sys.executable).parent / "ruff", "check", "--isolated", "--select", "F", tmp_path]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_api_reference_has_every_public_name_of_the_client() -> None:
    listed = re.findall(r"^::: zfserve\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(zfserve.__all__)


def test_the_clients_page_has_every_argument_method_and_error() -> None:
    arguments = set(inspect.signature(Client).parameters)
    assert arguments == set(re.findall(r"^\| `(\w+)` \| (?:`[^|]*`|30|64 MiB) \|", CLIENT_PAGE, re.MULTILINE))
    for cls in (Client, AsyncClient):
        methods = {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}
        assert all(re.search(rf"`?\b{name}\b", CLIENT_PAGE) for name in methods)
    for option in inspect.signature(Client.project).parameters.keys() - {"self"}:
        assert re.search(rf"\b{option}\b", CLIENT_PAGE), option
    for field in inspect.signature(TlsOptions).parameters:
        assert f"`{field}`" in CLIENT_PAGE.split("| `TlsOptions` | meaning |")[1]
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.ZfserveError):
            assert f"`{name}`" in CLIENT_PAGE.split("## Errors")[1]
