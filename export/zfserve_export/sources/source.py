"""Defines what every kind of source becomes. The other modules of this package make it, and `exporter` reads it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx
from torch import nn
from zfserve_model.preprocessing import Preprocessing, PreprocessingFacts

Layout = Literal["NCHW", "NHWC"]
InputType = Literal["float32", "uint8"]


@dataclass(frozen=True, eq=False)
class SourceOptions:
    """Holds what the user said about a source.

    Attributes:
        weights: the file of weights for a network that Python code builds.
        pretrained: True to take the weights that the library downloads.
        random_weights: True to allow a network with the weights that its constructor draws.
        scores: the name of the ONNX output with the scores. None if the file has only one that fits.
        preprocessing: the facts that the user stated.
        labels: the label of each class id, in the order of the scores. None if the user gave none.
        architecture, contrast_norm: facts about a `state_dict` of `zfserve_model.networks`.
    """

    weights: Path | None = None
    pretrained: bool = False
    random_weights: bool = False
    scores: str | None = None
    preprocessing: PreprocessingFacts = field(default_factory=PreprocessingFacts)
    labels: Mapping[str, str] | None = None
    architecture: str | None = None
    contrast_norm: bool | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """Holds a network as an ONNX model, before it is wrapped, and what a bundle must know about it.

    Attributes:
        model: the user's network. It has no external data, one image input and at least the output `scores`.
        input_name: the name of the image input.
        layout: the order of the input's axes.
        dtype: the type of the input. Where it is uint8, the network reads raw pixels, and `preprocessing` has a mean of
            0 and a standard deviation of 1/255, so that the normalised values are 0 to 255.
        scores: the name of the output with one float32 score for each class, (N, K) or (N, K, 1, 1).
        softmax: True if the scores are probabilities already.
        fixed_batch: the only batch size that the model's input declares. 0 stands for any.
        preprocessing: how a photo becomes the input.
        class_ids, labels: one entry for each class, in the order of the scores.
        description: the source as the user named it, such as "pytorchcv:resnet18". The manifest holds it.
        name: the proposed name of the model, such as "resnet18". It can be a folder's name.
        module: the source's own PyTorch module in evaluation mode, from float32 (N, 3, H, W), RGB, normalised, to the
            same scores, float32 (N, K). Parity is measured against it. None for an ONNX file.
        notes: sentences about what was assumed, which the user should read.
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
    notes: tuple[str, ...] = ()


def folder_name(text: str) -> str:
    """Returns `text` as a name that a folder and a request can have: letters, digits, '.', '_' and '-'."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "model"
