"""docs/settings.md has every option of `serve` and `worker`, with its variable and its default, and no other."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from zfserve_server.config import ServerConfig
from zfserve_server.serve_command import ENVIRONMENT_PREFIX
from zfserve_server.serve_command import add_arguments as add_serve_arguments
from zfserve_worker.worker_command import add_arguments as add_worker_arguments

PAGE = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
SERVE, WORKER = PAGE.split("## `zfserve serve`\n")[1].split("## `zfserve worker`\n")


def options(add_arguments: Callable[[argparse.ArgumentParser], None]) -> set[str]:
    """The first name of each, as `--help` has them."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    return {action.option_strings[0] for action in parser._actions}


def rows(part: str, columns: int) -> list[list[str]]:
    """Of its tables of options, the cells."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:4] == "| `-"]
    assert all(len(row) == columns for row in cells), "a cell too many or too few"
    return cells


def shown(default: object) -> str:
    """As a table has it; none of its own where there is no fixed one."""
    match default:
        case bool():
            return "on" if default else "off"
        case tuple():
            return f"`{default[0]}`"
        case int() | float():
            return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        case _:
            return f"`{default}`"


def test_every_option_of_the_server_with_its_variable_and_default() -> None:
    told = rows(SERVE, 4)
    names = [row[0].strip("`") for row in told]
    assert set(names) == options(add_serve_arguments)
    assert len(names) == len(set(names))
    for option, variable, default, meaning in told:
        name = option.strip("`").removeprefix("--").replace("-", "_")
        assert variable == f"`{ENVIRONMENT_PREFIX}{name.upper()}`"
        fixed = ServerConfig.model_fields[name].default
        assert default == shown(fixed) if fixed is not None else default, f"the default of {option}"
        assert meaning


def test_every_option_of_the_worker_with_its_default() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_worker_arguments(parser)
    told = rows(WORKER, 3)
    assert {row[0].strip("`") for row in told} == options(add_worker_arguments)
    defaults = {action.option_strings[0]: action.default for action in parser._actions}
    for option, default, meaning in told:
        fixed = defaults[option.strip("`")]
        assert default == shown(fixed) if fixed is not None else default, f"the default of {option}"
        assert meaning


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{name.name}" for name in Path(__file__).parent.parent.glob("docs/*.md"))]
)
def test_no_page_names_a_variable_of_ours_that_is_not_read(page: str) -> None:
    ours = {f"ZFSERVE_{name.upper()}" for name in ServerConfig.model_fields}
    ours |= {"ZFSERVE_ADDRESS", "ZFSERVE_TOKEN", "ZFSERVE_TOKEN_FILE"}
    text = (Path(__file__).parent.parent / page).read_text()
    assert set(re.findall(r"\bZFSERVE_[A-Z_]+", text)) <= ours
