"""The 8-bit files beside the float one: static Q/DQ, by ONNX Runtime's quantiser; called by `exporter`.

Weights are signed and per output channel, activations per tensor. The last layer stays in float, so that logits are not
rounded to 256 steps; so do normalisation, contrast norm and softmax.

`int8` is for ONNX Runtime on CPUs: activations are unsigned, and stay in 8 bits from layer to layer.
`int8-symmetric` is for TensorRT, which takes signed activations with a zero point of 0, and biases in float alone. Only
the inputs of convolutions and fully connected layers are rounded, where TensorRT can fuse the rounding into the layer
before.
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
"""Weights of `int8` use 7 bits. Without VNNI, x86 adds two products of a uint8 and an int8 in 16 signed bits, which
2 * 255 * 127 overflows, silently; 2 * 255 * 64 = 32,640 never does, so that every CPU gets the same sums. GPUs add in
32 bits, so `int8-symmetric` uses all 8. (On a CPU, ONNX Runtime has no integer kernels for layers with a float bias: it
computes that file in float, rounding where it says.)"""

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
    """Write 8-bit forms of the float model in `source`, each to its place, from one calibration.

    Args:
        photos: batches, uint8 (N, H, W, 3), of at least one photo in all; they set the ranges of the activations.

    Raises:
        GraphError: a result fails ONNX's checks.
    """
    model = onnx.load(source)
    last_layer = [node.name for node in model.graph.node if LAST_LAYER_WEIGHT in node.input]
    # Torch's exporter has folded constants and inferred shapes; without this mark the quantiser asks for that.
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
                # The first one writes the ranges here, the others read them and no photos.
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
