"""Tests the output of `zfserve info`."""

import json
from collections.abc import Callable

import pytest
from fakes.vision_service import DESCRIPTION, FakeVisionService
from zfserve_cli.exit_statuses import OK
from zfserve_protos.v1 import zfserve_pb2 as pb

Run = Callable[..., int]


def described(**changes: object) -> pb.DescribeModelResponse:
    """Returns the fake's description with some fields replaced."""
    description = pb.DescribeModelResponse()
    description.CopyFrom(DESCRIPTION)
    for name in changes:
        description.ClearField(name)  # type: ignore[arg-type]
    description.MergeFrom(pb.DescribeModelResponse(**changes))  # type: ignore[arg-type]
    return description


def deep_layers(stages: int, units: int, last_rule: pb.ProjectionRule.ValueType) -> list[pb.Layer]:
    """Returns the layers of a network in which each unit has a convolution, an add and a pool."""
    return [
        pb.Layer(
            name=f"features.stage{stage}.unit{unit}.{kind}",
            kind=kind,
            channels=64 * stage,
            height=14,
            width=28,
            receptive_field=35,
            receptive_field_width=43,
            stride=8,
            offset=-9,
            stage=f"stage{stage}",
            rule=pb.PROJECTION_RULE_PAPER if stage < stages else last_rule,
            whole_image=stage == stages,
        )
        for stage in range(1, stages + 1)
        for unit in range(1, units + 1)
        for kind in ("conv", "add", "pool")
    ]


def test_info(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run("info") == OK
    shown = capsys.readouterr().out
    for figure in (
        "zfnet 3 (zfnet)",
        "224 × 224 RGB, bicubic",
        "tench, church, golf ball",
        "110 × 110",
        "7 px",
        "87.50%",
    ):
        assert figure in shown
    for figure in ("ready, the default", "birds", "model.onnx is missing", "checkpoint.safetensors", "256 values"):
        assert figure in shown
    assert "classes      3: tench, church, golf ball" in shown
    for absent in ("batch  ", "rule", "--layers"):
        assert absent not in shown
    assert run("info", "--json") == OK
    document = json.loads(capsys.readouterr().out)
    assert document["layers"][0]["channels"] == 96
    assert document["layers"][0]["stage"] == "stage1"
    assert [entry["state"] for entry in document["models"]] == ["failed", "ready", "ready"]


def test_layers_are_grouped_by_stage(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == OK
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first = lines.index(["stage", "layer", "kind", "maps", "size", "sees", "stride", "offset"])
    assert lines[first + 1][:3] == ["stage1", "conv1", "conv"]
    assert lines[first + 2][:2] == ["pool1", "pool"]


def test_a_server_that_names_no_stages(
    run: Run, service: FakeVisionService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.description = described(layers=[pb.Layer(name=f"layer{number}", kind="conv") for number in range(40)])
    assert run("info") == OK
    shown = capsys.readouterr().out
    assert "layer39" in shown
    assert "stage" not in shown


def test_a_deep_network_is_listed_by_stage(
    run: Run, service: FakeVisionService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    layers = deep_layers(4, 5, pb.PROJECTION_RULE_EXTENDED)
    service.description = described(layers=layers)
    assert run("info") == OK
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if ".unit5.add " in line]
    assert [(row[0], row[1], row[2], row[-1]) for row in rows] == [
        (f"stage{stage}", "15", f"features.stage{stage}.unit5.add", "extended" if stage == 4 else "paper")
        for stage in range(1, 5)
    ]
    assert "43 × 35 px" in shown
    assert "28 × 14" in shown
    assert "whole image" in shown
    assert "60 layers, listed by --layers; `last` stands for features.stage4.unit5.add\n" in shown
    assert run("info", "--layers") == OK
    shown = capsys.readouterr().out
    for layer in layers:
        assert f" {layer.name} " in shown, "a name stays whole in a narrow terminal"
    assert "--layers" not in shown
    assert " `last` stands for features.stage4.unit5.add\n" in shown


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fixed_batch_size": 1}, "served one image at a time"),
        ({"fixed_batch_size": 4}, "served in batches of 4"),
        ({"feature_width": 0}, "features none"),
        ({"projection_available": False}, "projections not available now"),
        (
            {"projection_obstacle": "the node Softmax_12 is in the way.", "layers": []},
            "projections the node Softmax_12",
        ),
        ({"projection_obstacle": "the node Softmax_12 is in the way."}, "available for the layers below; the node"),
        (
            {"layers": deep_layers(1, 1, pb.PROJECTION_RULE_EXTENDED)},
            "available, by the extended rule: some activations are no ReLUs",
        ),
        (
            {"layers": deep_layers(2, 1, pb.PROJECTION_RULE_EXTENDED)},
            "by the extended rule from features.stage2.unit1.conv upwards",
        ),
    ],
)
def test_what_a_network_can_and_cannot(
    run: Run,
    service: FakeVisionService,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    says: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    service.description = described(**changes)
    assert run("info") == OK
    assert says in " ".join(capsys.readouterr().out.split())


def test_a_thousand_classes_are_counted_and_not_listed(
    run: Run, service: FakeVisionService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    classes = [pb.ClassScore(label=f"label{index}", class_id=f"n{index}", index=index) for index in range(1000)]
    service.description = described(classes=classes)
    assert run("info") == OK
    shown = capsys.readouterr().out
    assert "classes      1,000: label0, " in shown
    assert "label11 and 988 more" in shown
    assert "label12" not in shown
    assert run("info", "--json") == OK
    assert len(json.loads(capsys.readouterr().out)["classes"]) == 1000
