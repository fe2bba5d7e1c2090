"""Readings and ablations on every engine must be what PyTorch computes from the same file."""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fakes.bf16 import needs_bf16
from fakes.residual_model import write_residual_bundle
from fakes.small_sources import SIZE, model_of, source_of
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor
from zfserve_engines.contract import EngineInfo, EngineName, EngineUnavailable
from zfserve_engines.golden import load_golden
from zfserve_engines.readings.opening import open_reading_engine
from zfserve_engines.readings.plan import Form, Reading, ReadingEngine, ReadingPlan, ReadOutputs, Replacement
from zfserve_export.exporter import ExportPlan, export_bundle
from zfserve_model.graph.execution import run
from zfserve_model.importing.importer import import_graph
from zfserve_runtime.bundle import GRAPH, Bundle, BundleError, LayerEntry, Precision
from zfserve_runtime.errors import EngineFailed

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

ENGINES: list[tuple[EngineName, Precision, float]] = [
    ("onnx-cpu", "fp32", 1e-5),
    ("openvino", "fp32", 1e-5),
    ("onnx-cpu", "fp16", 2e-3),
    ("openvino", "fp16", 2e-3),
    ("onnx-cpu", "int8", 0.1),
    ("openvino", "int8", 0.1),
    ("onnx-cpu", "int8-symmetric", 0.1),
    pytest.param("openvino-bf16", "fp32", 0.05, marks=needs_bf16),  # type: ignore[list-item]
]
"""Engines with the largest error of a value, as a share of the layer's largest value."""


def info(precision: Precision, max_batch_size: int = 4) -> EngineInfo:
    return EngineInfo("any", "any", precision, max_batch_size, threads=1)


def reading(layer: LayerEntry, form: Form) -> Reading:
    return Reading(layer.tensor, layer.channels, layer.height, layer.width, form)


def plan_of(layers: Sequence[LayerEntry], *forms: Form, ablated: LayerEntry | None = None) -> ReadingPlan:
    readings = tuple(reading(layer, form) for layer in layers for form in forms)
    return ReadingPlan(readings, ablated.tensor, ablated.channels) if ablated else ReadingPlan(readings)


def open_engine(bundle: Bundle, plan: ReadingPlan, kind: EngineName, precision: Precision) -> ReadingEngine:
    return open_reading_engine(bundle, plan, like=kind, info=info(precision))


def compute(bundle: Bundle, pixels: Pixels, wanted: Sequence[str], **given: Tensor) -> dict[str, Floats]:
    """Returns tensors of the fp32 graph as PyTorch computes them. `given` replaces tensors."""
    graph, spec = import_graph(bundle.folder / GRAPH), bundle.manifest.input
    images = (pixels.astype(np.float32) / 255 - np.array(spec.mean)) / np.array(spec.std)
    values = {graph.input: torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)), **given}
    names = {"probabilities": graph.probabilities}
    found = run(graph, values, [names.get(name, name) for name in wanted])
    return {name: found[names.get(name, name)].numpy() for name in wanted}


def rectified(bundle: Bundle) -> list[LayerEntry]:
    """Returns the layers whose value the INT8 graph has: its convolutions and their ReLUs are one."""
    return [layer for layer in bundle.manifest.layers if layer.kind != "conv"]


def assert_close(found: Floats, wanted: Floats, share: float) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=share * float(np.abs(wanted).max()))


@pytest.mark.parametrize(("kind", "precision", "share"), ENGINES)
def test_maps_are_those_of_pytorch(
    bundle: Bundle, pixels: Pixels, kind: EngineName, precision: Precision, share: float
) -> None:
    layers = rectified(bundle)
    assert [layer.kind for layer in layers] == ["relu", "pool", "relu"]
    engine = open_engine(bundle, plan_of(layers, "maps"), kind, precision)
    assert (engine.name, engine.info.precision) == (kind, precision)
    wanted = compute(bundle, pixels[:3], [layer.tensor for layer in layers])
    for count in (3, 1):
        outputs = engine.run(pixels[:count])
        for layer, read in zip(layers, outputs.readings, strict=True):
            assert read.values.dtype == np.float32
            assert read.values.shape == (count, layer.channels, layer.height, layer.width)
            assert_close(read.values, wanted[layer.tensor][:count], share)


def assert_from_maps(outputs: ReadOutputs, width: int) -> None:
    """Checks readings in the order maps, strongest, sums of one layer."""
    maps, strongest, sums = outputs.readings
    flat = maps.values.reshape(*maps.values.shape[:2], -1)
    np.testing.assert_array_equal(strongest.values, flat.max(axis=2))
    assert strongest.rows is not None
    assert strongest.columns is not None
    # numpy's argmax takes the first of equal values, too.
    np.testing.assert_array_equal(strongest.rows * width + strongest.columns, flat.argmax(axis=2))
    np.testing.assert_allclose(sums.values, flat.sum(axis=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "precision", "share"), ENGINES)
def test_strongest_units_and_sums_are_those_of_the_maps(
    bundle: Bundle, pixels: Pixels, kind: EngineName, precision: Precision, share: float
) -> None:
    (layer,) = rectified(bundle)[-1:]
    engine = open_engine(bundle, plan_of([layer], "maps", "strongest", "sums"), kind, precision)
    assert_from_maps(engine.run(pixels[:4]), layer.width)
    # A photo of one colour has many equal values, and maps that are 0 everywhere.
    assert_from_maps(engine.run(np.zeros_like(pixels[:2])), layer.width)


@pytest.mark.parametrize(("kind", "precision", "share"), ENGINES)
def test_an_ablation_is_computed_from_the_layer_on(
    bundle: Bundle, pixels: Pixels, kind: EngineName, precision: Precision, share: float
) -> None:
    """Photo 0 keeps its maps, photo 1 loses two, photo 2 has one at a value and one scaled."""
    layer, behind = rectified(bundle)[1:]
    engine = open_engine(bundle, plan_of([layer, behind], "maps", ablated=layer), kind, precision)
    keep, values = np.ones((3, layer.channels), np.float32), np.zeros((3, layer.channels), np.float32)
    keep[1, [0, 5]] = 0
    keep[2, [1, 2]], values[2, 1] = (0, 0.5), 0.25
    maps = torch.from_numpy(compute(bundle, pixels[:3], [layer.tensor])[layer.tensor])
    replaced = maps * torch.from_numpy(keep[:, :, None, None]) + torch.from_numpy(values[:, :, None, None])
    wanted = compute(bundle, pixels[:3], ["probabilities", behind.tensor], **{layer.tensor: replaced})
    outputs = engine.run(pixels[:3], Replacement(keep, values))
    np.testing.assert_allclose(outputs.probabilities, wanted["probabilities"], atol=share)
    assert_close(outputs.readings[1].values, wanted[behind.tensor], share)
    # The layer itself is read as it was before.
    assert_close(outputs.readings[0].values, maps.numpy(), share)
    untouched = engine.run(pixels[:3])
    np.testing.assert_allclose(untouched.probabilities, compute(bundle, pixels[:3], ["probabilities"])["probabilities"],
                               atol=share)  # fmt: skip
    assert np.abs(untouched.probabilities[1:] - outputs.probabilities[1:]).max() > 10 * 1e-4


def test_what_int8_rounds_away_is_read_from_the_fp32_graph(bundle: Bundle, pixels: Pixels) -> None:
    layers = bundle.manifest.layers
    assert "conv" in {layer.kind for layer in layers}
    for kind in ("onnx-cpu", "openvino"):
        engine = open_engine(bundle, plan_of(layers, "maps"), kind, "int8")
        assert (engine.name, engine.info.precision) == (kind, "fp32")
        wanted = compute(bundle, pixels[:2], [layer.tensor for layer in layers])
        for layer, read in zip(layers, engine.run(pixels[:2]).readings, strict=True):
            assert_close(read.values, wanted[layer.tensor], 1e-5)


@pytest.mark.parametrize("kind", ["onnx-cpu", "openvino"])
def test_a_residual_network_whose_input_is_not_square(tmp_path: Path, kind: EngineName) -> None:
    bundle = write_residual_bundle(tmp_path)
    pixels = load_golden(bundle).pixels
    layers = bundle.manifest.layers
    ablated = bundle.manifest.resolve_layer("stage1")
    assert ablated is not None
    engine = open_engine(bundle, plan_of(layers, "maps", "strongest", "sums", ablated=ablated), kind, "fp32")
    outputs = engine.run(pixels)
    wanted = compute(bundle, pixels, [layer.tensor for layer in layers])
    for index, layer in enumerate(layers):
        readings = outputs.readings[3 * index : 3 * index + 3]
        assert_close(readings[0].values, wanted[layer.tensor], 1e-5)
        assert_from_maps(ReadOutputs(outputs.probabilities, outputs.features, readings), layer.width)
    # The shortcut reads the replaced maps, too.
    replacement = Replacement.nothing(3, ablated.channels)
    replacement.keep[:, :4] = 0
    maps = torch.from_numpy(wanted[ablated.tensor].copy())
    maps[:, :4] = 0
    expected = compute(bundle, pixels, ["probabilities"], **{ablated.tensor: maps})["probabilities"]
    np.testing.assert_allclose(engine.run(pixels, replacement).probabilities, expected, atol=1e-5)


def test_a_network_with_a_fixed_batch_and_without_features(tmp_path: Path) -> None:
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
    bundle = export_bundle(source_of(model_of(nodes, [1, 3, SIZE, SIZE], [1, 3], weights)), ExportPlan(tmp_path, "t"))
    pixels = load_golden(bundle).pixels[:1]
    plan = ReadingPlan(
        (Reading("map", 3, SIZE, SIZE, "maps"), Reading("map", 3, SIZE, SIZE, "strongest")), "map", channels := 3
    )
    for kind in ("onnx-cpu", "openvino"):
        engine = open_reading_engine(bundle, plan, like=kind, info=info("fp32", max_batch_size=1))
        outputs = engine.run(pixels)
        assert outputs.features.shape == (1, 0)
        assert_close(outputs.readings[0].values, compute(bundle, pixels, ["map"])["map"], 1e-5)
        nothing = Replacement(np.zeros((1, channels), np.float32), np.zeros((1, channels), np.float32))
        np.testing.assert_allclose(engine.run(pixels, nothing).probabilities, 1 / 3, atol=1e-6)


def test_an_engine_for_tensorrt_reads_with_onnx_runtime(bundle: Bundle, pixels: Pixels) -> None:
    engine = open_engine(bundle, plan_of(rectified(bundle), "sums"), "tensorrt", "int8-symmetric")
    assert (engine.name, engine.info.precision, engine.info.device) == ("onnx-cpu", "int8-symmetric", "CPU")
    assert len(engine.run(pixels[:4]).readings) == 3


@pytest.mark.parametrize("kind", ["onnx-cpu", "openvino"])
def test_several_threads_run_one_engine_and_a_closed_one_fails(
    bundle: Bundle, pixels: Pixels, kind: EngineName
) -> None:
    engine = open_engine(bundle, plan_of(rectified(bundle), "sums"), kind, "fp32")
    alone = [engine.run(pixels[row : row + 1]).readings[0].values for row in range(4)]
    found: list[bool] = []

    def compare(row: int) -> None:
        for _ in range(10):
            values = engine.run(pixels[row : row + 1]).readings[0].values
            found.append(bool(np.allclose(values, alone[row], rtol=1e-5)))

    threads = [threading.Thread(target=compare, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40
    engine.close()
    engine.close()
    assert engine.closed
    with pytest.raises(EngineFailed, match="closed"):
        engine.run(pixels[:1])


def test_the_plan_bounds_the_batch(bundle: Bundle) -> None:
    layer = bundle.manifest.layers[0]
    many = ReadingPlan((reading(layer, "maps"),) * 3000)
    assert (layer.channels, layer.height, layer.width) == (8, 16, 16)
    # Three photos take 70 MiB.
    assert open_engine(bundle, many, "onnx-cpu", "fp32").info.max_batch_size == 2


def test_faults_are_one_sentence(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(rectified(bundle), "sums")
    with pytest.raises(BundleError, match="no tensor 'nowhere'"):
        open_engine(bundle, ReadingPlan((Reading("nowhere", 1, 1, 1, "sums"),)), "onnx-cpu", "fp16")
    first = rectified(bundle)[0]
    wrong = Reading(first.tensor, first.channels, first.height, first.width + 1, "maps")
    with pytest.raises(BundleError, match="has the shape"):
        open_engine(bundle, ReadingPlan((wrong,)), "onnx-cpu", "fp32")
    changed = write_residual_bundle(tmp_path)
    layer = changed.manifest.layers[0]
    model = onnx.load(tmp_path / GRAPH)
    model.doc_string = "another"
    onnx.save(model, tmp_path / GRAPH)
    with pytest.raises(BundleError, match=r"^model.onnx has changed"):
        open_engine(changed, plan_of([layer], "sums"), "onnx-cpu", "fp32")
    (tmp_path / GRAPH).unlink()
    with pytest.raises(BundleError, match=r"^model.onnx cannot be read"):
        open_engine(changed, plan_of([layer], "sums"), "onnx-cpu", "fp32")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EngineUnavailable, match=r"not installed.*\[server\]"):
        open_engine(bundle, plan, "onnx-cpu", "fp32")
