import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes.toy_run import CPU
from zfserve_model.compare_command import add_arguments, run
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.training.recipe import Recipe, Stage
from zfserve_model.training.report import write_recipe
from zfserve_model.training.state import EpochResult, Plan, TrainingState

RECIPE = Recipe(stages=(Stage(64, 1), Stage(224, 1)))
FIRST = EpochResult(1, 64, 0.1, 0.7, 0.5, 0.7, 0.5, 1.0, 6, 10.0, 1.0)
LAST = replace(FIRST, epoch=2, val_top1=0.75, val_top5=0.875, fitted_top1=0.9)


def write_run(folder: Path, *results: EpochResult, removed: tuple[str, ...] = (), recipe: Recipe = RECIPE) -> Path:
    folder.mkdir()
    spec = NetworkSpec("zfnet-fig3", 2, 8, batch_norm=True, removed=removed)
    state = TrainingState(
        build_network(spec, torch.Generator().manual_seed(0)), Plan(recipe, spec, ("a", "b"), 12), CPU
    )
    state.results.extend(results)
    write_recipe(folder / "recipe.json", state, {})
    return folder


def compare(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_the_table_has_a_line_for_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = write_run(Path("whole"), FIRST, LAST)
    lean = write_run(Path("lean"), FIRST, replace(LAST, fitted_top1=None), removed=("conv4", "fc6", "fc7"))
    assert compare(whole, lean) == 0
    printed = capsys.readouterr().out
    rows = [" ".join(line.replace("│", " ").split()) for line in printed.splitlines()]
    assert "whole zfnet-fig3 8 3,800,290 10.0 25.0 12.5" in rows
    # conv1, conv2, conv3, and conv5 on 384 maps; fc8 reads 6 x 6 x 256 values.
    parameters = 96 * 148 + 256 * 2401 + 384 * 2305 + 256 * 3457 + 2 * 9217
    assert f"lean zfnet-fig3 without conv4, fc6, fc7 - {parameters:,} - 25.0 12.5" in rows
    assert "lean: an earlier release trained it, and did not measure the training photos" in printed


def test_unfinished_runs_and_other_recipes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_run(tmp_path / "whole", FIRST, LAST)
    begun = write_run(tmp_path / "begun", FIRST, recipe=replace(RECIPE, seed=2))
    assert compare(whole, begun) == 0
    printed = capsys.readouterr().out
    assert f"{begun}: 1 of 2 epochs are done, and the last one brings the errors" in printed
    assert "the runs differ in more than the network: recipe.seed is 1, 2" in printed


def test_json_has_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        write_run(tmp_path / "whole", FIRST, LAST),
        write_run(tmp_path / "new", recipe=replace(RECIPE, stages=(Stage(224, 2),)), removed=("fc7",)),
    ]
    assert compare(*folders, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["differences"]) == ["recipe.stages"]
    whole, new = document["runs"]
    assert whole["train_top1_error"] == pytest.approx(0.1)
    assert (whole["val_top1_error"], whole["val_top5_error"], whole["missing"]) == (0.25, 0.125, [])
    assert (new["variant"], new["hidden_width"], new["val_top1_error"]) == ("zfnet-fig3 without fc7", 8, None)
    assert new["missing"] == ["0 of 2 epochs are done, and the last one brings the errors"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"network": {"architecture": "resnet"}}', "{}"])
def test_other_folders_are_one_sentence(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "recipe.json").write_text(content)
    assert compare(tmp_path) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "recipe.json" in captured.err
    assert captured.err.count("\n") == 1
