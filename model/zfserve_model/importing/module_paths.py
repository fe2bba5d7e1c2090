"""Finds the module of the source that computes each node, and the modules whose children run one after the other."""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from zfserve_model.graph.graph import Graph, Node

Path = tuple[str, ...]


def module_path(node: Node) -> Path:
    """Returns the path of the module that computes `node`, such as ("features", "stage1", "unit1").

    It reads the scopes of PyTorch, and names with slashes, such as "/layer1/layer1.0/conv1/Conv" or
    "resnet50/conv1_relu/Relu", whose last part is the operation. It returns () where the file has no names, or only
    numbers the operations, such as "Conv_12".
    """
    if node.scopes and node.name.startswith("node_"):
        return tuple(node.scopes[-1][0].split("."))
    *parts, last = node.name.removeprefix("/").split("/")
    is_operation = "/" in node.name and last[:1].isupper()
    if not is_operation and not re.fullmatch(rf"node_.*|{node.operation}(_?\d+)?|", last):
        parts.append(last)
    path: list[str] = []
    for part in parts:
        # A child of an nn.Sequential repeats the path of its parent: "layer1/layer1.0".
        parent = ".".join(path[-part.count(".") :])
        path.extend(part.removeprefix(f"{parent}.").split("."))
    return tuple(path)


def prefixes(paths: Collection[Path]) -> set[Path]:
    """Returns the paths of all modules that contain other modules. The root, (), is one of them."""
    return {path[:length] for path in paths for length in range(len(path))} | {()}


def cut_nodes(graph: Graph) -> Mapping[int, str]:
    """Returns the tensors that every path from the image to the logits passes, by the index of their node."""
    last_use = {name: place for place, node in enumerate(graph.nodes) for name in node.inputs}
    live, cuts = {graph.input}, {}
    for place, node in enumerate(graph.nodes):
        live.update(name for name in node.outputs if name in last_use or name == graph.logits)
        live.difference_update(name for name in node.inputs if last_use[name] == place)
        if len(live) == 1:
            (cuts[place],) = live
        if graph.logits in node.outputs:
            break
    return cuts


def sequential_modules(paths: Sequence[Path], cuts: Collection[int]) -> set[Path]:
    """Returns the modules that only hand one tensor from each child to the next, as an nn.Sequential does.

    A file has few classes, and other frameworks have none, so the flow of data decides. Modules whose paths differ in
    numbers alone count as one kind: they are sequential if all of them are. So the blocks of MobileNetV2 without a
    residual are blocks too.

    Args:
        paths: the path of each node, in topological order.
        cuts: the indices of the nodes that end in a cut.
    """
    broken: set[str] = set()
    modules = prefixes(paths)
    for module in modules:
        inside = [place for place, path in enumerate(paths) if path[: len(module)] == module]
        for place, following in pairwise(inside):
            same_child = (
                len(paths[place]) > len(module)
                and paths[place][: len(module) + 1] == paths[following][: len(module) + 1]
            )
            if not same_child and place not in cuts:
                broken.add(pattern(module))
    return {module for module in modules if pattern(module) not in broken}


def pattern(module: Path) -> str:
    """Returns the path with all numbers alike, such as "features.stage#.unit#"."""
    return re.sub(r"\d+", "#", ".".join(module))
