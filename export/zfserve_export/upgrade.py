"""This module rewrites a bundle of an earlier schema as the next version of its model. `export_command` calls it.

The network, its files for engines, the golden inputs and the measured figures stay. Only the manifest and the
fingerprints in the files change.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto
from zfserve_engines.golden import load_golden
from zfserve_model.graph.execution import run
from zfserve_model.graph.graph import Graph
from zfserve_model.importing.fingerprint import graph_fingerprint
from zfserve_model.importing.importer import import_graph
from zfserve_model.importing.interface import IMAGES
from zfserve_model.layers.layer_table import layer_table
from zfserve_model.preprocessing import Preprocessing
from zfserve_runtime.bundle import (
    GOLDEN,
    GRAPH_INPUT,
    SCHEMA_VERSION,
    Bundle,
    BundleError,
    LayerEntry,
    Manifest,
    load_bundle,
)

from zfserve_export.bundle_writer import bundle_draft, next_version, publish
from zfserve_export.measurement import BATCH, verify_graphs
from zfserve_export.onnx_edits import rename_tensors
from zfserve_export.onnx_graph import check_graph, describe_model
from zfserve_export.parity import ParityError, normalised


def upgrade_bundle(folder: Path) -> Bundle:
    """Writes a bundle in this release's schema beside the old one, as the next version, and reads it back.

    Args:
        folder: the old bundle, or the folder of its model, whose newest version is taken.

    Raises:
        BundleError: there is no bundle, it has this schema already, or an engine does not reproduce its golden outputs.
        GraphError: the network of the bundle cannot be read.
        ParityError: PyTorch computes something else than the recorded outputs.
        EngineFailed: ONNX Runtime cannot run a graph.
        OSError: the folder cannot be written.
    """
    old = load_bundle(folder)
    if old.manifest.schema_version == SCHEMA_VERSION:
        raise BundleError(f"{old.folder} has schema {SCHEMA_VERSION} already; it needs no upgrade")
    target = old.folder.with_name(next_version(old.folder.parent))
    with bundle_draft(target) as draft_folder:
        model = onnx.load(old.artefact("fp32"))
        _name_images(model)
        graph, fingerprint = import_graph(model), graph_fingerprint(model)
        _require_golden_outputs(graph, old)
        for precision in old.manifest.artefacts:
            file = old.artefact(precision)
            artefact = model if precision == "fp32" else onnx.load(file)
            describe_model(artefact, fingerprint)
            check_graph(artefact)
            onnx.save(artefact, draft_folder / file.name)
        shutil.copy(old.folder / GOLDEN, draft_folder / GOLDEN)
        changes = {
            "schema_version": SCHEMA_VERSION,
            "version": target.name,
            "layers": _name_tensors(graph, old.manifest.layers),
            "fingerprint": fingerprint,
        }
        manifest = Manifest.model_validate(old.manifest.model_dump() | changes)
        verify_graphs(Bundle(draft_folder, manifest))
        publish(draft_folder, target, manifest)
    return load_bundle(target)


def _name_images(model: ModelProto) -> None:
    """Gives the normalised input its name, which is the output of the Transpose behind the pixels in schema 1."""
    tensor = GRAPH_INPUT
    for node in model.graph.node:
        if tensor in node.input:
            tensor = node.output[0]
            if node.op_type == "Transpose":
                rename_tensors(model.graph, {tensor: IMAGES})
                return


def _name_tensors(graph: Graph, layers: Sequence[LayerEntry]) -> tuple[LayerEntry, ...]:
    """Returns the layers of a chain with their tensors. They keep the names that requests know.

    Raises:
        BundleError: the manifest describes other layers than the graph has.
    """
    rows = [LayerEntry(**asdict(row)) for row in layer_table(graph)]
    shapes = [[(layer.kind, layer.channels, layer.height, layer.width) for layer in side] for side in (rows, layers)]
    if shapes[0] != shapes[1]:
        raise BundleError("the manifest describes other layers than the graph has; export the weights again")
    kept = [{"name": layer.name, "stage": layer.stage} for layer in layers]
    return tuple(row.model_copy(update=names) for row, names in zip(rows, kept, strict=True))


def _require_golden_outputs(graph: Graph, bundle: Bundle) -> None:
    """Runs the golden inputs in PyTorch, as the worker does.

    Raises:
        BundleError: the golden inputs cannot be read.
        ParityError: a probability differs by more than the tolerance of the fp32 graph.
    """
    golden, spec = load_golden(bundle), bundle.manifest.input
    preprocessing = Preprocessing(mean=spec.mean, std=spec.std)
    with torch.inference_mode():
        found = [
            run(graph, {graph.input: torch.from_numpy(images)}, [graph.probabilities])[graph.probabilities].numpy()
            for images in normalised(golden.pixels, preprocessing, BATCH)
        ]
    difference = float(np.abs(np.concatenate(found) - golden.probabilities["fp32"]).max())
    tolerance = bundle.manifest.artefacts["fp32"].golden_tolerance
    # Written so that a NaN fails.
    if not difference <= tolerance:
        raise ParityError(
            f"PyTorch's probabilities differ from the recorded ones by {difference:.2g}, and {tolerance:.2g} is "
            "allowed; export the weights again"
        )
