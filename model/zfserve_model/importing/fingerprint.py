"""Computes the fingerprint of a network: a hash of what its ONNX model means, and of its weights.

The export writes it into the manifest and into every graph file. A server and a worker whose fingerprints differ refuse
to work together.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx.defs
from onnx import numpy_helper
from onnx.helper import get_attribute_value

from zfserve_model.graph.errors import GraphError
from zfserve_model.graph.graph import Node
from zfserve_model.graph.ordering import sort_nodes
from zfserve_model.importing.decoding import captured
from zfserve_model.importing.model_file import inline_functions
from zfserve_model.importing.weights import read_array

Hashes = dict[str, bytes]
"""The hash of each tensor by name: of its weights, or of the operation that computes it."""

_VALUES_OF_CONSTANTS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def graph_fingerprint(model: onnx.ModelProto) -> str:
    """Returns the sha256 of the model's meaning, as 64 hexadecimal digits.

    The hash of a weight covers its type, shape and values. The hash of another tensor covers its operation, the
    attributes, and the hashes of the inputs. So these do not change the fingerprint: names, the order of nodes and
    weights, operations that no output needs, documentation, metadata, the producer, and the place of the weights.

    Args:
        model: a model whose weights are all in it, not in other files.

    Raises:
        GraphError: the operations form a cycle, or read what nothing computes, or a weight cannot be read.
    """
    model = inline_functions(model)
    versions = {entry.domain.removeprefix("ai.onnx"): entry.version for entry in model.opset_import}
    used = {node.domain.removeprefix("ai.onnx") for node in model.graph.node}
    operators = [f"{domain} {version}" for domain, version in sorted(versions.items()) if domain in used]
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    hashes = {value.name: _input_hash(position, value) for position, value in enumerate(inputs)}
    outputs = _hash_graph(model.graph, hashes, versions)
    return _digest("model", *operators, *(hashes[value.name] for value in inputs), *outputs).hex()


def stored_fingerprint(model: onnx.ModelProto) -> str:
    """Returns the fingerprint that the export wrote into the model's metadata. Empty where there is none."""
    return next((entry.value for entry in model.metadata_props if entry.key == "fingerprint"), "")


def _hash_graph(graph: onnx.GraphProto, outer: Hashes, versions: Mapping[str, int]) -> list[bytes]:
    """Returns the hashes of a graph's outputs. A branch reads the tensors around it, whose hashes are `outer`."""
    hashes = dict(outer)
    for position, value in enumerate(graph.input):
        hashes.setdefault(value.name, _input_hash(position, value))
    for tensor in graph.initializer:
        hashes[tensor.name] = _tensor_hash(tensor)
    nodes = [
        Node(proto.op_type, tuple(_reads(proto)), tuple(proto.output), {"proto": proto}, proto.name)
        for proto in graph.node
    ]
    for node in sort_nodes(nodes, hashes.keys()):
        proto = node.attributes["proto"]
        assert isinstance(proto, onnx.NodeProto)
        _hash_node(proto, hashes, versions)
    missing = [value.name for value in graph.output if value.name not in hashes]
    if missing:
        raise GraphError(f"nothing computes the output {missing[0]!r}; export the file again")
    return [hashes[value.name] for value in graph.output]


def _reads(proto: onnx.NodeProto) -> Iterable[str]:
    """Yields the names of the tensors that a node and its branches read."""
    yield from proto.input
    for attribute in proto.attribute:
        if attribute.HasField("g"):
            yield from captured(attribute.g)


def _hash_node(proto: onnx.NodeProto, hashes: Hashes, versions: Mapping[str, int]) -> None:
    """Adds the hashes of the node's outputs. A Constant has the hash of a weight."""
    domain = proto.domain.removeprefix("ai.onnx")
    if proto.op_type == "Constant" and not domain:
        hashes[proto.output[0]] = _constant_hash(proto)
        return
    attributes = dict(_default_attributes(proto.op_type, domain, versions.get(domain, 1)))
    attributes |= {attribute.name: _attribute_hash(attribute, hashes, versions) for attribute in proto.attribute}
    inputs = list(proto.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    parts = [part for name in sorted(attributes) for part in (name, attributes[name])]
    whole = _digest("node", domain, proto.op_type, *parts, *(hashes[name] if name else b"" for name in inputs))
    for position, name in enumerate(proto.output):
        if name:
            hashes[name] = _digest("output", str(position), whole)


def _attribute_hash(attribute: onnx.AttributeProto, hashes: Hashes, versions: Mapping[str, int]) -> bytes:
    value = get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _tensor_hash(value)
    if isinstance(value, onnx.GraphProto):
        return _digest("graph", *_hash_graph(value, hashes, versions))
    if isinstance(value, (int, float, bytes)):
        return _digest(type(value).__name__, repr(value))
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS):
        return _digest("list", *(repr(item) for item in value))
    return _digest("other", attribute.SerializeToString(deterministic=True))


@functools.cache
def _default_attributes(operation: str, domain: str, version: int) -> tuple[tuple[str, bytes], ...]:
    """Returns the hashes of the values that an operator's attributes have where a node leaves them out."""
    try:
        schema = onnx.defs.get_schema(operation, version, domain)
    except onnx.defs.SchemaError:
        return ()
    defaults = [(name, entry.default_value) for name, entry in schema.attributes.items()]
    # An attribute without a default has a default value without a name.
    return tuple((name, _attribute_hash(value, {}, {})) for name, value in defaults if value.name)


def _constant_hash(proto: onnx.NodeProto) -> bytes:
    for attribute in proto.attribute:
        if attribute.name == "value":
            return _tensor_hash(attribute.t)
        if attribute.name in _VALUES_OF_CONSTANTS:
            values = np.array(get_attribute_value(attribute), dtype=_VALUES_OF_CONSTANTS[attribute.name])
            return _tensor_hash(numpy_helper.from_array(values))
    return _digest("constant", *(attribute.SerializeToString(deterministic=True) for attribute in proto.attribute))


def _tensor_hash(tensor: onnx.TensorProto) -> bytes:
    """Returns the hash of a tensor's type, shape and little-endian values.

    Raises:
        GraphError: the values are in another file, or do not fit the shape.
    """
    values = np.ascontiguousarray(read_array(tensor)).reshape(-1)
    return _digest("tensor", str(tensor.data_type), str(tuple(tensor.dims)), values.view(np.uint8).data)


def _input_hash(position: int, value: onnx.ValueInfoProto) -> bytes:
    """Returns the hash of an input's type and fixed sizes. The names of free sizes do not matter."""
    kind = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in kind.shape.dim]
    return _digest("input", str(position), str(kind.elem_type), str(sizes))


def _digest(*parts: str | bytes | memoryview) -> bytes:
    """Returns the sha256 of the parts, each after its length, so that no two lists of parts look alike."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.digest()
