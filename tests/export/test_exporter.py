import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from fakes.small_sources import SIZE, model_of, small_model, small_module, small_source, source_of
from numpy.typing import NDArray
from onnx import helper
from zfserve_engines.catalogue import ENGINE_KINDS
from zfserve_engines.contract import EngineOutputs
from zfserve_engines.golden import EngineDisagrees, load_golden, verify_engine
from zfserve_engines.onnx.engine import OnnxEngine
from zfserve_engines.opening import EngineOptions
from zfserve_export.exporter import ARTEFACTS, INT8_PRECISIONS, ExportPlan, export_bundle, measure_bundle, sample_evenly
from zfserve_export.measurement import MeasurementInputs, measure
from zfserve_export.onnx_wrap import wrap
from zfserve_export.parity import ParityCheck, ParityError, noise_images
from zfserve_export.photos import input_spec, list_photos
from zfserve_export.sources.source import Source
from zfserve_model.importing.fingerprint import graph_fingerprint, stored_fingerprint
from zfserve_model.importing.importer import import_graph
from zfserve_runtime.bundle import Bundle, BundleError, Manifest, Precision, load_bundle

PRECISIONS = get_args(Precision)


def test_a_bundle_holds_what_the_design_says(bundle: Bundle) -> None:
    assert sorted(file.name for file in bundle.folder.iterdir()) == [
        "golden.npz",
        "manifest.json",
        "model.fp16.onnx",
        "model.int8-symmetric.onnx",
        "model.int8.onnx",
        "model.onnx",
    ]
    assert bundle.folder.parts[-2:] == ("tiny", "1")
    assert set(bundle.manifest.files) == {entry.name for entry in bundle.folder.iterdir()} - {"manifest.json"}


def test_the_manifest_describes_the_network(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.architecture) == ("tiny", "1", "small")
    assert (manifest.source, manifest.fixed_batch_size) == ("small.onnx", 0)
    assert (manifest.projection_obstacle, manifest.attribution_obstacle) == ("", "")
    assert (manifest.schema_version, manifest.feature_width) == (2, 16)
    assert [(entry.class_id, entry.label) for entry in manifest.classes] == [
        ("n01", "one"),
        ("n02", "two"),
        ("n03", "three"),
    ]
    assert (manifest.input.height, manifest.input.width, manifest.input.resize) == (SIZE, SIZE, "squash")
    assert [(layer.kind, layer.channels, layer.height) for layer in manifest.layers] == [
        ("conv", 8, 16),
        ("relu", 8, 16),
        ("pool", 8, 8),
        ("conv", 12, 8),
        ("relu", 12, 8),
    ]
    last = manifest.resolve_layer("last")
    assert last is not None
    assert (last.kind, last.receptive_field, last.stride, last.rule) == ("relu", 13, 4, "paper")


def test_every_graph_carries_the_fingerprint_of_the_fp32_graph(bundle: Bundle) -> None:
    fingerprint = bundle.manifest.fingerprint
    assert graph_fingerprint(onnx.load(bundle.artefact("fp32"))) == fingerprint
    for precision in PRECISIONS:
        assert stored_fingerprint(onnx.load(bundle.artefact(precision))) == fingerprint


def test_the_same_source_gives_the_same_graphs(bundle: Bundle, photo_folder: Path, tmp_path: Path) -> None:
    plan = ExportPlan(tmp_path, "tiny", calibration=list_photos(photo_folder))
    again = export_bundle(small_source(), plan)
    graphs = {artefact.file for artefact in bundle.manifest.artefacts.values()}
    assert {name: again.manifest.files[name] for name in graphs} == {
        name: bundle.manifest.files[name] for name in graphs
    }


def test_parity_is_reported_for_each_file_on_photos_and_on_noise(bundle: Bundle) -> None:
    entries = {(entry.precision, entry.inputs): entry for entry in bundle.manifest.parity}
    assert {key: entry.count for key, entry in entries.items()} == {
        (precision, inputs): count for precision in PRECISIONS for inputs, count in (("photos", 12), ("noise", 8))
    }
    for inputs in ("photos", "noise"):
        assert entries["fp32", inputs].max_difference < 1e-5
        assert entries["fp32", inputs].top1_agreement == 1
        assert 1e-7 < entries["fp16", inputs].max_difference < 1e-2
    for precision in INT8_PRECISIONS:
        assert 1e-5 < entries[precision, "photos"].max_difference < 0.2


def test_accuracy_is_reported_for_each_file(bundle: Bundle) -> None:
    assert [(entry.precision, entry.count) for entry in bundle.manifest.accuracy] == [
        (precision, 12) for precision in PRECISIONS
    ]
    for entry in bundle.manifest.accuracy:
        assert 0 <= entry.top1 <= entry.top5 == 1, "three classes: the true one is always among five"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_engines_reproduce_the_golden_outputs(bundle: Bundle, precision: Precision) -> None:
    engine = OnnxEngine(bundle, precision, threads=1, max_batch_size=4)
    assert load_golden(bundle).pixels.shape == (8, SIZE, SIZE, 3)
    verify_engine(engine, bundle)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_tolerance_is_too_narrow_for_a_broken_engine(bundle: Bundle, precision: Precision) -> None:
    """The engine swaps red and blue, a common mistake that is hard to see."""

    class Swapped(OnnxEngine):
        def run(self, pixels: NDArray[np.uint8]) -> EngineOutputs:
            return super().run(np.ascontiguousarray(pixels[..., ::-1]))

    with pytest.raises(EngineDisagrees):
        verify_engine(Swapped(bundle, precision, threads=1, max_batch_size=4), bundle)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_graphs_are_held_to_their_tolerance(bundle: Bundle, source: Source, precision: Precision) -> None:
    wrapped = wrap(source)
    check = ParityCheck(source, wrapped, import_graph(wrapped.model), 1e-4)
    noise = check.make_reference("noise", noise_images(bundle.manifest.input, 2))
    inputs = MeasurementInputs([noise], {precision: 1e-12}, noise.pixels, validation=None)
    with pytest.raises(ParityError, match=f"the {precision} graph's probability differs"):
        measure(bundle, precision, inputs, on_photos=lambda count: None)


def test_an_fp16_graph_that_differs_too_much_is_left_out_unless_it_is_wanted(
    bundle: Bundle, source: Source, tmp_path: Path
) -> None:
    wrapped = wrap(source)
    check = ParityCheck(source, wrapped, import_graph(wrapped.model), 1e-4)
    noise = check.make_reference("noise", noise_images(bundle.manifest.input, 2))
    inputs = MeasurementInputs([noise], {"fp32": 1e-4, "fp16": 1e-12}, noise.pixels, validation=None)
    draft = replace(bundle, folder=shutil.copytree(bundle.folder, tmp_path / "1"))
    warnings: list[str] = []

    def measured(*, fp16: bool | None) -> Manifest:
        return measure_bundle(
            draft, ExportPlan(tmp_path, "tiny", fp16=fp16), inputs, lambda *step: None, warnings.append
        )

    with pytest.raises(ParityError, match="the fp16 graph's probability differs"):
        measured(fp16=True)
    assert warnings == []
    assert "fp16" not in measured(fp16=None).artefacts
    assert not draft.artefact("fp16").exists()
    assert warnings[0].startswith("the fp16 file is left out: the fp16 graph's probability differs")


def test_a_corrupt_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.folder, tmp_path / "1")
    assert load_bundle(copy).manifest == bundle.manifest
    with (copy / "model.onnx").open("r+b") as opened:
        opened.seek(10_000)
        opened.write(b"\x00\x01\x02\x03")
    with pytest.raises(BundleError, match=r"model\.onnx .* differs from its digest"):
        load_bundle(copy)


def test_past_the_tolerance_no_bundle_is_left(source: Source, tmp_path: Path) -> None:
    plan = ExportPlan(models=tmp_path / "models", name="tiny", tolerance=1e-12, fp16=False)
    with pytest.raises(ParityError, match=r"1e-12 is allowed; this network magnifies rounding.*no bundle was written"):
        export_bundle(source, plan)
    assert list(tmp_path.iterdir()) == []


def test_a_network_beyond_half_is_exported_without_it_only(tmp_path: Path) -> None:
    """One layer is scaled up and the next one down, so that float16 cannot hold the activations between them."""
    module = small_module()
    for layer, factor in ((3, 2.0**16), (6, 2.0**-16)):
        module.get_parameter(f"{layer}.weight").mul_(factor)
    source = small_source(model=small_model(module), module=None)
    with pytest.raises(ParityError, match="gives activations of"):
        export_bundle(source, ExportPlan(models=tmp_path / "models", name="tiny", fp16=True))
    assert list(tmp_path.iterdir()) == []
    warnings: list[str] = []
    plan = ExportPlan(models=tmp_path / "models", name="tiny")
    bundle = export_bundle(source, plan, on_warning=warnings.append)
    assert list(bundle.manifest.artefacts) == ["fp32"]
    assert not (bundle.folder / "model.fp16.onnx").exists()
    (warning,) = warnings
    assert warning.startswith("the fp16 file is left out: ")
    assert "gives activations of" in warning


def test_a_network_without_features_and_with_a_fixed_batch(tmp_path: Path) -> None:
    """The network adds the first image to each, so no other batch size gives its results. It ends in a pool."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"], pads=[1] * 4),
        helper.make_node("Slice", ["map", "zero", "one", "zero"], ["first"]),
        helper.make_node("Add", ["map", "first"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["y"]),
    ]
    weights = {
        "w": np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
    }
    source = source_of(model_of(nodes, [1, 3, SIZE, SIZE], [1, 3], weights))
    bundle = export_bundle(source, ExportPlan(tmp_path, "tiny"))
    manifest = bundle.manifest
    assert (manifest.feature_width, manifest.fixed_batch_size) == (0, 1)
    for kind in ("onnx-cpu", "openvino"):
        (engine,) = ENGINE_KINDS[kind].open(EngineOptions(bundle, 16, threads=1), "fp32", lambda step: None)
        assert engine.info.max_batch_size == 1
        verify_engine(engine, bundle)
        assert engine.run(load_golden(bundle).pixels[:1]).features.shape == (1, 0)


def test_a_network_with_an_unknown_operation_is_served_and_not_projected(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"], pads=[1] * 4),
        helper.make_node("AveragePool", ["map"], ["pooled"], kernel_shape=[SIZE // 2] * 2, strides=[SIZE // 2] * 2),
        helper.make_node("Det", ["pooled"], ["y"], "determinant"),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)}
    source = source_of(model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], weights))
    manifest = export_bundle(source, ExportPlan(tmp_path, "tiny", fp16=False)).manifest
    assert "determinant" in manifest.projection_obstacle
    assert "determinant" in manifest.attribution_obstacle


def test_the_layers_below_an_unknown_operation_are_compared(tmp_path: Path) -> None:
    """The worker computes them, so they must be those of the server."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"], pads=[1] * 4),
        helper.make_node("AveragePool", ["map"], ["pooled"], kernel_shape=[SIZE // 2] * 2, strides=[SIZE // 2] * 2),
        helper.make_node("Det", ["pooled"], ["y"]),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)}
    source = source_of(model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], weights))
    wrapped = wrap(source)
    graph = import_graph(wrapped.model)
    (name,) = (name for name, value in graph.constants.items() if value.shape == (3, 3, 3, 3))
    other = replace(graph, constants={**graph.constants, name: graph.constants[name] + 0.1})
    pixels = noise_images(input_spec(source.preprocessing), 2)
    ParityCheck(source, wrapped, graph, 1e-4, deepest="map", whole=False).make_reference("noise", pixels)
    with pytest.raises(ParityError, match=r"a value of map that the worker's PyTorch computes differs"):
        ParityCheck(source, wrapped, other, 1e-4, deepest="map", whole=False).make_reference("noise", pixels)


def test_a_float16_graph_with_a_transposed_product_does_not_end_the_process(tmp_path: Path) -> None:
    """torchvision's vision transformers have such a product. ONNX Runtime 1.32 crashes when it optimises the graph."""
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["pixels"]),
        helper.make_node("Transpose", ["pixels"], ["sequence"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["sequence", "w"], ["projected"]),
        helper.make_node("ReduceMean", ["projected"], ["y"], axes=[0], keepdims=0),
    ]
    weights = {
        "rows": np.array([0, SIZE, 3 * SIZE], np.int64),
        "w": np.random.default_rng(0).standard_normal((3 * SIZE, 3)).astype(np.float32),
    }
    source = source_of(model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], weights, opset=17))
    assert "fp16" in export_bundle(source, ExportPlan(tmp_path, "tiny")).manifest.artefacts


def test_tolerances_are_as_small_as_the_probabilities(bundle: Bundle) -> None:
    """A thousand classes may share the probability evenly, and a fixed tolerance would accept anything then."""
    golden = load_golden(bundle).probabilities
    for precision, artefact in bundle.manifest.artefacts.items():
        largest = float(golden[precision].max())
        assert artefact.golden_tolerance == pytest.approx(ARTEFACTS[precision].golden_tolerance * largest)


def test_an_interrupt_leaves_the_older_version_alone(
    bundle: Bundle, source: Source, photo_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle.folder, tmp_path / "tiny" / "1")
    steps = []

    def interrupt(step: str, advance: int, total: int) -> None:
        steps.append(step)
        if step == "INT8 calibration":
            raise KeyboardInterrupt

    plan = ExportPlan(models=tmp_path, name="tiny", fp16=False, calibration=list_photos(photo_folder))
    with pytest.raises(KeyboardInterrupt):
        export_bundle(source, plan, interrupt)
    assert steps[-1] == "INT8 calibration"
    assert [entry.name for entry in (tmp_path / "tiny").iterdir()] == ["1"]
    assert load_bundle(tmp_path / "tiny").manifest == bundle.manifest


@pytest.mark.parametrize(("name", "version"), [("../up", None), ("tiny", ".hidden"), ("", "1")])
def test_names_that_are_no_folders_are_refused(name: str, version: str | None, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be a folder's name"):
        ExportPlan(models=tmp_path, name=name, version=version)


def test_thinning_out_spreads_evenly() -> None:
    photos = tuple(Path(str(index)) for index in range(10))
    assert [path.name for path in sample_evenly(photos, 4)] == ["0", "2", "5", "7"]
    assert sample_evenly(photos, 10) == photos
