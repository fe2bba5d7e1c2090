"""Holds docs/settings.md and the command line against the settings of server and worker."""

import argparse
import importlib
import re
from pathlib import Path

import pytest
from zfserve_cli.main import COMMANDS
from zfserve_runtime.settings import ProcessSettings, flag_of
from zfserve_server.config import ServerConfig
from zfserve_worker.config import WorkerConfig

from tools.generate_settings_page import generate

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "settings.md").read_text()
SERVE, WORKER = PAGE.split("## `zfserve serve`\n")[1].split("## `zfserve worker`\n")
BOTH = pytest.mark.parametrize(
    ("command", "settings", "part"), [("serve", ServerConfig, SERVE), ("worker", WorkerConfig, WORKER)]
)


def shown(default: object) -> str:
    """Returns the default as the tables show it."""
    match default:
        case None:
            return "unset"
        case bool():
            return "on" if default else "off"
        case tuple():
            return f"`{default[0]}`"
        case float():
            return f"`{default:g}`"
        case _:
            return f"`{default}`"


def test_the_tables_are_generated_from_the_settings() -> None:
    assert generate(PAGE) == PAGE, "run `python tools/generate_settings_page.py`"


@BOTH
def test_each_setting_has_a_row_with_its_flag_variable_default_and_meaning(
    command: str, settings: type[ProcessSettings], part: str
) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:4] == "| `-"]
    expected = [
        [f"`{flag_of(name)}`", f"`{settings.variable_of(name)}`", shown(settings.model_fields[name].default)]
        for names in settings.sections.values()
        for name in names
    ]
    assert [row[:3] for row in rows] == expected
    assert all(len(row) == 4 and row[3].endswith(".") for row in rows)


@BOTH
def test_each_setting_is_in_one_section_and_has_one_flag(
    command: str, settings: type[ProcessSettings], part: str
) -> None:
    listed = [name for names in settings.sections.values() for name in names]
    assert sorted(listed) == sorted(settings.model_fields)
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(COMMANDS[command].module).add_arguments(parser)
    assert {action.option_strings[0] for action in parser._actions} == {flag_of(name) for name in listed}
    assert all(action.default is None for action in parser._actions), "else a flag would always win"


def test_server_and_worker_share_no_variable() -> None:
    """A worker that the server starts inherits the server's environment."""
    server, worker = (
        {settings.variable_of(name) for name in settings.model_fields} for settings in (ServerConfig, WorkerConfig)
    )
    assert not server & worker


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))])
def test_no_page_names_a_variable_of_ours_that_is_not_read(page: str) -> None:
    ours = {settings.variable_of(name) for settings in (ServerConfig, WorkerConfig) for name in settings.model_fields}
    ours |= {"ZFSERVE_ADDRESS", "ZFSERVE_TOKEN", "ZFSERVE_TOKEN_FILE"}
    assert set(re.findall(r"\bZF(?:SERVE|WORKER)_[A-Z_]*[A-Z]", (ROOT / page).read_text())) <= ours
