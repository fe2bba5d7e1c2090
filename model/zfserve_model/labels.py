"""What a human calls a class: labels for class ids.

Called by `zfserve train` (its classes are named after folders) and by whoever renames the classes of a checkpoint.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from zfserve_model.checkpoint import Checkpoint


class LabelsError(ValueError):
    """The labels cannot be used; the message says which line or class is at fault."""


def read_labels(file: Path) -> dict[str, str]:
    """Labels by class id, in the order of the file: a JSON object, or lines of `id<TAB>label`.

    Raises:
        LabelsError: the file cannot be read or has neither form, or an id occurs twice or has no label.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # with a byte-order mark, or without
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
        # As pairs, since a dictionary would keep only the last of two equal ids.
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
    """The ten classes of Imagenette by their WordNet ids."""
    text = files("zfserve_model").joinpath("imagenette_labels.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def label_classes(class_ids: Sequence[str], labels: Mapping[str, str] | None) -> tuple[str, ...]:
    """One label per class; without `labels`, ids of Imagenette get their names and others stand for themselves.

    Raises:
        LabelsError: `labels` leaves classes out; all of them are named.
    """
    if labels is None:
        known = imagenette_labels()
        return tuple(known.get(class_id, class_id) for class_id in class_ids)
    if missing := [class_id for class_id in class_ids if class_id not in labels]:
        raise LabelsError(f"there is no label for {', '.join(missing)}")
    return tuple(labels[class_id] for class_id in class_ids)


def relabel(checkpoint: Checkpoint, labels: Mapping[str, str] | None) -> Checkpoint:
    """The same checkpoint with the labels that `label_classes` gives its classes."""
    return replace(checkpoint, labels=label_classes(checkpoint.class_ids, labels))
