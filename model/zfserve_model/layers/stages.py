"""Groups the layers of a network into stages, and names the layers and the stages.

A stage is what a user of the network calls one: `stage4` of pytorchcv and `layer4` of torchvision are both `stage4`.
Where the source has no such names, a stage is a run of layers of one spatial size.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import count, pairwise

from zfserve_model.graph.graph import Graph
from zfserve_model.importing.module_paths import Path
from zfserve_model.layers.layer_choice import Layer

_STAGE = re.compile(r"(?:stage|layer|dense_?block)_?(\d+)")
_OUTER_STAGE = re.compile(r"(?:block|s)_?(\d+)")
"""This name stands for a stage only where it holds further modules: a `block1` may also be one block."""
_OUTER_LISTS = ("stages", "layers", "blocks", "levels")
_NUMBERED = re.compile(r"[A-Za-z]+_?(\d+)(?:_\d+)?")
STEM = "stem"
HEAD = "head"


def stage_names(graph: Graph, layers: Sequence[Layer], *, chain: bool) -> list[str]:
    """Returns the name of each layer's stage: "stem", "stage1", "stage2", ... and "head"."""
    sizes = [graph.shapes[layer.tensor][2:] for layer in layers]
    numbers = [_number_in_path(layer.path) for layer in layers]
    if _is_ascending(numbers):
        return _named_stages(numbers, sizes)
    if not chain:
        return _stages_of_blocks(layers, sizes)
    numbers = [_number_of_convolution(layer) for layer in layers]
    convolutions = [number for layer, number in zip(layers, numbers, strict=True) if layer.kind == "conv"]
    if None not in convolutions and _is_ascending(convolutions):
        return _stages_of_numbered_chain(numbers)
    return _stages_of_chain(layers, sizes)


def layer_names(layers: Sequence[Layer], stages: Sequence[str], *, chain: bool) -> list[str]:
    """Returns a name for each layer that no other layer has.

    The name is the path in the source, without the part that all paths share and without leading underscores. Where the
    file has no names, a layer of a chain is called by its kind and stage, such as "conv2_1", and another layer by its
    stage, such as "stage4.3".
    """
    if any(layer.path != (layer.kind,) for layer in layers):
        paths = _without_common_prefix([layer.path for layer in layers])
        return _unique([".".join(part.lstrip("_") or part for part in path) for path in paths])
    groups = [(stage, layer.kind if chain else "") for layer, stage in zip(layers, stages, strict=True)]
    members, seen = Counter(groups), Counter[tuple[str, str]]()
    names = []
    for stage, kind in groups:
        seen[stage, kind] += 1
        number = f"_{seen[stage, kind]}" if members[stage, kind] > 1 else ""
        names.append(f"{kind}{stage.removeprefix('stage')}{number}" if chain else f"{stage}.{seen[stage, kind]}")
    return names


def _without_common_prefix(paths: Sequence[Path]) -> Sequence[Path]:
    """Removes the first part of all paths, as long as they share it and each rest begins with a letter."""
    nested = [path for path in paths if len(path) > 1]  # a path of one part is a function that the root calls
    while nested and len({path[0] for path in nested}) == 1 and all(path[1][:1].isalpha() for path in nested):
        shorter = [path[1:] if len(path) > 1 else path for path in paths]
        if len(set(shorter)) < len(set(paths)):
            break
        paths = shorter
        nested = [path for path in paths if len(path) > 1]
    return paths


def _unique(names: Sequence[str]) -> list[str]:
    """Numbers equal names as PyTorch does: pool, pool_1, pool_2."""
    taken: set[str] = set()
    result = []
    for name in names:
        candidates = (name if number == 0 else f"{name}_{number}" for number in count())
        result.append(next(candidate for candidate in candidates if candidate not in taken))
        taken.add(result[-1])
    return result


def _number_in_path(path: Path) -> int | None:
    for place, part in enumerate(path):
        if match := _STAGE.fullmatch(part) or (place + 1 < len(path) and _OUTER_STAGE.fullmatch(part)):
            return int(match[1])
        if part in _OUTER_LISTS and place + 2 < len(path) and path[place + 1].isdigit():
            return int(path[place + 1])
    return None


def _is_ascending(numbers: Sequence[int | None]) -> bool:
    """Returns True if there are at least two different numbers, and none is smaller than one before it."""
    known = [number for number in numbers if number is not None]
    return len(set(known)) > 1 and all(first <= second for first, second in pairwise(known))


def _named_stages(numbers: Sequence[int | None], sizes: Sequence[tuple[int, ...]]) -> list[str]:
    """Returns the stages by the source's numbers.

    A layer between two numbered stages, such as a transition of a DenseNet, belongs to the one of its own size.
    """
    known = [place for place, number in enumerate(numbers) if number is not None]
    shift = 1 if min(number for number in numbers if number is not None) == 0 else 0
    names = []
    for place, number in enumerate(numbers):
        before = [other for other in known if other < place]
        after = [other for other in known if other > place]
        if number is None and not before:
            names.append(STEM)
        elif number is None and not after:
            names.append(HEAD)
        else:
            source = place if number is not None else after[0] if sizes[after[0]] == sizes[place] else before[-1]
            names.append(f"stage{(numbers[source] or 0) + shift}")
    return names


def _number_of_convolution(layer: Layer) -> int | None:
    """Returns the number in a name such as "conv3", or "conv3_2"."""
    match = _NUMBERED.fullmatch(layer.path[-1]) if layer.kind == "conv" else None
    return int(match[1]) if match else None


def _stages_of_numbered_chain(numbers: Sequence[int | None]) -> list[str]:
    """Returns the stages of a chain whose convolutions have numbers. All other layers follow a convolution."""
    names, current = [], 1
    for number in numbers:
        current = current if number is None else number
        names.append(f"stage{current}")
    return names


def _stages_of_chain(layers: Sequence[Layer], sizes: Sequence[tuple[int, ...]]) -> list[str]:
    """Returns the stages of a chain. A stage ends with its pool, or before the size changes."""
    names, stage = [], 1
    for place, size in enumerate(sizes):
        pool = layers[place].kind == "pool"
        if place and (layers[place - 1].kind == "pool" or (size != sizes[place - 1] and not pool)):
            stage += 1
        names.append(f"stage{stage}")
    return names


def _stages_of_blocks(layers: Sequence[Layer], sizes: Sequence[tuple[int, ...]]) -> list[str]:
    """Returns the stages of a network with blocks. All layers before the first block are the stem."""
    names, stage = [], 0
    stem = next((place for place, layer in enumerate(layers) if layer.joins), len(layers))
    for place, size in enumerate(sizes):
        if place >= stem and (place == stem or size != sizes[place - 1]):
            stage += 1
        names.append(f"stage{stage}" if stage else STEM)
    return names
