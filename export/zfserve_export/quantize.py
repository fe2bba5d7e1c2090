"""This module writes the INT8 graphs: static Q/DQ by ONNX Runtime's quantiser. `exporter` calls it.

Weights are signed and quantised per output channel, because the filters of a depthwise convolution differ widely.
Activations are quantised per tensor. The last layer stays in float, so that logits are not rounded to 256 steps.
Normalisation, contrast norm, gates, smooth activations such as SiLU, and softmax stay in float too.

`int8` is for ONNX Runtime and OpenVINO on CPUs: activations are unsigned, and stay in 8 bits from layer to layer.
`int8-symmetric` is for TensorRT, which takes only signed activations with a zero point of 0, and only float biases.
Only the inputs of convolutions and fully connected layers are rounded, because TensorRT can fuse that rounding into the
previous layer.
"""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from zfserve_model.graph.errors import GraphError
from zfserve_runtime.bundle import Precision

from zfserve_export.onnx_graph import check_graph, describe_model

WEIGHTED_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
QUANTIZED_OPERATORS = (
    *WEIGHTED_OPERATORS,
    *(
        "Relu",
        "Clip",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Add",
        "Concat",
        "Split",
        "Slice",
        "Pad",
        "Resize",
    ),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
)
"""The operators that `int8` computes in 8 bits. ReLU and Clip disappear in the rounding of the layer before them."""

LOWEST_OPSET = 13
"""The first opset in which DequantizeLinear has an axis, which scales per channel need."""

LARGEST_WEIGHT = 64
"""The largest weight of `int8`, which uses 7 bits. Without VNNI, x86 adds two products of a uint8 and an int8 in 16
signed bits. 2 * 255 * 127 silently overflows them, and 2 * 255 * 64 = 32,640 does not, so every CPU gets the same sums.
GPUs add in 32 bits, so `int8-symmetric` uses all 8 bits. (On a CPU, ONNX Runtime has no integer kernels for layers with
a float bias. It computes `int8-symmetric` in float, with the file's roundings.)"""

_SCHEMES: dict[Precision, dict[str, Any]] = {
    "int8": {
        "op_types_to_quantize": list(QUANTIZED_OPERATORS),
        "activation_type": QuantType.QUInt8,
        "reduce_range": True,
    },
    "int8-symmetric": {
        "op_types_to_quantize": list(WEIGHTED_OPERATORS),
        "activation_type": QuantType.QInt8,
        "extra_options": {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED_OPERATORS),
        },
    },
}


def quantize_files(
    model: ModelProto, destinations: Mapping[Precision, Path], photos: Iterable[NDArray[np.uint8]], fingerprint: str
) -> None:
    """Writes the INT8 graphs of a float graph, from one calibration.

    Args:
        model: the wrapped fp32 graph, optimised.
        destinations: the file of each INT8 precision.
        photos: batches, uint8 (N, H, W, 3), of at least one photo in all. They set the ranges of the activations.
        fingerprint: the fingerprint of the network.

    Raises:
        GraphError: the graph's opset has no scales per channel, or a result fails ONNX's checks.
    """
    (version,) = (opset.version for opset in model.opset_import if opset.domain == "")
    if version < LOWEST_OPSET:
        raise GraphError(
            f"the network is in ONNX opset {version}, and INT8 needs {LOWEST_OPSET}; convert the file to a newer "
            "opset, or leave out --calibration"
        )
    prepared_model = ModelProto()
    prepared_model.CopyFrom(model)
    # ONNX Runtime has optimised the graph already. Without this mark the quantiser logs that the model needs that
    # preprocessing.
    onnx.helper.set_model_props(prepared_model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory(prefix="zfserve-quantize-") as scratch:
        prepared = Path(scratch, "prepared.onnx")
        onnx.save(prepared_model, prepared)
        for precision, destination in destinations.items():
            quantize_static(
                prepared,
                destination,
                _PhotoReader(photos),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=last_layers(model),
                calibrate_method=CalibrationMethod.MinMax,
                # The first run writes the ranges here. The second run reads them, and does not read the photos.
                calibration_cache_path=Path(scratch, "ranges.json"),
                **_SCHEMES[precision],
            )
    for destination in destinations.values():
        quantized = onnx.load(destination)
        describe_model(quantized, fingerprint)
        check_graph(quantized)
        onnx.save(quantized, destination)


def last_layers(model: ModelProto) -> list[str]:
    """Returns the names of the last layers with weights, and of all nodes between them and the probabilities.

    A network ends in one linear layer mostly. SqueezeNet, for example, ends in a convolution, a ReLU and a pool.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, None] = {}
    waiting = [model.graph.output[0].name]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in found:
            continue
        found[node.name] = None
        if node.op_type not in WEIGHTED_OPERATORS:
            waiting.extend(node.input)
    return list(found)


class _PhotoReader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, photos: Iterable[NDArray[np.uint8]]) -> None:
        self._batches = iter(photos)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}
