"""Loads the network of a bundle: the graph of `model.onnx`, held against the manifest. Used by `projector`."""

from dataclasses import dataclass

from zfserve_model.graph.graph import Graph
from zfserve_model.importing.fingerprint import graph_fingerprint, stored_fingerprint
from zfserve_model.importing.importer import GraphError, import_graph
from zfserve_model.importing.model_file import read_model
from zfserve_runtime.bundle import GRAPH, Bundle, BundleError, LayerEntry, Manifest

_SCHEMA_1_KINDS = {"Conv": "conv", "Relu": "relu", "LRN": "norm", "MaxPool": "pool"}
"""The kinds of layers in schema 1, by the operations that compute them."""


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """Holds the network of a bundle.

    Attributes:
        manifest: the manifest of the bundle. Every layer names its tensor.
    """

    graph: Graph
    manifest: Manifest


def load_network(bundle: Bundle) -> LoadedNetwork:
    """Reads the graph of a bundle, and checks that the manifest describes it.

    Raises:
        BundleError: the file cannot be used, or the manifest describes another network.
    """
    file = bundle.folder / GRAPH
    try:
        model = read_model(file)
        # That of schema 1 was computed from the weights by names that the file does not have.
        fingerprint = stored_fingerprint(model) if bundle.manifest.schema_version == 1 else graph_fingerprint(model)
        graph = import_graph(model)
    except (GraphError, OSError) as error:
        raise BundleError(f"the bundle {bundle.folder} holds no usable {GRAPH}: {error}") from error
    if fingerprint != bundle.manifest.fingerprint:
        raise BundleError(
            f"the network in {file} has the fingerprint {fingerprint[:12]}, the manifest says "
            f"{bundle.manifest.fingerprint[:12]}; export the bundle again"
        )
    manifest = _with_tensors(bundle.manifest, graph)
    spec = manifest.input
    # Requests are checked against the manifest, so it must describe this graph.
    fits = graph.shapes.get(graph.input) == (1, 3, spec.height, spec.width)
    # Above an operation that the worker does not know, no shape is known. Layers below it can be projected.
    fits &= graph.shapes.get(graph.probabilities) in (None, (1, len(manifest.classes)))
    if not fits or any(graph.shapes.get(layer.tensor) != _shape(layer) for layer in manifest.layers):
        raise BundleError(f"the manifest of {bundle.folder} describes other layers than its graph; export it again")
    return LoadedNetwork(graph, manifest)


def _with_tensors(manifest: Manifest, graph: Graph) -> Manifest:
    """Returns the manifest with the tensor of every layer.

    In schema 1 the layers have no tensors. Their networks are chains, so the n-th layer is the n-th node that computes
    maps.

    Raises:
        BundleError: the chain has other layers.
    """
    if manifest.schema_version != 1:
        return manifest
    chain = [
        (_SCHEMA_1_KINDS[node.operation], node.outputs[0])
        for node in graph.nodes
        if node.operation in _SCHEMA_1_KINDS and len(graph.shapes.get(node.outputs[0], ())) == 4
    ]
    if [kind for kind, _ in chain] != [layer.kind for layer in manifest.layers]:
        raise BundleError("the manifest describes other layers than its graph; export the bundle again")
    layers = [
        layer.model_copy(update={"tensor": tensor}) for layer, (_, tensor) in zip(manifest.layers, chain, strict=True)
    ]
    return manifest.model_copy(update={"layers": tuple(layers)})


def _shape(layer: LayerEntry) -> tuple[int, int, int, int]:
    return 1, layer.channels, layer.height, layer.width
