"""This module writes the INT8 graphs: static Q/DQ by ONNX Runtime's quantiser. `exporter` calls it.

Weights are signed and quantised per output channel, activations per tensor. The last layer stays in float, so that
logits are not rounded to 256 steps. Normalisation, contrast norm and softmax stay in float too.

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
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from zfserve_runtime.bundle import Precision

from zfserve_export.onnx_graph import check_graph, describe_model

QUANTIZED_OPERATORS = ("Conv", "Gemm", "Relu", "MaxPool", "Reshape")
LAST_LAYER_WEIGHT = "head.fc8.weight"
LARGEST_WEIGHT = 64
"""The largest weight of `int8`, which uses 7 bits. Without VNNI, x86 adds two products of a uint8 and an int8 in 16
signed bits. 2 * 255 * 127 silently overflows them, and 2 * 255 * 64 = 32,640 does not, so every CPU gets the same sums.
GPUs add in 32 bits, so `int8-symmetric` uses all 8 bits. (On a CPU, ONNX Runtime has no integer kernels for layers with
a float bias. It computes `int8-symmetric` in float, with the file's roundings.)"""

_SCHEMES: dict[Precision, dict[str, Any]] = {
    "int8": {"activation_type": QuantType.QUInt8, "reduce_range": True},
    "int8-symmetric": {
        "activation_type": QuantType.QInt8,
        "extra_options": {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(QUANTIZED_OPERATORS),
        },
    },
}


def quantize_files(
    source: Path, destinations: Mapping[Precision, Path], photos: Iterable[NDArray[np.uint8]], fingerprint: str
) -> None:
    """Writes the INT8 graphs of the float graph in `source`, from one calibration.

    Args:
        source: the fp32 graph.
        destinations: the file of each INT8 precision.
        photos: batches, uint8 (N, H, W, 3), of at least one photo in all. They set the ranges of the activations.
        fingerprint: the fingerprint of the weights.

    Raises:
        GraphError: a result fails ONNX's checks.
    """
    model = onnx.load(source)
    last_layer = [node.name for node in model.graph.node if LAST_LAYER_WEIGHT in node.input]
    # Torch's exporter has folded constants and inferred shapes already. Without this mark the quantiser logs that the
    # model needs that preprocessing.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory(prefix="zfserve-quantize-") as scratch:
        prepared = Path(scratch, "prepared.onnx")
        onnx.save(model, prepared)
        for precision, destination in destinations.items():
            quantize_static(
                prepared,
                destination,
                _PhotoReader(photos),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED_OPERATORS),
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=last_layer,
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


class _PhotoReader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, photos: Iterable[NDArray[np.uint8]]) -> None:
        self._batches = iter(photos)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}
