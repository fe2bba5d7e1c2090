"""A label is the human-readable name of a class; this module finds the label for a class id.

`zfserve train` calls it, because its classes are named after folders. `weights_import` and the commands that take
`--labels` call it to rename the classes of a checkpoint.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from zfserve_model.checkpoint import Checkpoint


class LabelsError(ValueError):
    """The labels cannot be used. The message names the line or the class at fault."""


def read_labels(file: Path) -> dict[str, str]:
    """Reads labels by class id, in the order of the file. The file is a JSON object, or has lines of `id<TAB>label`.

    Raises:
        LabelsError: the file cannot be read, has neither form, repeats an id, or leaves out a label.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # the codec skips a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise LabelsError(f"{file} cannot be read as labels: {error}") from error
    pairs = _json_pairs(text, file) if text.lstrip().startswith("{") else _tab_pairs(text, file)
    labels: dict[str, str] = {}
    for class_id, label in pairs:
        if class_id in labels:
            raise LabelsError(f"{file} labels class {class_id!r} twice")
        if not isinstance(label, str) or not label.strip():
            raise LabelsError(f"{file} has no label for class {class_id!r}")
        labels[class_id] = label.strip()
    if not labels:
        raise LabelsError(f"{file} holds no labels")
    return labels


def _json_pairs(text: str, file: Path) -> list[tuple[str, object]]:
    try:
        # A dictionary would keep only the last of two equal ids.
        pairs: list[tuple[str, object]] = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise LabelsError(f"{file} is not valid JSON: {error}") from error
    return pairs


def _tab_pairs(text: str, file: Path) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        class_id, tab, label = line.partition("\t")
        if not tab:
            raise LabelsError(f"{file}, line {number}: needs a class id, a tab and a label")
        pairs.append((class_id.strip(), label))
    return pairs


def imagenette_labels() -> dict[str, str]:
    """Returns the labels of Imagenette's ten classes by WordNet id."""
    text = files("zfserve_model").joinpath("imagenette_labels.tsv").read_text(encoding="utf-8")
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
