"""Networks of a few weights, as PyTorch modules and as ONNX models. Tests of the export take them as sources."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

CLASSES = 3


class TinyResidual(nn.Module):
    """A convolution, a residual block, and a linear layer, as a ResNet has them."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.fc = nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        below = self.stem(images)
        scores: Tensor = self.fc(torch.relu(below + self.block(below)).mean(dim=(2, 3)))
        return scores


class TwoHeads(TinyResidual):
    """Returns a tuple, as some networks with auxiliary classifiers do."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = super().forward(images)
        return scores, 2 * scores


def tiny_residual(classes: int = CLASSES) -> TinyResidual:
    """Returns a network whose weights are the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return TinyResidual(classes).eval()


def onnx_classifier(
    input_shape: Sequence[int | str] = ("N", 3, 8, 8),
    *,
    kind: int = TensorProto.FLOAT,
    last: str | None = None,
    opset: int = 18,
    scores_shape: Sequence[int | str] = ("N", CLASSES),
) -> ModelProto:
    """Returns an ONNX model of a convolution, a global average and a linear layer, from `image` to `scores`.

    The axes of the input may be in either order. `last` is an operation after the linear layer, such as Softmax.
    """
    generator = np.random.default_rng(1)
    nodes: list[NodeProto] = []
    tensor = "image"

    def add(operation: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{operation.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operation, inputs, [output], name=output, **attributes))
        return output

    weights = {
        "conv.weight": generator.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "fc.weight": generator.standard_normal((4, CLASSES)).astype(np.float32),
        "fc.bias": generator.standard_normal(CLASSES).astype(np.float32),
    }
    if kind != TensorProto.FLOAT:
        tensor = add("Cast", [tensor], to=TensorProto.FLOAT)
    if input_shape[-1] == 3:
        tensor = add("Transpose", [tensor], perm=[0, 3, 1, 2])
    tensor = add("Conv", [tensor, "conv.weight"], pads=[1, 1, 1, 1])
    tensor = add("Relu", [tensor])
    tensor = add("GlobalAveragePool", [tensor])
    tensor = add("Flatten", [tensor], axis=1)
    tensor = add("Gemm", [tensor, "fc.weight", "fc.bias"])
    if last:
        tensor = add(last, [tensor])
    nodes[-1].output[0] = "scores"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", kind, input_shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores_shape)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def write_onnx(model: ModelProto, file: Path) -> Path:
    """Writes a model to a file and returns its path."""
    onnx.save(model, file)
    return file
