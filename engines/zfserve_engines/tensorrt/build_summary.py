"""Summarises a TensorRT build from the network that TensorRT parsed. `builder` calls it.

A plan can be inspected only on a GPU. The parsed network shows everything except how layers were fused into kernels.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter
from zfserve_runtime.bundle import Precision

from zfserve_engines.cuda.batch_sizes import BatchProfile

DYNAMIC = -1
"""The size that a shape gives for the batch axis, because it differs from batch to batch."""

_COMPUTING = ("CONVOLUTION", "MATRIX_MULTIPLY", "LRN", "SOFTMAX")
"""The kinds of layers whose precision matters."""
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TensorSummary:
    """Describes an input or an output.

    Attributes:
        name: the name in the graph.
        dtype: numpy's name of the element type.
        shape: the shape, with DYNAMIC for the batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerSummary:
    """Describes one layer of the parsed network.

    Attributes:
        name: the layer's name in the network.
        kind: TensorRT's name of the kind of layer, such as "CONVOLUTION".
        precision: the dtype in which the layer computes; int8 where its input was quantised.
    """

    name: str
    kind: str
    precision: str


@dataclass(frozen=True)
class BuildSummary:
    """Describes what was built. `zfserve compile` shows it, and the record beside the engine stores it.

    Attributes:
        library: the name and version of the library.
        precision: the precision of the graph. Some layers may have another precision; see `layers`.
        compute_capabilities: the compute capabilities of the target GPUs. Empty: the GPU of the machine that built it.
        inputs: the inputs of the network.
        outputs: the outputs of the network.
        profiles: the optimisation profiles.
        layers: the layers of the network as it was parsed.
        plan_bytes: the size of the engine in bytes.
        seconds: the time from reading the graph to the finished plan.
        peak_memory_bytes: the peak memory of the whole process up to the end of the build; None where the system is not
            Linux.
    """

    library: str
    precision: Precision
    compute_capabilities: tuple[str, ...]
    inputs: tuple[TensorSummary, ...]
    outputs: tuple[TensorSummary, ...]
    profiles: tuple[BatchProfile, ...]
    layers: tuple[LayerSummary, ...]
    plan_bytes: int
    seconds: float
    peak_memory_bytes: int | None

    def computing_layers(self) -> dict[tuple[str, str], int]:
        """Returns the number of layers for each (kind, precision), for the kinds in `_COMPUTING` only."""
        return Counter((layer.kind, layer.precision) for layer in self.layers if layer.kind in _COMPUTING)

    def to_json(self) -> dict[str, Any]:
        """Returns the summary as numbers, strings, lists and dictionaries only."""
        document: dict[str, Any] = TypeAdapter(BuildSummary).dump_python(self, mode="json")
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Reads a document from `to_json`. Raises pydantic.ValidationError if it is not one."""
        return TypeAdapter(cls).validate_python(document)


@dataclass(frozen=True)
class NetworkFacts:
    """Holds the part of a `BuildSummary` that is read from the network."""

    inputs: tuple[TensorSummary, ...]
    outputs: tuple[TensorSummary, ...]
    layers: tuple[LayerSummary, ...]


def read_network(network: Any) -> NetworkFacts:
    """Reads a parsed `INetworkDefinition`."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    quantised = {
        layer.get_output(0).name: dtype_name(layer.get_input(0)) for layer in layers if layer.type.name == "DEQUANTIZE"
    }
    return NetworkFacts(
        inputs=tuple(_describe(network.get_input(index)) for index in range(network.num_inputs)),
        outputs=tuple(_describe(network.get_output(index)) for index in range(network.num_outputs)),
        layers=tuple(LayerSummary(layer.name, layer.type.name, _precision(layer, quantised)) for layer in layers),
    )


def dtype_name(tensor: Any) -> str:
    """Returns numpy's name of the element type of an `ITensor`."""
    name: str = tensor.dtype.name
    return _DTYPES.get(name, name.lower())


def peak_memory_bytes() -> int | None:
    """Returns the peak memory of this process in bytes; None where /proc cannot be read."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return int(peak.split()[1]) * 1024 if peak else None


def _describe(tensor: Any) -> TensorSummary:
    return TensorSummary(tensor.name, dtype_name(tensor), tuple(tensor.shape))


def _precision(layer: Any, quantised: dict[str, str]) -> str:
    """Returns the precision of a layer's input. A constant has no input, so its output counts."""
    tensor = layer.get_input(0) if layer.num_inputs else layer.get_output(0)
    return quantised.get(tensor.name, dtype_name(tensor))
