"""Tests the output of `zfserve info`."""

import json
from collections.abc import Callable

import pytest
from zfserve_cli.exit_statuses import OK

Run = Callable[..., int]


def test_info(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run("info") == OK
    shown = capsys.readouterr().out
    for figure in ("zfnet 3 (zfnet)", "224 × 224 RGB", "tench, church, golf ball", "110 × 110", "7 px", "87.50%"):
        assert figure in shown
    for figure in ("ready, the default", "birds", "model.onnx is missing"):
        assert figure in shown
    assert run("info", "--json") == OK
    document = json.loads(capsys.readouterr().out)
    assert document["layers"][0]["channels"] == 96
    assert [entry["state"] for entry in document["models"]] == ["failed", "ready", "ready"]
