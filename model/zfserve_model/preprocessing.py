"""This module describes how a photo becomes the input of a network.

A checkpoint carries a `Preprocessing`, `zfserve export` makes one from its arguments, and a bundle's manifest holds it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

ResizeRule = Literal["squash", "crop"]
Interpolation = Literal["bilinear", "bicubic"]
ChannelOrder = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Preprocessing:
    """Describes how a photo becomes the network's input.

    Attributes:
        resize: `squash` (both sides to the input's size, aspect ratio lost) or `crop` (the shorter side to
            `shorter_side`, then the central part of `height` x `width`).
        shorter_side: the length of the shorter side after the resize, in pixels, at least as long as both sides of the
            input. Only `crop` uses it.
        mean, std: the mean and standard deviation of each channel, in RGB order, for values scaled to [0, 1].
        height, width: the size of the input, in pixels.
        interpolation: the filter of the resize.
        channel_order: the order of the channels that the network reads. `mean` and `std` are in RGB order for both.
    """

    resize: ResizeRule = "squash"
    shorter_side: int = 256
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    height: int = 224
    width: int = 224
    interpolation: Interpolation = "bilinear"
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("resize rule", self.resize, get_args(ResizeRule)),
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("channel order", self.channel_order, get_args(ChannelOrder)),
        ):
            if value not in choices:
                raise ValueError(f"{what} {value!r} is unknown; choose one of {', '.join(choices)}")
        if min(self.height, self.width) < 1:
            raise ValueError(f"the input is {self.height} x {self.width}; both sides must be at least 1")
        if self.resize == "crop" and self.shorter_side < max(self.height, self.width):
            raise ValueError(
                f"shorter_side is {self.shorter_side}; it must be at least {max(self.height, self.width)}, the longer "
                "side of the input"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std need one number per channel, and those of std must be positive")


class PreprocessingFacts(TypedDict, total=False):
    """Holds those fields of a `Preprocessing` that are known so far."""

    resize: ResizeRule
    shorter_side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    height: int
    width: int
    interpolation: Interpolation
    channel_order: ChannelOrder


PRESETS: Mapping[str, PreprocessingFacts] = {
    # torchvision's, and so that of most PyTorch libraries.
    "imagenet-torch": {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "resize": "crop",
        "interpolation": "bilinear",
    },
    # Values in [-1, 1], as in TensorFlow's slim and in Keras's mode "tf".
    "imagenet-tf": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize": "crop", "interpolation": "bilinear"},
    # Pixels of 0 to 255 in BGR minus Caffe's mean, as in Keras's mode "caffe".
    "imagenet-caffe": {
        "mean": (123.68 / 255, 116.779 / 255, 103.939 / 255),
        "std": (1 / 255, 1 / 255, 1 / 255),
        "resize": "crop",
        "interpolation": "bilinear",
        "channel_order": "bgr",
    },
    "0-1": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "none": {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)},
}
"""Facts that belong together, by name. The last two state only the range of the pixels: [0, 1], or 0 to 255."""

CROPPED_SHARE = 0.875
"""The share of the shorter side that the central crop keeps where nothing else is stated: 224 of 256 pixels."""


def complete(facts: PreprocessingFacts) -> Preprocessing:
    """Returns the preprocessing that `facts` describe. They may lack `shorter_side` and `channel_order`.

    Raises:
        ValueError: a value is impossible.
    """
    height, width = facts["height"], facts["width"]
    return Preprocessing(
        resize=facts["resize"],
        shorter_side=facts.get("shorter_side") or math.ceil(max(height, width) / CROPPED_SHARE),
        mean=facts["mean"],
        std=facts["std"],
        height=height,
        width=width,
        interpolation=facts["interpolation"],
        channel_order=facts.get("channel_order", "rgb"),
    )
