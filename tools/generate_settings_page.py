"""Generates the tables of docs/settings.md from the settings of server and worker.

`python tools/generate_settings_page.py` writes the page; with `--check` it says whether the page is current. The tables
stand below the headings `### SECTION` of each command; everything else on the page is written by hand.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from zfserve_runtime.settings import ProcessSettings, default_text, flag_of
from zfserve_server.config import ServerConfig
from zfserve_worker.config import WorkerConfig

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

COMMANDS: dict[str, type[ProcessSettings]] = {"zfserve serve": ServerConfig, "zfserve worker": WorkerConfig}

_TABLE = r"(?:^\|.*\n)+"


def table(settings: type[ProcessSettings], names: tuple[str, ...]) -> Iterator[str]:
    """Yields the lines of the table of these settings."""
    yield "| flag | environment | default | meaning |\n"
    yield "|---|---|---|---|\n"
    for name in names:
        field = settings.model_fields[name]
        default = default_text(field)
        shown = default if default in ("on", "off", "unset") else f"`{default}`"
        meaning = re.sub(r"(?<!`)(--[a-z][a-z-]*)", r"`\1`", field.description or "")
        yield f"| `{flag_of(name)}` | `{settings.variable_of(name)}` | {shown} | {meaning} |\n"


def generate(page: str) -> str:
    """Returns the page with new tables.

    Raises:
        ValueError: a section has no heading on the page, or no table below its heading.
    """
    for command, settings in COMMANDS.items():
        start = page.index(f"## `{command}`\n")
        for section, names in settings.sections.items():
            heading = re.compile(rf"(^### {section}\n\n){_TABLE}", re.MULTILINE)
            found = heading.search(page, start)
            if found is None:
                raise ValueError(f"docs/settings.md has no table below the heading {section!r} of `{command}`")
            page = page[: found.end(1)] + "".join(table(settings, names)) + page[found.end() :]
    return page


def main() -> int:
    page = PAGE.read_text()
    current = generate(page)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(current)
    elif page != current:
        sys.stderr.write("docs/settings.md is out of date; run `python tools/generate_settings_page.py`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
