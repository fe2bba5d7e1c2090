"""Tests that the page about the deconvnet is true: its table of rules is that of the code, and its sample runs."""

import re
from pathlib import Path

import pytest
from fakes.residual_model import write_residual_bundle
from zfserve_model.explanation.rules import RULES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "deconvnet.md").read_text()


def test_the_table_of_rules_is_that_of_the_code() -> None:
    section = PAGE.split("## The rule of each operation")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    written = [(name, kind.strip()) for operations, kind, _ in rows for name in re.findall(r"`(\w+)`", operations)]
    assert len(written) == len(dict(written)), "an operation stands in two rows"
    assert dict(written) == {name: rule.kind for name, rule in RULES.items()}


def test_the_sample_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    bundle = tmp_path / "models" / "zfnet" / "1"
    bundle.mkdir(parents=True)
    write_residual_bundle(bundle)
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    exec(compile(sample, "deconvnet.md", "exec"), {})
    assert len(list(tmp_path.glob("*.png"))) == 9
