"""Chooses the layers of a network that a user may name: one for each block, and each layer of a chain.

A ResNet has its stem, its pool and the outputs of its blocks; the convolutions inside of a block are left out. A chain,
such as ZFNet or VGG, has all its layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from zfserve_model.graph.box_rules import ACTIVATIONS, NORMS
from zfserve_model.graph.graph import Graph, Node
from zfserve_model.graph.module_paths import Path, cut_nodes, module_path, prefixes, sequential_modules

LONG = 40
"""A chain with more layers than this is shortened: an activation counts as part of its convolution."""
SMALL_MODULE = 4
"""The largest number of layers, such as norm, activation, convolution and pool, that make one layer of a network."""
WIDE_MODULE = 3
"""A module with cuts of at least this many sizes is no block. It holds most of the network, as a wrapper does."""

_KINDS = {
    **dict.fromkeys(("Conv", "ConvTranspose"), "conv"),
    **dict.fromkeys(("Relu", "Clip"), "relu"),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), "pool"),
    **dict.fromkeys(NORMS, "norm"),
    **dict.fromkeys(("Add", "Sum"), "add"),
}
_POINTWISE = (*ACTIVATIONS, *NORMS)
_JOINS = ("Add", "Sum", "Concat")


@dataclass(frozen=True)
class Layer:
    """Describes one layer that a user may name.

    Attributes:
        node: the node that computes the tensor.
        path: the path of the layer in the source. The last part is the kind of the operation where a module calls a
            function in its own code.
        owner: the module that holds the layer directly.
        block: True if the layer is the output of a block of several operations, which join branches.
    """

    tensor: str
    node: Node
    path: Path
    owner: Path
    block: bool

    @property
    def kind(self) -> str:
        return _KINDS.get(self.node.operation, self.node.operation.lower())


def choose_layers(graph: Graph) -> tuple[list[Layer], bool]:
    """Returns the layers in forward order, and True if the network is a chain."""
    paths = [module_path(node) for node in graph.nodes]
    cuts = {place: name for place, name in cut_nodes(graph).items() if is_map(graph, name)}
    modules = prefixes(paths)
    blocks = modules - sequential_modules(paths, cuts.keys()) - _wide_modules(graph, modules, paths, cuts) - {()}
    layers = {
        place: _layer(graph.nodes[place], name, paths[place], modules, _enclosing(paths[place], blocks))
        for place, name in cuts.items()
    }
    for block in blocks:
        inside = {place for place, path in enumerate(paths) if _enclosing(path, blocks) == block}
        if inside and not inside & cuts.keys():
            layers |= _outputs(graph, block, inside)
    ordered = [layers[place] for place in sorted(layers)]
    chain = len(cuts) == sum(is_map(graph, name) for node in graph.nodes for name in node.outputs)
    if chain and len(ordered) <= LONG:
        return ordered, True
    return _shorten(ordered), chain


def is_map(graph: Graph, name: str) -> bool:
    """Returns True for a tensor (1, channels, height, width) with more than one place."""
    shape = graph.shapes.get(name, ())
    return len(shape) == 4 and math.prod(shape[2:]) > 1


def _wide_modules(graph: Graph, modules: set[Path], paths: Sequence[Path], cuts: Mapping[int, str]) -> set[Path]:
    sizes: dict[Path, set[tuple[int, ...]]] = {module: set() for module in modules}
    for place, name in cuts.items():
        for module in modules & {paths[place][:length] for length in range(len(paths[place]) + 1)}:
            sizes[module].add(graph.shapes[name][2:])
    return {module for module in modules if len(sizes[module]) >= WIDE_MODULE}


def _enclosing(path: Path, blocks: set[Path]) -> Path | None:
    """Returns the outermost block that holds the module at `path`."""
    return next((path[:length] for length in range(1, len(path) + 1) if path[:length] in blocks), None)


def _layer(node: Node, tensor: str, path: Path, modules: set[Path], block: Path | None) -> Layer:
    if block is not None:
        return Layer(tensor, node, block, block[:-1], block=True)
    layer = Layer(tensor, node, path, path[:-1], block=node.operation in _JOINS)
    # A module that holds other modules calls the operation as a function.
    return replace(layer, path=(*path, layer.kind), owner=path) if path in modules else layer


def _outputs(graph: Graph, block: Path, inside: set[int]) -> dict[int, Layer]:
    """Returns the maps that leave a block of parallel branches, as in HRNet, where no tensor is a cut."""
    outside = {name for place, node in enumerate(graph.nodes) if place not in inside for name in node.inputs}
    leaving = {
        place: name
        for place in sorted(inside)
        for name in graph.nodes[place].outputs
        if name in outside and is_map(graph, name)
    }
    paths = {
        place: block if len(leaving) == 1 else (*block, "x".join(map(str, graph.shapes[name][2:])))
        for place, name in leaving.items()
    }
    return {
        place: Layer(name, graph.nodes[place], paths[place], paths[place][:-1], block=True)
        for place, name in leaving.items()
    }


def _shorten(layers: Sequence[Layer]) -> list[Layer]:
    """Merges the layers of a block, those of a small module, and an activation with the operation before it."""
    outputs = [list(same)[-1] for _, same in groupby(layers, lambda layer: layer.path)]
    merged: list[Layer] = []
    for owner, group in groupby(outputs, lambda layer: layer.owner):
        members = list(group)
        inside = sum(layer.path[: len(owner)] == owner for layer in outputs)
        if owner and 1 < len(members) == inside <= SMALL_MODULE:
            whole = replace(members[-1], path=owner, owner=owner[:-1], block=any(layer.block for layer in members))
            merged.append(whole)
        else:
            merged.extend(_with_activations(members))
    return merged


def _with_activations(layers: Sequence[Layer]) -> list[Layer]:
    """Merges each activation and norm with the layer of the same module before it."""
    merged: list[Layer] = []
    for layer in layers:
        if merged and layer.node.operation in _POINTWISE:
            merged[-1] = replace(layer, block=merged[-1].block)
        else:
            merged.append(layer)
    return merged
