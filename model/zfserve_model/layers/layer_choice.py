"""Chooses the layers of a network that a user may name: one for each block, and each layer of a chain.

A ResNet has its stem, its pool and the outputs of its blocks; the convolutions inside of a block are left out. A chain,
such as ZFNet or VGG, has all its layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from zfserve_model.graph.graph import Graph, Node
from zfserve_model.graph.pointwise import ACTIVATIONS
from zfserve_model.importing.module_paths import Path, cut_nodes, module_path, pattern, prefixes, sequential_modules
from zfserve_model.layers.box_rules import NORMS

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
_CHANNELS_FIRST = (
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"),
    *("BatchNormalization", "LRN", "InstanceNormalization", "GroupNormalization", "DepthToSpace", "SpaceToDepth"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
)
"""Operations whose outputs have their channels behind the batch axis. Of a change of shape this is assumed."""


@dataclass(frozen=True)
class Layer:
    """Describes one layer that a user may name.

    Attributes:
        node: the node that computes the tensor.
        path: the path of the layer in the source. The last part is the kind of the operation where a module calls a
            function in its own code.
        owner: the module that holds the layer directly.
        block: True if the layer is an output of a block, a module with branches.
        joins: True if the layer is the output of a block, or joins branches itself.
    """

    tensor: str
    node: Node
    path: Path
    owner: Path
    block: bool
    joins: bool

    @property
    def kind(self) -> str:
        return _KINDS.get(self.node.operation, self.node.operation.lower())


def choose_layers(graph: Graph) -> tuple[list[Layer], bool]:
    """Returns the layers in forward order, and True if the network is a chain."""
    paths = [module_path(node) for node in graph.nodes]
    maps = _find_maps(graph)
    flow = cut_nodes(graph)
    cuts = {place: name for place, name in flow.items() if name in maps}
    modules = prefixes(paths)
    blocks = modules - sequential_modules(paths, flow.keys()) - _wide_modules(graph, modules, paths, cuts) - {()}
    layers = {}
    for place, name in cuts.items():
        node = _untransposed(graph, place)
        path = module_path(node)
        layers[place] = _layer(node, name, path, modules, _enclosing(path, blocks))
    for block in blocks:
        inside = {place for place, path in enumerate(paths) if _enclosing(path, blocks) == block}
        if inside and not inside & cuts.keys():
            layers |= _outputs(graph, maps, block, inside)
    ordered = [layers[place] for place in sorted(layers)]
    chain = len(cuts) == len(maps)
    if chain and len(ordered) <= LONG:
        return ordered, True
    return _shorten(ordered), chain


def _find_maps(graph: Graph) -> set[str]:
    """Returns the computed tensors (1, channels, height, width) with more than one place.

    Tensors (1, height, width, channels) are left out. ConvNeXt has them around its norms and its linear layers.
    """
    maps, axes = set(), {graph.input: 1}  # the axis of the channels, by tensor
    for node in graph.nodes:
        axis = next((axes[name] for name in node.inputs if name in axes), 1)
        perm = node.attributes.get("perm")
        if isinstance(perm, list):
            axis = perm.index(axis)
        elif node.operation in _CHANNELS_FIRST:
            axis = 1
        for name in node.outputs:
            shape = graph.shapes.get(name, ())
            axes[name] = axis
            if axis == 1 and len(shape) == 4 and math.prod(shape[2:]) > 1:
                maps.add(name)
    return maps


def _untransposed(graph: Graph, place: int) -> Node:
    """Returns the node at `place`, or the one that computes what it transposes."""
    node = graph.nodes[place]
    while node.operation == "Transpose" and node.inputs[0] in graph.producers:
        node = graph.producers[node.inputs[0]]
    return node


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
        return Layer(tensor, node, block, block[:-1], block=True, joins=True)
    layer = Layer(tensor, node, path, path[:-1], block=False, joins=node.operation in _JOINS)
    # A module that holds other modules calls the operation as a function.
    return replace(layer, path=(*path, layer.kind), owner=path) if path in modules else layer


def _outputs(graph: Graph, maps: set[str], block: Path, inside: set[int]) -> dict[int, Layer]:
    """Returns the maps that leave a block of parallel branches, as in HRNet, where no tensor is a cut."""
    outside = {name for place, node in enumerate(graph.nodes) if place not in inside for name in node.inputs}
    leaving = {place: name for place in sorted(inside) for name in graph.nodes[place].outputs if name in outside & maps}
    paths = {
        place: block if len(leaving) == 1 else (*block, "x".join(map(str, graph.shapes[name][2:])))
        for place, name in leaving.items()
    }
    return {
        place: Layer(name, graph.nodes[place], paths[place], paths[place][:-1], block=True, joins=True)
        for place, name in leaving.items()
    }


def _shorten(layers: Sequence[Layer]) -> list[Layer]:
    """Merges the layers of a block, those of a small module, and an activation with the operation before it."""
    outputs = [list(same)[-1] for _, same in groupby(layers, lambda layer: layer.path)]
    merged: list[Layer] = []
    for (owner, block), group in groupby(outputs, lambda layer: (layer.owner, layer.block)):
        members = list(group)
        inside = sum(layer.path[: len(owner)] == owner for layer in outputs)
        if block:
            merged.extend(members)
        elif owner and 1 < len(members) == inside <= SMALL_MODULE:
            merged.append(replace(members[-1], path=owner, owner=owner[:-1], joins=any(part.joins for part in members)))
        else:
            merged.extend(_with_activations(members))
    return _without_single_children(merged)


def _with_activations(layers: Sequence[Layer]) -> list[Layer]:
    """Merges each activation and norm with the layer of the same module before it."""
    merged: list[Layer] = []
    for layer in layers:
        if merged and layer.node.operation in _POINTWISE:
            merged[-1] = replace(layer, joins=merged[-1].joins)
        else:
            merged.append(layer)
    return merged


def _without_single_children(layers: Sequence[Layer]) -> list[Layer]:
    """Shortens `unit1.branches` to `unit1`, where each module of this kind holds one layer."""
    kinds: dict[str, list[int]] = {}
    for owner in {layer.owner for layer in layers}:
        kinds.setdefault(pattern(owner), []).append(sum(layer.path[: len(owner)] == owner for layer in layers))
    single = {kind for kind, numbers in kinds.items() if kind and len(numbers) > 1 and max(numbers) == 1}
    shorter = [
        replace(layer, path=layer.owner, owner=layer.owner[:-1]) if pattern(layer.owner) in single else layer
        for layer in layers
    ]
    return shorter if shorter == layers else _without_single_children(shorter)
