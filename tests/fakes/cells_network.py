"""Writes bundles of a network so small that its studies are computed by hand, and serves them with a real engine.

The network takes photos of 8 x 8 pixels. Its layer `cells` has three maps of 4 x 4 units: the means of 2 x 2 pixels of
each channel. Its layer `lit` is the part of `cells` above 100. The features are the means of the maps of `lit`, and the
logits are the features divided by 20.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from fakes.serving import Running
from onnx import TensorProto, helper
from zfserve_engines.golden import Golden, write_golden
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.bundle import Artefact, ClassEntry, InputSpec, LayerEntry, Manifest, file_digest
from zfserve_server.config import ServerConfig
from zfserve_server.models.source import ModelSource, models_on_disk

ServeCells = Callable[..., AbstractAsyncContextManager[Running]]
"""Serves a bundle of `cells`. The arguments are those of `write_cells_bundle`."""

SIDE, CELLS = 8, 4
LABELS = ("red", "green", "blue")

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]


def cells_of(pixels: Pixels) -> Values:
    """Returns the layer `cells` of a photo, float32 (3, 4, 4)."""
    means = pixels.reshape(CELLS, 2, CELLS, 2, 3).mean(axis=(1, 3))
    cells: Values = np.ascontiguousarray(means.transpose(2, 0, 1), np.float32)
    return cells


def lit_of(pixels: Pixels) -> Values:
    """Returns the layer `lit` of a photo, float32 (3, 4, 4)."""
    lit: Values = np.maximum(cells_of(pixels) - 100, 0)
    return lit


def features_of(pixels: Pixels) -> Values:
    """Returns the features of a photo, float32 (3,)."""
    means: Values = lit_of(pixels).mean(axis=(1, 2))
    return means


def probabilities_of_features(features: Values) -> Values:
    """Returns the probabilities of the classes, float32 (3,)."""
    powers = np.exp(features.astype(np.float64) / 20)
    probabilities: Values = (powers / powers.sum()).astype(np.float32)
    return probabilities


def probabilities_of(pixels: Pixels) -> Values:
    """Returns the probabilities of a photo, float32 (3,)."""
    return probabilities_of_features(features_of(pixels))


def photo(seed: int) -> Pixels:
    """Returns a photo of random pixels, uint8 (8, 8, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def raw_photo(pixels: Pixels) -> pb.Image:
    height, width, _ = pixels.shape
    return pb.Image(raw=pb.RawPixels(width=width, height=height, data=pixels.tobytes()))


def _layer(name: str, kind: str) -> LayerEntry:
    return LayerEntry(
        name=name,
        tensor=name,
        kind=kind,
        stage=f"stage of {name}",
        channels=3,
        height=CELLS,
        width=CELLS,
        receptive_field=2,
        stride=2,
        offset=0,
    )


def write_cells_bundle(
    folder: Path, *, fixed_batch_size: int = 0, has_features: bool = True, tensors: bool = True, **changes: Any
) -> Path:
    """Writes a bundle into a folder of its own below `folder`, and returns the folder of the model.

    Args:
        fixed_batch_size: the only batch size of the graph; 0 lets it take any.
        has_features: False leaves the output `features` out.
        tensors: False leaves the names of the layers' tensors out, as a bundle of schema 1.
        changes: other fields of the manifest.
    """
    layers = (_layer("cells", "pool"), _layer("lit", "relu"))
    fields: dict[str, Any] = {
        "name": "cells",
        "version": "1",
        "architecture": "cells",
        "feature_width": 3 if has_features else 0,
        "classes": tuple(ClassEntry(class_id=f"c-{label}", label=label) for label in LABELS),
        "input": InputSpec(
            height=SIDE, width=SIDE, resize="squash", shorter_side=SIDE, mean=(0.0,) * 3, std=(1.0,) * 3
        ),
        "layers": layers if tensors else tuple(layer.model_copy(update={"tensor": ""}) for layer in layers),
        "fixed_batch_size": fixed_batch_size,
        "artefacts": {"fp32": Artefact(file="model.onnx", golden_tolerance=1e-5)},
        "fingerprint": "ce" * 32,
        **changes,
    }
    model = folder / str(fields["name"])
    bundle = model / str(fields["version"])
    bundle.mkdir(parents=True)
    onnx.save(_graph(fixed_batch_size or "batch", has_features), bundle / "model.onnx")
    pixels = np.stack([photo(seed) for seed in range(max(1, fixed_batch_size))])
    write_golden(Golden(pixels, {"fp32": np.stack([probabilities_of(each) for each in pixels])}), bundle)
    manifest = Manifest(**fields, files={file.name: file_digest(file) for file in bundle.iterdir()})
    (bundle / "manifest.json").write_text(manifest.model_dump_json())
    return model


def _graph(batch: int | str, has_features: bool) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["values"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["channels"], ["cells"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Sub", ["cells", "threshold"], ["bright"]),
        helper.make_node("Relu", ["bright"], ["lit"]),
        helper.make_node("GlobalAveragePool", ["lit"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Div", ["features", "temperature"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    outputs = ["probabilities", "features"][: 1 + has_features]
    graph = helper.make_graph(
        nodes,
        "cells",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in outputs],
        [
            helper.make_tensor("threshold", TensorProto.FLOAT, [], [100.0]),
            helper.make_tensor("temperature", TensorProto.FLOAT, [], [20.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


@dataclass(frozen=True)
class BundlesOnDisk:
    """Serves bundles of a folder with a real engine, in place of a `FakeModelRepository`."""

    folder: Path
    max_batch_size: int = 4

    @property
    def source(self) -> ModelSource:
        config = ServerConfig(model=[self.folder], engine="onnx-cpu", threads=1, max_batch_size=self.max_batch_size)
        return models_on_disk(config)
