"""This module reads a user's ONNX file as a source. `opening` calls it."""

from pathlib import Path

from onnx import ModelProto
from zfserve_model.graph.ordering import sort_nodes
from zfserve_model.importing.decoding import Decoder
from zfserve_model.importing.importer import require_bounded
from zfserve_model.importing.model_file import check_model, opset_version, read_model
from zfserve_model.preprocessing import PRESETS, PreprocessingFacts

from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.facts import classes_of, complete_facts, known_facts, require_facts
from zfserve_export.sources.onnx_interface import (
    ImageInput,
    find_image_input,
    find_scores,
    forget_impossible_sizes,
    infer_shapes,
)
from zfserve_export.sources.source import Source, SourceOptions, folder_name


def open_onnx(file: Path, options: SourceOptions) -> Source:
    """Reads an ONNX file, with its external data, and finds its image and its scores.

    Raises:
        SourceError: the file cannot be used, or leaves something open that the options do not say.
        GraphError: the file is not safe to read, or not valid.
    """
    model = check_model(read_model(file))
    description = file.name
    forget_impossible_sizes(model)
    image = find_image_input(model, description)
    facts = known_facts(_size_facts(image), options.preprocessing)
    if image.dtype == "uint8":
        facts = _without_normalisation(facts, description)
    size = (facts["height"], facts["width"]) if "height" in facts else None
    if size is not None and not (image.height in (None, size[0]) and image.width in (None, size[1])):
        raise SourceError(
            f"the input of {description} is {image.height} x {image.width}, and --size says {size[0]} x {size[1]}; "
            "leave --size out"
        )
    if size is None:
        _require_order(model, image)
    else:
        require_bounded(model, image.name, (3, *size) if image.layout == "NCHW" else (*size, 3), image.batch)
    scores = find_scores(infer_shapes(model, image, size), description, options.scores)
    require_facts(description, facts, options.labels, scores.classes)
    labels = options.labels or {}
    class_ids, names = classes_of(description, labels, scores.classes or len(labels))
    return Source(
        model=model,
        input_name=image.name,
        layout=image.layout,
        dtype=image.dtype,
        scores=scores.name,
        softmax=scores.softmax,
        fixed_batch=image.batch,
        preprocessing=complete_facts(description, facts),
        class_ids=class_ids,
        labels=names,
        description=description,
        name=folder_name(file.stem),
    )


def _require_order(model: ModelProto, image: ImageInput) -> None:
    """Checks that every tensor is computed before it is read.

    Raises:
        GraphError: the nodes form a cycle, or read a tensor that nobody computes.
    """
    decoder = Decoder(opset_version(model), {})
    nodes = decoder.decode(model.graph)
    sort_nodes(nodes, decoder.constants.keys() | {image.name})


def _size_facts(image: ImageInput) -> PreprocessingFacts:
    if image.height is None or image.width is None:
        return {}
    return {"height": image.height, "width": image.width}


def _without_normalisation(facts: PreprocessingFacts, description: str) -> PreprocessingFacts:
    """Returns the facts for a network that reads raw pixels.

    Raises:
        SourceError: the user stated another mean or standard deviation.
    """
    raw = PRESETS["none"]
    if facts.get("mean", raw["mean"]) != raw["mean"] or facts.get("std", raw["std"]) != raw["std"]:
        raise SourceError(
            f"the input of {description} is uint8, so the network normalises the pixels itself; use "
            "--preprocessing none, with --resize and --interpolation"
        )
    return facts | raw
