"""This module edits ONNX models in place: names, unneeded nodes, metadata. `onnx_wrap` and `half_precision` call it."""

from collections.abc import Collection, Iterator, Mapping

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

KEPT_METADATA = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy")
"""The metadata of nodes that torch's exporter writes and the layer table reads: paths and classes of modules."""


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yields the bodies of an If, a Loop or a Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def tensor_names(graph: GraphProto) -> set[str]:
    """Returns the names of all tensors of a graph and of its subgraphs."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    names |= {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names.update((*node.input, *node.output))
        for body in subgraphs(node):
            names |= tensor_names(body)
    return names - {""}


def rename_tensors(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames tensors everywhere in a graph and its subgraphs. `names` has the new name by the old one."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for tensors in (node.input, node.output):
            for index, name in enumerate(tensors):
                tensors[index] = names.get(name, name)
        for body in subgraphs(node):
            rename_tensors(body, names)


def keep_needed(graph: GraphProto, wanted: Collection[str]) -> None:
    """Removes the nodes and the initializers that no tensor of `wanted` needs."""
    needed, kept = set(wanted), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            for body in subgraphs(node):
                needed |= tensor_names(body)
    kept.reverse()
    _replace(graph.node, kept)
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])


def name_nodes(graph: GraphProto) -> None:
    """Gives every node a name of its own. Nodes that have one keep it."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    counts: dict[str, int] = {}
    for node in graph.node:
        if not node.name or node.name in seen:
            stem = node.name or node.op_type
            name, number = stem, counts.get(stem, 0)
            while name in taken:
                number += 1
                name = f"{stem}_{number}"
            node.name, counts[stem] = name, number
            taken.add(name)
        seen.add(node.name)


def unused_name(stem: str, taken: Collection[str]) -> str:
    """Returns `stem`, or `stem` with the first number that makes it new."""
    name, number = stem, 1
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    return name


def remove_origin(model: ModelProto) -> None:
    """Removes texts and metadata that say where and how a file was made, because they have file paths of its machine.

    The paths and the classes of modules stay.
    """
    for field in ("doc_string", "domain", "producer_name", "producer_version", "model_version"):
        model.ClearField(field)
    del model.metadata_props[:]
    _remove_origin(model.graph)


def _remove_origin(graph: GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.quantization_annotation[:]
    for node in graph.node:
        node.doc_string = ""
        _replace(node.metadata_props, [entry for entry in node.metadata_props if entry.key in KEPT_METADATA])
        for body in subgraphs(node):
            _remove_origin(body)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def set_shape(value: onnx.ValueInfoProto, shape: Collection[int | str]) -> None:
    """Sets the shape of an input or output. A string names a dynamic axis."""
    element = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, element, list(shape)))


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Returns the initializers and the values of Constant nodes, by the name of the tensor."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def constant_names(graph: GraphProto) -> set[str]:
    """Returns the names of all tensors that do not depend on the input of the graph."""
    found = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        if found.issuperset(node.input) and not any(True for _ in subgraphs(node)):
            found.update(node.output)
    return found


def infer_types(model: ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Returns the element type and shape of every tensor for which ONNX's shape inference finds one."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {value.name: value.type.tensor_type for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    for tensor in inferred.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
    return types


def known_shape(type_: onnx.TypeProto.Tensor | None) -> tuple[int, ...] | None:
    """Returns the shape of a type. None where an axis is dynamic or nothing is known."""
    if type_ is None or not type_.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") for dim in type_.shape.dim):
        return None
    return tuple(dim.dim_value for dim in type_.shape.dim)


def int64_constant(name: str, values: list[int]) -> TensorProto:
    """Returns a vector of int64 as an initializer."""
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def as_ints(tensor: TensorProto) -> list[int]:
    """Returns the values of a vector of integers."""
    return [int(value) for value in numpy_helper.to_array(tensor).reshape(-1)]


def _replace(field, values) -> None:  # type: ignore[no-untyped-def] # protobuf's containers have no common type
    copies = list(values)
    del field[:]
    field.extend(copies)
