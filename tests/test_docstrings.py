"""Every docstring begins with a whole sentence, so that nobody has to read it twice."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FRAGMENT = re.compile(
    r"(What|Of|Whether|From|Those|That|As|By|With|Without|Else|Or|And|Where|How|Which|Who|Whom|Whose|None|Than|Told)\b"
)
"""A docstring that begins with one of these words has no subject and verb in nearly every case."""


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the text of every docstring of modules, classes, functions and assigned names."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text.strip()


def faults(source: str) -> list[str]:
    """Returns a sentence for each docstring that begins with a fragment or has no full stop."""
    found = []
    for line, text in docstrings(source):
        paragraph = text.split("\n\n")[0].rstrip()
        if FRAGMENT.match(text):
            found.append(f"line {line} begins with {text.split()[0]!r}")
        elif not paragraph.endswith((".", "?", ":", ")", "```")):
            found.append(f"line {line} has no full stop")
    return found


def python_files() -> list[str]:
    """Returns the Python files of the repository that people write."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if "_pb2" not in name and (ROOT / name).exists()]


def test_every_docstring_is_a_sentence() -> None:
    names = python_files()
    assert len(names) > 100
    found = {name: bad for name in names if (bad := faults((ROOT / name).read_text()))}
    assert not found


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        ("Whether an engine was lost.", "line 2 begins with 'Whether'"),
        ("Of one run.", "line 2 begins with 'Of'"),
        ("Returns the name", "line 2 has no full stop"),
        ("Returns the name.", None),
        ("Reads photos.\n\n    Args:\n        count: the number", None),
    ],
)
def test_a_fragment_is_found(docstring: str, fault: str | None) -> None:
    source = f'def f():\n    """{docstring}"""\n'
    assert faults(source) == ([] if fault is None else [fault])
