"""TensorRT for RTX compiles every precision of several kinds of networks ahead of time, without a card.

The tests read back the network that TensorRT parsed. Only a card can show that its kernels compute the same numbers;
tests/gpu does that.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fakes.small_sources import CLASS_IDS, SIZE, model_of, source_of
from numpy.typing import NDArray
from onnx import ModelProto, helper
from zfserve_engines.cuda.batch_sizes import BatchProfile
from zfserve_engines.tensorrt.build_summary import BuildSummary, TensorSummary
from zfserve_engines.tensorrt.builder import build_engine
from zfserve_engines.tensorrt.settings import COMPILED_PRECISIONS, BuildSettings
from zfserve_export.graph_optimization import optimized
from zfserve_export.half_precision import convert_to_half
from zfserve_export.onnx_wrap import WrappedNetwork, wrap
from zfserve_export.quantize import quantize_files
from zfserve_export.sources.checkpoint_file import open_checkpoint
from zfserve_export.sources.source import Source, SourceOptions
from zfserve_model.checkpoint import Checkpoint, save_checkpoint
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import Precision

Pixels = NDArray[np.uint8]
Count = tuple[tuple[str, str], int]

WIDTH = 16


def compile_precision(wrapped: WrappedNetwork, precision: Precision, pixels: Pixels, folder: Path) -> BuildSummary:
    """Writes the graph of one precision as the exporter does, and compiles it."""
    file = folder / "model.onnx"
    if precision == "fp32":
        onnx.save(wrapped.model, file)
    elif precision == "fp16":
        onnx.save(convert_to_half(optimized(wrapped.model)), file)
    else:
        quantize_files(optimized(wrapped.model), {precision: file}, [pixels[:2]], "cafe")
    settings = BuildSettings("tensorrt-rtx", precision, batches=(1, 4), compute_capabilities=("8.9",))
    return build_engine(file, settings).summary


@pytest.fixture(scope="module")
def contrast_norm_network(tmp_path_factory: pytest.TempPathFactory) -> WrappedNetwork:
    """Returns `zfnet-fig3` with contrast norm, exported by torch."""
    spec = NetworkSpec("zfnet-fig3", classes=len(CLASS_IDS), hidden_width=WIDTH, contrast_norm=True)
    network = build_network(spec, torch.Generator().manual_seed(3)).eval()
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_checkpoint(Checkpoint(network, CLASS_IDS, ("one", "two", "three"), Preprocessing()), file)
    return wrap(open_checkpoint(file, SourceOptions()))


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


@pytest.mark.parametrize("precision", COMPILED_PRECISIONS)
def test_our_network_compiles(precision: Precision, contrast_norm_network: WrappedNetwork, tmp_path: Path) -> None:
    """Inputs and outputs are the bundle's in every precision, and the layers are the graph's."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    summary = compile_precision(contrast_norm_network, precision, pixels, tmp_path)
    assert summary.inputs == (TensorSummary("pixels", "uint8", (-1, 224, 224, 3)),)
    assert summary.outputs == (
        TensorSummary("probabilities", "float32", (-1, len(CLASS_IDS))),
        TensorSummary("features", "float32", (-1, WIDTH)),
    )
    assert summary.profiles == (BatchProfile(1, 1), BatchProfile(2, 4))
    in_float = {("LRN", "float32"): 2, ("SOFTMAX", "float32"): 1}
    assert summary.computing_layers() == MULTIPLICATIONS[precision] | in_float
    assert summary.precision == precision
    # The plan holds all weights in the precision of the graph, and no wider.
    weights_bytes = (tmp_path / "model.onnx").stat().st_size
    assert 0.95 * weights_bytes < summary.plan_bytes < weights_bytes + 8e6


def branched(*, bgr: bool = False) -> Source:
    """Returns a network with what ResNet, MobileNet, DenseNet and SE-ResNet add to a chain."""
    generator = np.random.default_rng(0)
    shapes = {
        "stem": (8, 3, 3, 3),
        "depthwise": (8, 1, 3, 3),
        "point": (8, 8, 1, 1),
        "gate": (8, 8, 1, 1),
        "head": (3, 16),
    }
    weights = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], pads=[1] * 4, group=8),
        helper.make_node("Conv", ["c", "point"], ["d"]),
        helper.make_node("Add", ["b", "d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Conv", ["f", "gate"], ["g"]),
        helper.make_node("Sigmoid", ["g"], ["h"]),
        helper.make_node("Mul", ["e", "h"], ["i"]),
        helper.make_node("Concat", ["e", "i"], ["j"], axis=1),
        helper.make_node("AveragePool", ["j"], ["k"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["k"], ["l"]),
        helper.make_node("Flatten", ["l"], ["m"]),
        helper.make_node("Gemm", ["m", "head"], ["y"], "last", transB=1),
    ]
    preprocessing = Preprocessing(height=SIZE, width=SIZE, channel_order="bgr" if bgr else "rgb")
    model: ModelProto = model_of(nodes, ["N", 3, SIZE, SIZE], ["N", 3], weights)
    return source_of(model, preprocessing=preprocessing)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize(
    ("precision", "layers"),
    [
        ("fp32", {("CONVOLUTION", "float32"): 4, ("MATRIX_MULTIPLY", "float32"): 1}),
        ("fp16", {("CONVOLUTION", "float16"): 4, ("MATRIX_MULTIPLY", "float16"): 1}),
        ("int8-symmetric", {("CONVOLUTION", "int8"): 4, ("MATRIX_MULTIPLY", "float32"): 1}),
    ],
)
def test_a_network_with_branches_and_a_gate_compiles(
    bgr: bool, precision: Precision, layers: dict[tuple[str, str], int], pixels: Pixels, tmp_path: Path
) -> None:
    summary = compile_precision(wrap(branched(bgr=bgr)), precision, pixels, tmp_path)
    assert summary.computing_layers() == layers | {("SOFTMAX", "float32"): 1}
    assert [tensor.name for tensor in summary.outputs] == ["probabilities", "features"]
