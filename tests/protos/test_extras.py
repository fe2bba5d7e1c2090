"""Tests the sentence for a library that is not installed. This checkout can run the command in it."""

import re
import tomllib
from pathlib import Path

from zfserve_cli.main import COMMANDS
from zfserve_engines.catalogue import ENGINE_KINDS
from zfserve_protos.extras import not_installed

ROOT = Path(__file__).parent.parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_the_sentence_has_the_command_to_run() -> None:
    assert not_installed("torch", "worker") == (
        "torch is not installed; in a checkout of zfserve: pip install -c constraints.txt -e '.[worker]'"
    )
    assert "pip install --extra-index-url https://pypi.nvidia.com -c" in not_installed(
        "TensorRT", "tensorrt", "https://pypi.nvidia.com"
    )


def test_every_extra_that_is_named_exists() -> None:
    sources = "".join(file.read_text() for room in ROOT.iterdir() for file in room.glob("zfserve_*/**/*.py"))
    named = set(re.findall(r"not_installed\(.*[\"']([a-z-]+)[\"']\)", sources))
    assert named == {"dev", "export", "server", "tracing", "train"}, "all other extras belong to commands and engines"
    named |= {command.extra for command in COMMANDS.values() if command.extra}
    named |= {kind.package.extra for kind in ENGINE_KINDS.values()}
    assert named <= EXTRAS.keys()


def test_no_other_place_says_how_to_install_zfserve() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/zfserve_*/**/*.py")]
    assert not [str(page) for page in pages if re.search(r"pip install [^`\n]*zfserve\[", page.read_text())]
