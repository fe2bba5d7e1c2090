"""Builds a graph from an ONNX model. The worker calls it for a bundle's `model.onnx`, the export for its sources."""

from pathlib import Path

import onnx

from zfserve_model.graph.errors import GraphError
from zfserve_model.graph.graph import Graph
from zfserve_model.graph.ordering import drop_unread_outputs, needed_nodes, sort_nodes
from zfserve_model.importing.decoding import Decoder
from zfserve_model.importing.folding import Folding
from zfserve_model.importing.heads import find_head
from zfserve_model.importing.inference import NodeInference
from zfserve_model.importing.interface import image_input, normalised_images, output_names
from zfserve_model.importing.model_file import check_model, opset_version, read_model
from zfserve_model.importing.naming import name_nodes
from zfserve_model.importing.patterns import recognise
from zfserve_model.importing.simplification import simplify, used_constants

__all__ = ["GraphError", "import_graph", "require_bounded"]


def require_bounded(model: onnx.ModelProto, input_name: str, image: tuple[int, ...], batch: int) -> None:
    """Checks that no tensor of a model is so large that running it, or asking ONNX for its shapes, takes the memory.

    Args:
        model: a model that `check_model` returned.
        input_name: its image input.
        image: the shape of one image, as the input declares it: (3, H, W) or (H, W, 3).
        batch: the only batch size that it takes. 0 stands for any.

    Raises:
        GraphError: a tensor is too large, or the operations form a cycle, read what nothing computes or do not fit.
    """
    decoder = Decoder(opset_version(model), {})
    nodes = sort_nodes(decoder.decode(model.graph), decoder.constants.keys() | {input_name})
    batches = (batch,) if batch else (2, 3)
    Folding(decoder, input_name, image, batches, NodeInference(model).outputs).run(nodes)


def import_graph(source: Path | onnx.ModelProto) -> Graph:
    """Returns the network of a model. Its input is `pixels`, uint8 (N, H, W, 3), or a float tensor (N, 3, H, W).

    The graph begins after the normalisation of the pixels. Operations that are not in the table stay in the graph as
    nodes that are not supported.

    Raises:
        GraphError: the file cannot be used as a network. The message is one sentence that says what to do.
        OSError: the file cannot be opened.
    """
    model = check_model(read_model(source) if isinstance(source, Path) else source)
    decoder = Decoder(opset_version(model), {})
    nodes = decoder.decode(model.graph)
    image = image_input(model.graph, decoder.constants)
    name = image.name
    nodes = sort_nodes(nodes, decoder.constants.keys() | {name})
    wanted = output_names(model.graph)
    made = {output for node in nodes for output in node.outputs} | decoder.constants.keys() | {name}
    missing = [output for output in wanted if output not in made]
    if missing:
        raise GraphError(f"nothing computes the output {missing[0]!r}; export the file again")
    if image.wrapped:
        name = normalised_images(nodes, name)
    nodes = drop_unread_outputs(needed_nodes(nodes, wanted, {name}), wanted)
    batches = (image.batch,) if image.batch else (2, 3)
    inference = NodeInference(model)
    folded = Folding(decoder, name, (3, image.height, image.width), batches, inference.outputs).run(nodes)
    nodes, wanted = simplify(folded.nodes, folded.constants, folded.shapes, wanted)
    nodes = recognise(needed_nodes(nodes, wanted, {name}), folded.constants, folded.shapes)
    nodes, wanted = simplify(nodes, folded.constants, folded.shapes, wanted)
    head = find_head(nodes, folded.constants, folded.shapes, wanted[0])
    features = wanted[1] if len(wanted) > 1 else head.features
    nodes = needed_nodes(head.nodes, [head.probabilities, *([features] if features else [])], {name})
    nodes = name_nodes(nodes, folded.constants)
    made = {output for node in nodes for output in node.outputs} | {name}
    return Graph(
        nodes=tuple(nodes),
        constants=used_constants(nodes, folded.constants),
        input=name,
        probabilities=head.probabilities,
        logits=head.logits,
        features=features,
        shapes={tensor: shape for tensor, shape in head.shapes.items() if tensor in made},
        fixed_batch=image.batch,
    )
