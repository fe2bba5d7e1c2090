"""What a TensorRT build made, as read back from the network that TensorRT parsed. Called by `tensorrt_builder`.

A plan itself can be inspected on a card only; the network says all but which kernels its layers were fused into.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter
from zfserve_runtime.bundle import Precision

from zfserve_engines.cuda.batch_sizes import BatchProfile

DYNAMIC = -1
"""An axis whose size comes with each batch."""

_COMPUTING = ("CONVOLUTION", "MATRIX_MULTIPLY", "LRN", "SOFTMAX")
"""Kinds of layers in which the choice of precision matters."""
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TensorSummary:
    """An input or output. `dtype` is numpy's name; `shape` has DYNAMIC for the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerSummary:
    """One layer of the parsed network.

    Attributes:
        kind: TensorRT's name, such as "CONVOLUTION".
        precision: the dtype it computes in; int8 where what it reads was quantised.
    """

    name: str
    kind: str
    precision: str


@dataclass(frozen=True)
class BuildSummary:
    """What was built, for `zfserve compile` to show and for the record beside the engine.

    Attributes:
        library: its name and version.
        precision: of the graph; its layers may differ, see `layers`.
        compute_capabilities: of the cards it was built for; empty: the card at hand.
        plan_bytes: size of the engine.
        seconds: from reading the graph to the finished plan.
        peak_memory_bytes: most that this process ever held in memory, its libraries included; None off Linux.
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
        """How many layers there are of each kind and precision, of those that do the work."""
        return Counter((layer.kind, layer.precision) for layer in self.layers if layer.kind in _COMPUTING)

    def to_json(self) -> dict[str, Any]:
        """Of numbers, strings, lists and dictionaries alone."""
        document: dict[str, Any] = TypeAdapter(BuildSummary).dump_python(self, mode="json")
        return document

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Raises pydantic.ValidationError where `to_json` did not write it."""
        return TypeAdapter(cls).validate_python(document)


@dataclass(frozen=True)
class NetworkFacts:
    """The part of a `BuildSummary` that is read from the network."""

    inputs: tuple[TensorSummary, ...]
    outputs: tuple[TensorSummary, ...]
    layers: tuple[LayerSummary, ...]


def read_network(network: Any) -> NetworkFacts:
    """Read a parsed `INetworkDefinition`."""
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
    name: str = tensor.dtype.name
    return _DTYPES.get(name, name.lower())


def peak_memory_bytes() -> int | None:
    """Most that this process ever held in memory; None where Linux does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return int(peak.split()[1]) * 1024 if peak else None


def _describe(tensor: Any) -> TensorSummary:
    return TensorSummary(tensor.name, dtype_name(tensor), tuple(tensor.shape))


def _precision(layer: Any, quantised: dict[str, str]) -> str:
    """Of what it reads, or of what it makes where it reads nothing, as a constant does."""
    tensor = layer.get_input(0) if layer.num_inputs else layer.get_output(0)
    return quantised.get(tensor.name, dtype_name(tensor))
