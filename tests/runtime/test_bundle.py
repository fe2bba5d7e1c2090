import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from zfserve_runtime.bundle import BundleError, Manifest, Precision, load_bundle, newest_version

FILES = {"golden.npz": b"golden", "model.onnx": b"graph"}

SCHEMA_1 = Path(__file__).parents[1] / "bundles" / "schema-1"
"""A bundle that the first release exported. It is `zfnet-fig3` with 6, 8, 8, 8 and 6 maps and contrast norm."""


def manifest_document(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schema_version": 2,
        "name": "tiny",
        "source": "tiny.safetensors",
        "version": "1",
        "architecture": "zfnet",
        "feature_width": 16,
        "classes": [{"class_id": "n1", "label": "château"}, {"class_id": "n2", "label": "tench"}],
        "input": {
            "height": 224,
            "width": 224,
            "resize": "squash",
            "shorter_side": 256,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
        },
        "layers": [
            {
                "name": "conv1",
                "tensor": "conv2d",
                "kind": "conv",
                "stage": "stage1",
                "channels": 96,
                "height": 110,
                "width": 110,
                "receptive_field": 7,
                "stride": 2,
                "offset": -1,
            }
        ],
        "artefacts": {"fp32": {"file": "model.onnx", "golden_tolerance": 0.001}},
        "fingerprint": "ab" * 32,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
        "parity": [{"precision": "fp32", "inputs": "noise", "count": 8, "max_difference": 1e-6, "top1_agreement": 1.0}],
        "accuracy": [{"precision": "fp32", "count": 100, "top1": 0.9, "top5": 0.99}],
    }
    return document | changes


def write_bundle(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps(manifest_document(**changes)), encoding="utf-8")
    return folder


def test_reads_what_was_written(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path / "1"))
    assert bundle.manifest.classes[0].label == "château"
    assert bundle.artefact("fp32") == tmp_path / "1" / "model.onnx"
    layer = bundle.manifest.layer("conv1")
    assert layer is not None
    assert layer.receptive_field == 7
    assert bundle.manifest.layer("conv9") is None


def test_manifest_survives_a_round_trip() -> None:
    manifest = Manifest.model_validate(manifest_document())
    assert Manifest.model_validate_json(manifest.model_dump_json(indent=2)) == manifest


def test_columns_are_like_rows_where_the_manifest_does_not_say_otherwise() -> None:
    layer = Manifest.model_validate(manifest_document()).layers[0]
    assert (layer.receptive_field_width, layer.stride_width, layer.offset_width) == (7, 2, -1)
    wide = layer.model_dump() | {"receptive_field_width": 9, "stride_width": 3, "offset_width": 0}
    layer = Manifest.model_validate(manifest_document(layers=[wide])).layers[0]
    assert (layer.receptive_field, layer.stride, layer.offset) == (7, 2, -1)
    assert (layer.receptive_field_width, layer.stride_width, layer.offset_width) == (9, 3, 0)


def test_a_layer_has_its_name_its_stage_and_last() -> None:
    layer = manifest_document()["layers"][0]
    manifest = Manifest.model_validate(
        manifest_document(
            layers=[
                layer | {"name": name, "kind": kind, "stage": stage}
                for name, kind, stage in (
                    ("stage1.conv", "conv", "stage1"),
                    ("stage1.add", "add", "stage1"),
                    ("stage1.pool", "pool", "stage1"),
                    ("pooled", "pool", "stage2"),
                    ("stage1", "conv", "stage3"),
                    ("final", "relu", "stage3"),
                    ("shrink", "pool", "stage3"),
                )
            ]
        )
    )

    def resolved(name: str) -> str | None:
        layer = manifest.resolve_layer(name)
        return layer.name if layer else None

    assert resolved("stage1.pool") == "stage1.pool"
    assert resolved("stage1") == "stage1", "the name of a layer comes before the name of a stage"
    assert resolved("stage2") == "pooled"
    assert resolved("stage3") == resolved("last") == "final"
    assert resolved("stage9") is resolved("") is None
    assert Manifest.model_validate(manifest_document(layers=[])).resolve_layer("last") is None
    staged = [layer.model_copy(update={"stage": ""}) for layer in manifest.layers]
    assert manifest.model_copy(update={"layers": tuple(staged)}).resolve_layer("") is None


def test_a_graph_without_features_has_one_output() -> None:
    assert Manifest.model_validate(manifest_document()).output_widths == {"probabilities": 2, "features": 16}
    assert Manifest.model_validate(manifest_document(feature_width=0)).output_widths == {"probabilities": 2}


def test_reads_a_bundle_of_schema_1() -> None:
    bundle = load_bundle(SCHEMA_1)
    manifest = bundle.manifest
    assert (manifest.schema_version, manifest.architecture, manifest.feature_width) == (1, "zfnet-fig3", 8)
    assert (manifest.source, manifest.projection_obstacle, manifest.fixed_batch_size) == ("", "", 0)
    assert manifest.input.interpolation == "bilinear"
    assert bundle.artefact("int8-symmetric") == SCHEMA_1 / "model.int8-symmetric.onnx"
    assert "weights.safetensors" in manifest.files
    norm = manifest.layer("norm2")
    assert norm == manifest.layers[6]
    assert (norm.stage, norm.kind, norm.tensor, norm.rule) == ("stage2", "norm", "", "paper")
    assert (norm.receptive_field, norm.receptive_field_width, norm.offset, norm.offset_width) == (27, 27, -1, -1)
    assert manifest.resolve_layer("last") == manifest.layer("relu5")


@pytest.mark.parametrize("name", FILES)
def test_refuses_a_corrupt_file(tmp_path: Path, name: str) -> None:
    folder = write_bundle(tmp_path / "1")
    content = bytearray((folder / name).read_bytes())
    content[0] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} .* differs from its digest"):
        load_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_refuses_a_missing_file(tmp_path: Path, name: str) -> None:
    folder = write_bundle(tmp_path / "1")
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(folder)


@pytest.mark.parametrize("name", FILES)
def test_refuses_a_file_without_a_digest(tmp_path: Path, name: str) -> None:
    digests = {other: digest for other, digest in manifest_document()["files"].items() if other != name}
    folder = write_bundle(tmp_path / "1", files=digests)
    with pytest.raises(BundleError, match=f"no digest of {name}"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot be read"),
        ("[]", "schema None"),
        (json.dumps(manifest_document(schema_version=3)), "schema 3, this release reads 1 to 2"),
        (json.dumps(manifest_document(classes=[])), "is not valid: classes"),
        (json.dumps(manifest_document(surprise=1)), "surprise: Extra inputs"),
        (json.dumps(manifest_document(layers=["conv1"])), r"is not valid: layers\.0"),
        (json.dumps(manifest_document(schema_version=1, layers=7)), "is not valid: layers"),
        (json.dumps(manifest_document(schema_version=1, layers=["conv1"])), r"is not valid: layers\.0"),
        (json.dumps(manifest_document(feature_width=-1)), "is not valid: feature_width"),
        (json.dumps(manifest_document(name="../elsewhere")), "is not valid: name"),
        ("[" * 200_000, "cannot be read"),
        (json.dumps(manifest_document(layers=[1] * 1000)), r"layers\.4: .*; and 995 more$"),
        (
            json.dumps(manifest_document(layers=[manifest_document()["layers"][0] | {"stride": -2}])),
            r"is not valid: layers\.0\.stride",
        ),
    ],
)
def test_refuses_a_manifest_it_cannot_trust(tmp_path: Path, text: str, complaint: str) -> None:
    folder = write_bundle(tmp_path / "1")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=complaint):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("precision", "option"), [("fp16", "--fp16"), ("int8", "--int8"), ("int8-symmetric", "--int8")]
)
def test_names_the_option_that_writes_an_absent_artefact(tmp_path: Path, precision: Precision, option: str) -> None:
    """A bundle of the first release has fp32 and perhaps int8, and must stay readable."""
    with pytest.raises(BundleError, match=f"no {precision} artefact, only fp32; export it with {option}$"):
        load_bundle(write_bundle(tmp_path / "1")).artefact(precision)


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        (["9", "10"], "10"),
        (["1.9", "1.10"], "1.10"),
        (["2025-12-31", "2026-01-01"], "2026-01-01"),
        (["1", ".2.77.partial"], "1"),
    ],
)
def test_finds_the_newest_version(tmp_path: Path, versions: list[str], newest: str) -> None:
    for version in versions:
        write_bundle(tmp_path / version)
    assert newest_version(tmp_path) == tmp_path / newest


def test_the_error_says_how_to_get_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="`zfserve export` writes one"):
        load_bundle(tmp_path)
