from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from zfserve_bench.compute.graph_cost import GraphCost, count_cost


def weights(name: str, *shape: int, dtype: type[np.generic] = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def save_graph(file: Path) -> Path:
    """Saves a graph of Cast, a grouped Conv with stride, Flatten, a transposed Gemm, and an 8-bit MatMul."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["values", "filters"], ["maps"], group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["rectified"]),
        helper.make_node("Flatten", ["rectified"], ["flat"]),
        helper.make_node("Gemm", ["flat", "gemm_weights", "bias"], ["features"], transB=1),
        helper.make_node("DequantizeLinear", ["bytes", "scale"], ["matmul_weights"]),
        helper.make_node("MatMul", ["features", "matmul_weights"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 4, 6, 6])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 5]),
        ],
        [
            weights("filters", 8, 2, 3, 3),
            weights("gemm_weights", 5, 72),
            weights("bias", 5),
            weights("bytes", 5, 3, dtype=np.int8),
            weights("scale"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    return file


def test_the_counts_agree_with_those_by_hand(tmp_path: Path) -> None:
    cost = count_cost(save_graph(tmp_path / "tiny.onnx"))
    convolution = (8 * 3 * 3) * (2 * 3 * 3)  # 6 x 6 with padding 1 and stride 2 becomes 3 x 3; 4 channels in 2 groups
    assert cost.image_flops == 2 * (convolution + 72 * 5 + 5 * 3)
    assert cost.image_bytes == 4 * 6 * 6 + 4 * (3 + 5)
    assert cost.weight_bytes == 4 * (8 * 2 * 3 * 3 + 5 * 72 + 5 + 1) + 5 * 3


def test_weights_are_read_once_a_batch_and_photos_once_each() -> None:
    cost = GraphCost(image_flops=100, image_bytes=10, weight_bytes=1000)
    assert cost.batch_flops(4) == 400
    assert cost.batch_bytes(4) == 1040


@pytest.mark.parametrize(
    ("size", "min_s"),
    [(1, 101.0), (20, 200.0)],
    ids=["memory bounds one photo", "arithmetic bounds twenty"],
)
def test_the_slower_of_arithmetic_and_memory_decides(size: int, min_s: float) -> None:
    cost = GraphCost(image_flops=100, image_bytes=10, weight_bytes=1000)
    assert cost.min_s(size, flops_per_s=10, bytes_per_s=10) == min_s
