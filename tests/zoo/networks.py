"""Lists the networks of the zoo, and exports each to a file that later runs find again.

The files lie in the folder that the environment variable ZFSERVE_ZOO names, by default ~/.cache/zfserve-zoo. They take
5 GB. An export that was interrupted leaves no file.
"""

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import torch
from onnx import numpy_helper
from torch import nn

FOLDER = Path(os.environ.get("ZFSERVE_ZOO") or Path.home() / ".cache" / "zfserve-zoo")

PYTORCHCV = {  # The constructor, and its module in `pytorchcv.models`.
    "zfnet": "zfnet",
    "alexnet": "alexnet",
    "vgg11": "vgg",
    "resnet18": "resnet",
    "resnet50": "resnet",
    "preresnet18": "preresnet",
    "resnext26_32x4d": "resnext",
    "seresnet18": "seresnet",
    "seresnet50": "seresnet",
    "densenet121": "densenet",
    "inceptionv3": "inceptionv3",
    "xception": "xception",
    "squeezenet_v1_1": "squeezenet",
    "mobilenet_w1": "mobilenet",
    "mobilenetv2_w1": "mobilenetv2",
    "mobilenetv3_large_w1": "mobilenetv3",
    "mnasnet_b1": "mnasnet",
    "efficientnet_b0": "efficientnet",
    "shufflenetv2_w1": "shufflenetv2",
    "ghostnet": "ghostnet",
    "regnetx002": "regnet",
    "dla34": "dla",
    "dpn68": "dpn",
    "vovnet27s": "vovnet",
    "hrnet_w18_small_v1": "hrnet",
}
EXPORTERS = {"new": True, "old": False}
"""The two exporters of torch, and their argument `dynamo`."""

CALIBRATED = ("seresnet50", "xception")
"""The logits of these networks reach hundreds or millions where their batch norms have random statistics."""

LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
"""The architectures in the test data of the `onnx` package. Their files hold no weights."""


def make_network(name: str) -> nn.Module:
    """Returns a network of pytorchcv with random weights in evaluation mode. The weights are always the same."""
    torch.manual_seed(sum(name.encode()))
    module = importlib.import_module(f"pytorchcv.models.{PYTORCHCV[name]}")
    network: nn.Module = getattr(module, name)(pretrained=False).eval()
    if name in CALIBRATED:
        return calibrated(network, image_size(name))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # Fresh statistics would hide a wrong order of mean and variance.
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network


def calibrated(network: nn.Module, size: int) -> nn.Module:
    """Returns the network with the statistics that its batch norms have on noise."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(4, 3, size, size))
    return network.eval()


def image_size(name: str) -> int:
    return 299 if name in ("inceptionv3", "xception") else 224


def exported(name: str, exporter: str) -> Path:
    """Returns the ONNX file of a network of pytorchcv. Exports it if the folder does not have it."""
    file = FOLDER / f"{name}-{exporter}.onnx"
    if not file.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        _export(make_network(name), image_size(name), partial, EXPORTERS[exporter])
        partial.rename(file)
    return file


def filled(name: str) -> Path:
    """Returns the ONNX file of a light architecture with random weights. Makes it if the folder does not have it."""
    file = FOLDER / f"light-{name}.onnx"
    if not file.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        data = Path(onnx.backend.test.__file__).parent / "data" / "light" / f"light_{name}.onnx"
        model = onnx.load(data)
        fill_with_weights(model, np.random.default_rng(sum(name.encode())))
        partial = file.with_suffix(f".{os.getpid()}.partial")
        onnx.save(model, partial)
        partial.rename(file)
    return file


def fill_with_weights(model: onnx.ModelProto, random: np.random.Generator) -> None:
    """Replaces the ConstantOfShape nodes of a light model by random weights.

    Weights of several axes have He's scale, so that activations neither vanish nor explode. Vectors are scales and
    variances near 1, or small shifts and means.
    """
    graph = model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node if node.op_type == "ConstantOfShape"}
    near_one = {
        name for node in graph.node if node.op_type == "BatchNormalization" for name in (node.input[1], node.input[4])
    }
    for name, node in makers.items():
        shape = shapes[node.input[0]]
        if len(shape) > 1:
            deviation = np.sqrt(2 / np.prod(shape[1:]))
            array = random.standard_normal(shape) * deviation
        elif name in near_one:
            array = random.uniform(0.5, 1.5, shape)
        else:
            array = random.normal(0, 0.05, shape)
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        graph.node.remove(node)


def _export(network: nn.Module, size: int, file: Path, dynamo: bool) -> None:
    images = torch.zeros(2, 3, size, size)  # torch.export would take a batch of one for a constant.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("N", min=1)},)
            torch.onnx.export(network, (images,), file, dynamo=True, external_data=False, dynamic_shapes=shapes)
        else:
            axes = {"images": {0: "N"}, "logits": {0: "N"}}
            names = {"input_names": ["images"], "output_names": ["logits"]}
            torch.onnx.export(network, (images,), file, dynamo=False, dynamic_axes=axes, **names)  # type: ignore[arg-type]


if __name__ == "__main__":
    for light in LIGHT:
        sys.stdout.write(f"{filled(light)}\n")
    for each in PYTORCHCV:
        for how in EXPORTERS:
            sys.stdout.write(f"{exported(each, how)}\n")
            sys.stdout.flush()
