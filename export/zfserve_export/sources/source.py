"""Defines what every kind of source becomes. The other modules of this package make it, and `exporter` reads it."""

from dataclasses import dataclass
from typing import Literal

import onnx
from torch import nn
from zfserve_model.preprocessing import Preprocessing

Layout = Literal["NCHW", "NHWC"]
InputType = Literal["float32", "uint8"]


class SourceError(ValueError):
    """The source cannot be exported. The message is one sentence, which says what to do."""


@dataclass(frozen=True, eq=False)
class Source:
    """Holds a network as an ONNX model, before it is wrapped, and what a bundle must know about it.

    Attributes:
        model: the user's network. It has no external data, one image input and at least the output `scores`.
        input_name: the name of the image input.
        layout: the order of the input's axes.
        dtype: the type of the input. Where it is uint8, the network reads raw pixels, and `preprocessing` has a mean of
            0 and a standard deviation of 1/255, so that the normalised values are 0 to 255.
        scores: the name of the output (N, K) with one float32 score for each class.
        softmax: True if the scores are probabilities already.
        fixed_batch: the only batch size that the model takes. 0 stands for any.
        preprocessing: how a photo becomes the input.
        class_ids, labels: one entry for each class, in the order of the scores.
        description: the source as the user named it, such as "pytorchcv:resnet18". The manifest holds it.
        name: the proposed name of the model, such as "resnet18". It can be a folder's name.
        module: the source's own PyTorch module in evaluation mode, from float32 (N, 3, H, W), RGB, normalised, to the
            same scores, float32 (N, K). Parity is measured against it. None for an ONNX file.
    """

    model: onnx.ModelProto
    input_name: str
    layout: Layout
    dtype: InputType
    scores: str
    softmax: bool
    fixed_batch: int
    preprocessing: Preprocessing
    class_ids: tuple[str, ...]
    labels: tuple[str, ...]
    description: str
    name: str
    module: nn.Module | None = None
