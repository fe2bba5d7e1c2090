"""Gives each node of a graph the best name that its source has for it. `importer` calls it last."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from torch import Tensor

from zfserve_model.graph.graph import Node
from zfserve_model.importing.module_paths import module_path

_NUMBERED_TENSOR = re.compile(r"\d|.*::|node_")
"""Matches the names of tensors that an exporter counts, such as "123" and "onnx::Relu_45"."""


def name_nodes(nodes: Sequence[Node], constants: Mapping[str, Tensor]) -> list[Node]:
    """Returns the nodes with their names and, where the file tells them, their modules.

    The name is the first of these that exists: the path of the innermost module, from the metadata of torch's current
    exporter or from a name with slashes, as its older exporter and tf2onnx write; a name that is no mere number of the
    operation; the name of the weights without ".weight"; the node's or its tensor's name as it is.
    """
    nodes = _fill_scopes(nodes)
    return [replace(node, name=_name(node, constants)) for node in nodes]


def _name(node: Node, constants: Mapping[str, Tensor]) -> str:
    weights = [name for name in node.inputs[1:] if name in constants and name.endswith(".weight")]
    owner = weights[0].removesuffix(".weight") if weights else ""
    if node.scopes:
        path = node.scopes[-1][0]
        # torch's exporter calls a convolution by the batch norm that it folds into it.
        return owner if owner and owner.rpartition(".")[0] == path.rpartition(".")[0] else path
    parts = module_path(node)
    if parts:
        return ".".join(parts)
    if owner:
        return owner
    if node.name:
        return node.name
    return "" if not node.outputs or _NUMBERED_TENSOR.match(node.outputs[0]) else node.outputs[0]


def _fill_scopes(nodes: Sequence[Node]) -> list[Node]:
    """Gives nodes without scopes those that all readers of their outputs share.

    Torch's exporter gives no scopes to a Split. The readers are in the module that splits. What it splits may come from
    another module.
    """
    if not any(node.scopes for node in nodes):
        return list(nodes)
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    filled = []
    for node in nodes:
        if not node.scopes:
            around = [reader.scopes for name in node.outputs for reader in readers.get(name, []) if reader.scopes]
            levels = zip(*around, strict=False)
            shared = tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))
            node = replace(node, scopes=shared)
        filled.append(node)
    return filled
