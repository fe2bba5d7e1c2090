"""Tests `zfserve token` as the command line runs it."""

import stat
from pathlib import Path

import pytest
from zfserve_cli.main import main
from zfserve_runtime.access.callers_file import Callers, read_callers_file


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZFSERVE_TOKENS", str(tmp_path / "tokens.json"))
    return tmp_path / "tokens.json"


def test_a_token_is_printed_once_and_lets_its_caller_in(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "new", "shop", "--allow", "classify, describe"]) == 0
    token = capsys.readouterr().out.strip()
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    caller = Callers(read_callers_file(file)).find_by_token(token)
    assert caller is not None
    assert caller.name == "shop"
    assert caller.may_call("/zfserve.v1.VisionService/Classify")
    assert not caller.may_call("/zfserve.v1.VisionService/Project")

    assert main(["token", "new", "mesh", "--certificate", "spiffe://mesh", "--allow", "all"]) == 0
    assert main(["token", "list"]) == 0
    listed = capsys.readouterr().out
    assert token not in listed
    assert ["shop", "a", "token", "classify,", "describe"] in [line.split() for line in listed.splitlines()]
    assert "spiffe://mesh" in listed

    assert main(["token", "remove", "shop"]) == 0
    assert Callers(read_callers_file(file)).find_by_token(token) is None
    assert [entry.name for entry in read_callers_file(file).callers] == ["mesh"]
    assert list(file.parent.iterdir()) == [file], "no lock and no partial file is left"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["new", "shop"], "two callers have the same name"),
        (["new", "a b"], "a caller's name has 1 to 64 letters"),
        (["new", "other", "--allow", "fly"], "fly permits nothing"),
        (["remove", "other"], "has no caller other"),
        (["list", "--tokens", "missing/tokens.json"], "cannot be read"),
        (["new", "other", "--tokens", "missing/tokens.json"], "cannot be written"),
    ],
)
def test_an_impossible_change_is_an_error_and_changes_nothing(
    file: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "new", "shop"]) == 0
    before = file.read_text()
    assert main(["token", *arguments]) == 2
    output = capsys.readouterr().err.splitlines()
    assert output[-1].startswith("error: ")
    assert complaint in output[-1]
    assert file.read_text() == before
