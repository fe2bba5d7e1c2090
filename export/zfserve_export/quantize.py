"""The INT8 file beside the float one: static Q/DQ for ONNX Runtime; called by `exporter`.

Weights are signed and per output channel, activations unsigned and per tensor. The last layer stays in float, so that
logits are not rounded to 256 steps; so do normalisation, contrast norm and softmax.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from zfserve_export.onnx_graph import check_graph, describe_model

QUANTIZED_OPERATORS = ("Conv", "Gemm", "Relu", "MaxPool", "Reshape")
LAST_LAYER_WEIGHT = "head.fc8.weight"
LARGEST_WEIGHT = 64
"""Weights use 7 bits. Without VNNI, x86 adds two products of a uint8 and an int8 in 16 signed bits, which
2 * 255 * 127 overflows, silently; 2 * 255 * 64 = 32,640 never does, so that every CPU gets the same sums."""


def quantize_file(source: Path, destination: Path, photos: Iterable[NDArray[np.uint8]], fingerprint: str) -> None:
    """Write the INT8 form of the float model in `source`.

    Args:
        photos: batches, uint8 (N, H, W, 3), of at least one photo in all; they set the ranges of the activations.

    Raises:
        GraphError: the result fails ONNX's checks.
    """
    model = onnx.load(source)
    last_layer = [node.name for node in model.graph.node if LAST_LAYER_WEIGHT in node.input]
    # Torch's exporter has folded constants and inferred shapes; without this mark the quantiser asks for that.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory(prefix="zfserve-quantize-") as scratch:
        prepared = Path(scratch, "prepared.onnx")
        onnx.save(model, prepared)
        quantize_static(
            prepared,
            destination,
            _PhotoReader(photos),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED_OPERATORS),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=last_layer,
            calibrate_method=CalibrationMethod.MinMax,
        )
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
