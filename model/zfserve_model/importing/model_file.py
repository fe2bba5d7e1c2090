"""Reads an ONNX file that may be hostile, and checks that it can be a network. `importer` and the export call it.

Reading runs no code of the file and opens no file outside the model's folder.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from zfserve_model.graph.errors import GraphError
from zfserve_model.importing.weights import read_array

LARGEST_FILE_BYTES = 2**31 - 1
"""protobuf reads no larger file. Larger networks keep their weights in a file beside the model."""
OLDEST_OPSET = 9
MOST_INLINED_NODES = 200_000
"""The most nodes that inlining functions may make: a few nested functions can stand for billions of nodes."""

_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu", "LayerNormalization")


def read_model(path: Path) -> onnx.ModelProto:
    """Returns the model of a file, with the weights that it keeps in other files beside it.

    Raises:
        GraphError: the file is no ONNX model, is too large, or names weights that are missing or outside its folder.
        OSError: the file cannot be opened.
    """
    size = path.stat().st_size
    if size > LARGEST_FILE_BYTES:
        raise GraphError(
            f"{path.name} has {size / 1e9:.1f} GB, and networks up to 2 GB can be imported; export a smaller network"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise GraphError(f"{path.name} is not an ONNX file; give the file that the ONNX export wrote") from error
    if not model.graph.node or not model.opset_import:
        raise GraphError(f"{path.name} holds no ONNX network; give the file that the ONNX export wrote")
    _read_external_data(model, path.parent)
    return model


def check_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model, with its functions inlined, if it can be imported.

    Raises:
        GraphError: its operator set is too old or unclear, or a weight is not a number.
    """
    model = _with_plain_domains(model)
    opset = opset_version(model)
    if opset < OLDEST_OPSET:
        raise GraphError(
            f"the file uses operator set {opset}; export it again with operator set {OLDEST_OPSET} or later"
        )
    model = inline_functions(model)
    _check_weights(model)
    return model


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model without functions: each call is replaced by the function's operations.

    Raises:
        GraphError: a function calls itself, or inlining would make too many nodes.
    """
    if not model.functions:
        return model
    _check_functions(model)
    return onnx.inliner.inline_local_functions(model)


def opset_version(model: onnx.ModelProto) -> int:
    """Returns the version of ONNX's own operators that the model uses.

    Raises:
        GraphError: the file does not name it.
    """
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return entry.version
    raise GraphError("the file does not name its version of ONNX's operators; export the file again")


def _with_plain_domains(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with one operator set for each domain. ONNX's own domain has two names: "" and "ai.onnx".

    Raises:
        GraphError: the file names two versions of one domain.
    """
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise GraphError(
                f"the file uses the operator sets {versions[domain]} and {entry.version} of {domain or 'ONNX'}; "
                "export it again with one"
            )
    if len(versions) == len(model.opset_import) and "ai.onnx" not in {entry.domain for entry in model.opset_import}:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.opset_import[:]
    changed.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    return changed


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields the weights and constants of the model, of its branches and of its functions."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes += graph.node
        else:
            for attribute in nodes.pop().attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs += attribute.graphs


def _read_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Puts the weights of other files into the model.

    Raises:
        GraphError: such a file is outside the folder, is missing or is too short, or all weights take over 2 GB.
    """
    total = 0
    for tensor in all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        places = {entry.key: entry.value for entry in tensor.external_data}
        name = places.get("location", "")
        try:
            file = Path(os.path.realpath(folder / name))
            exists = file.is_file()
        except (OSError, ValueError):  # no file can have this name
            file, exists = folder / "weights", False
        if not name or not file.is_relative_to(os.path.realpath(folder)):
            raise GraphError(
                f"the weights {tensor.name!r} are in {name!r}, outside the model's folder; put that file beside the "
                "model and export with its plain name"
            )
        if not exists:
            raise GraphError(f"the file {name!r} with the weights {tensor.name!r} is missing; put it beside the model")
        try:
            offset, length = int(places.get("offset", 0)), int(places.get("length", file.stat().st_size))
        except ValueError:
            offset, length = -1, -1
        if offset < 0 or length < 0 or offset + length > file.stat().st_size:
            raise GraphError(f"the file {name!r} ends before the weights {tensor.name!r} do; copy it again")
        total += length
        if total > LARGEST_FILE_BYTES:
            raise GraphError("the weights take more than 2 GB; such networks cannot be imported")
        with file.open("rb") as data:
            data.seek(offset)
            tensor.raw_data = data.read(length)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT


def _check_functions(model: onnx.ModelProto) -> None:
    """Checks that inlining ends, and makes a bounded number of nodes.

    Raises:
        GraphError: a function calls itself, or inlining would make too many nodes.
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    for _ in range(len(functions) + 1):
        for key, function in functions.items():
            called = [(node.domain, node.op_type) for node in _nodes(function.node)]
            if key not in sizes and all(call in sizes for call in called if call in functions):
                sizes[key] = sum(sizes.get(call, 1) for call in called)
    if len(sizes) < len(functions):
        raise GraphError("a function of the file calls itself; export the network without functions")
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in _nodes(model.graph.node))
    if total > MOST_INLINED_NODES:
        raise GraphError(
            f"the functions of the file stand for {total} operations, and at most {MOST_INLINED_NODES} are allowed; "
            "export a smaller network"
        )


def _nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    """Yields nodes and those in their branches."""
    waiting = list(nodes)  # type: ignore[call-overload]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += attribute.g.node
            for graph in attribute.graphs:
                waiting += graph.node


def _check_weights(model: onnx.ModelProto) -> None:
    """Raises `GraphError` if a weight is NaN, or if the weights of a layer hold infinite numbers.

    Other constants may be infinite: limits, and the masks of attention.
    """
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    multiplied = {name for node in model.graph.node if node.op_type in _WITH_WEIGHTS for name in node.input[1:]}
    for tensor in all_tensors(model):
        if tensor.data_type not in kinds:
            continue
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            values = read_array(tensor).astype(np.float32, copy=False)
        if np.isnan(values).any():
            raise GraphError(f"the weights {tensor.name!r} hold NaN; export a network whose training did not diverge")
        if tensor.name in multiplied and np.isinf(values).any():
            raise GraphError(
                f"the weights {tensor.name!r} hold infinite numbers, or such as float32 cannot hold; export a "
                "network whose training did not diverge"
            )
