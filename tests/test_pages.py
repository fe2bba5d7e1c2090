"""The pages: every link leads somewhere, every snippet is Python, and the client's page knows all of the client."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from zfserve import AsyncClient, Client, TlsOptions, errors

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CLIENT_PAGE = (ROOT / "docs" / "client.md").read_text()


def anchors(page: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    headings: list[str] = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    astray = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        if link.startswith("https://"):
            continue
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            astray.append(link)
    assert not astray


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=lambda page: page.name)
def test_every_page_can_be_reached_from_the_readme(page: Path) -> None:
    assert f"](docs/{page.name})" in (ROOT / "README.md").read_text()


def test_every_snippet_is_python_that_imports_just_what_it_uses(tmp_path: Path) -> None:
    for page in PAGES:
        snippets: list[str] = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for number, snippet in enumerate(snippets):
            (tmp_path / f"{page.stem}-{number}.py").write_text(snippet)
    assert len(list(tmp_path.iterdir())) > 10
    command: list[str | Path] = [Path(sys.executable).parent / "ruff", "check", "--isolated", "--select", "F", tmp_path]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_clients_page_has_every_argument_method_and_error() -> None:
    arguments = set(inspect.signature(Client).parameters)
    assert arguments == set(re.findall(r"^\| `(\w+)` \| (?:`[^|]*`|30|64 MiB) \|", CLIENT_PAGE, re.MULTILINE))
    for cls in (Client, AsyncClient):
        methods = {name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}
        assert all(re.search(rf"`?\b{name}\b", CLIENT_PAGE) for name in methods)
    for option in inspect.signature(Client.project).parameters.keys() - {"self"}:
        assert re.search(rf"\b{option}\b", CLIENT_PAGE), option
    for field in inspect.signature(TlsOptions).parameters:
        assert f"`{field}`" in CLIENT_PAGE.split("| `TlsOptions` |")[1]
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.ZfserveError):
            assert f"`{name}`" in CLIENT_PAGE.split("## Errors")[1]
