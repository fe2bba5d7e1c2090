"""TensorRT for RTX compiles every architecture and precision of our networks ahead of time, without a card.

The tests read back the network that TensorRT parsed. Only a card can show that its kernels compute the same numbers;
tests/gpu does that.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from zfserve_engines.cuda.batch_sizes import BatchProfile
from zfserve_engines.tensorrt.build_summary import BuildSummary, TensorSummary
from zfserve_engines.tensorrt.builder import build_engine
from zfserve_engines.tensorrt.settings import COMPILED_PRECISIONS, BuildSettings
from zfserve_export.onnx_graph import export_graph
from zfserve_export.quantize import quantize_files
from zfserve_model.checkpoint import Checkpoint
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import Precision

Pixels = NDArray[np.uint8]
Exported = Callable[[str], tuple[Checkpoint, onnx.ModelProto]]
Half = Callable[[str], onnx.ModelProto]

WIDTH, CLASSES = 16, 3
ARCHITECTURES = {"zfnet": False, "zfnet-fig3": False, "alexnet": True}
"""The architectures. The value is True if the fixture `exported` gives the architecture contrast norm."""

MULTIPLICATIONS = {
    "fp32": {("CONVOLUTION", "float32"): 5, ("MATRIX_MULTIPLY", "float32"): 3},
    "fp16": {("CONVOLUTION", "float16"): 5, ("MATRIX_MULTIPLY", "float16"): 3},
    # The last layer stays in float, so that logits are not rounded to 256 steps.
    "int8-symmetric": {
        ("CONVOLUTION", "int8"): 5,
        ("MATRIX_MULTIPLY", "int8"): 2,
        ("MATRIX_MULTIPLY", "float32"): 1,
    },
}


def compile_graph(graph: Path, precision: Precision) -> BuildSummary:
    settings = BuildSettings("tensorrt-rtx", precision, batches=(1, 4), compute_capabilities=("8.9",))
    return build_engine(graph, settings).summary


def check(summary: BuildSummary, graph: Path, precision: Precision, *, contrast_norm: bool) -> None:
    """Checks that inputs and outputs are the bundle's in every precision, and that the layers are the graph's."""
    assert summary.inputs == (TensorSummary("pixels", "uint8", (-1, 224, 224, 3)),)
    assert summary.outputs == (
        TensorSummary("probabilities", "float32", (-1, CLASSES)),
        TensorSummary("features", "float32", (-1, WIDTH)),
    )
    assert summary.profiles == (BatchProfile(1, 1), BatchProfile(2, 4))
    norms = {("LRN", "float32"): 2} if contrast_norm else {}
    assert summary.computing_layers() == MULTIPLICATIONS[precision] | norms | {("SOFTMAX", "float32"): 1}
    assert summary.precision == precision
    # The plan holds all weights in the precision of the graph, and no wider.
    weights_bytes = graph.stat().st_size
    assert 0.95 * weights_bytes < summary.plan_bytes < weights_bytes + 8e6


@pytest.mark.parametrize("precision", COMPILED_PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles(
    architecture: str, precision: Precision, exported: Exported, half: Half, pixels: Pixels, tmp_path: Path
) -> None:
    graph = tmp_path / "model.onnx"
    onnx.save(half(architecture) if precision == "fp16" else exported(architecture)[1], graph)
    if precision == "int8-symmetric":
        quantize_files(graph, {precision: tmp_path / "model.int8.onnx"}, [pixels[:2]], "cafe")
        graph = tmp_path / "model.int8.onnx"
    check(compile_graph(graph, precision), graph, precision, contrast_norm=ARCHITECTURES[architecture])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles_with_the_contrast_norm_or_without(architecture: str, tmp_path: Path) -> None:
    contrast_norm = not ARCHITECTURES[architecture]
    spec = NetworkSpec(architecture, classes=CLASSES, hidden_width=WIDTH, contrast_norm=contrast_norm)
    network = build_network(spec, torch.Generator().manual_seed(3)).eval()
    graph = tmp_path / "model.onnx"
    onnx.save(export_graph(network, Preprocessing(), "cafe"), graph)
    check(compile_graph(graph, "fp32"), graph, "fp32", contrast_norm=contrast_norm)
