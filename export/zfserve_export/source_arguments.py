"""This module defines the arguments that describe a source. `zfserve export` and `zfserve evaluate` share them.

It imports nothing heavy, so that `--help` and a wrong path answer at once.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from zfserve_model.preprocessing import PRESETS, ChannelOrder, Interpolation, PreprocessingFacts, ResizeRule

from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.source_path import require_file

if TYPE_CHECKING:
    from zfserve_export.sources.source import SourceOptions

_SMALLEST_STD = 1e-4
_LONGEST_SIDE = 4096
IMAGENET = "imagenet"
"""The word that stands for ImageNet's thousand labels, instead of a file."""


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments, in groups."""
    source = parser.add_argument_group("the source")
    source.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights for a network of a library or of your own"
    )
    source.add_argument("--pretrained", action="store_true", help="let the library download its weights")
    source.add_argument(
        "--random-weights", action="store_true", help="allow a network of a library without weights, to try things out"
    )
    source.add_argument("--scores", metavar="NAME", help="the output of an ONNX file with the scores, if several fit")
    source.add_argument(
        "--architecture", metavar="NAME", help="zfnet, zfnet-fig3 or alexnet, for a bare state_dict that fits several"
    )
    source.add_argument(
        "--contrast-norm", action="store_true", help="the bare state_dict has contrast norm, which no tensor shows"
    )
    _add_preprocessing_arguments(parser.add_argument_group("preprocessing, where the source does not state it"))
    labels = parser.add_argument_group("labels")
    labels.add_argument(
        "--labels",
        metavar="FILE",
        help="a label, or an id and a label, on each line, or JSON; or the word imagenet for its thousand classes",
    )


def _add_preprocessing_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--preprocessing", choices=PRESETS, help="a usual set; the options below override its parts")
    group.add_argument("--size", type=_size, metavar="HxW", help="size of the input in pixels, such as 224x224")
    for name, what in (("--mean", "mean"), ("--std", "standard deviation")):
        group.add_argument(
            name,
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"{what} of each channel, for values in [0, 1]",
        )
    group.add_argument(
        "--resize",
        choices=get_args(ResizeRule),
        help="squash both sides to the input, or scale the shorter side and crop the centre",
    )
    group.add_argument("--shorter-side", type=int, metavar="PIXELS", help="shorter side before the crop (size / 0.875)")
    group.add_argument("--interpolation", choices=get_args(Interpolation), help="filter of the resize")
    group.add_argument("--channels", choices=get_args(ChannelOrder), help="order of the channels (default: rgb)")


def require_source_files(arguments: argparse.Namespace) -> None:
    """Checks that the files that the arguments name exist.

    Raises:
        SourceError: one does not.
    """
    for file in (arguments.weights, None if arguments.labels in (None, IMAGENET) else Path(arguments.labels)):
        if file is not None:
            require_file(file)


def source_options(arguments: argparse.Namespace) -> "SourceOptions":
    """Returns what the arguments say about the source.

    Raises:
        SourceError: a mean or a standard deviation is not for values in [0, 1].
        LabelsError: the labels cannot be read.
    """
    from zfserve_model.labels import imagenet_labels, read_labels  # imports torch

    from zfserve_export.sources.source import SourceOptions

    labels = None
    if arguments.labels is not None:
        labels = imagenet_labels() if arguments.labels == IMAGENET else read_labels(Path(arguments.labels))
    return SourceOptions(
        weights=arguments.weights,
        pretrained=arguments.pretrained,
        random_weights=arguments.random_weights,
        scores=arguments.scores,
        preprocessing=_stated_facts(arguments),
        labels=labels,
        architecture=arguments.architecture,
        contrast_norm=arguments.contrast_norm or None,
    )


def _stated_facts(arguments: argparse.Namespace) -> PreprocessingFacts:
    facts: PreprocessingFacts = {}
    if arguments.preprocessing:
        facts |= PRESETS[arguments.preprocessing]
    if arguments.size:
        facts["height"], facts["width"] = arguments.size
    if arguments.mean:
        facts["mean"] = tuple(arguments.mean)
    if arguments.std:
        facts["std"] = tuple(arguments.std)
    if arguments.resize:
        facts["resize"] = arguments.resize
    if arguments.shorter_side:
        facts["shorter_side"] = arguments.shorter_side
    if arguments.interpolation:
        facts["interpolation"] = arguments.interpolation
    if arguments.channels:
        facts["channel_order"] = arguments.channels
    if max(map(abs, (*facts.get("mean", ()), *facts.get("std", ()))), default=0) > 1:
        raise SourceError("--mean and --std are for values in [0, 1]; divide numbers for 0 to 255 by 255")
    if 0 < min(facts.get("std", (1.0,))) < _SMALLEST_STD:
        raise SourceError(f"--std has a number below {_SMALLEST_STD}; give the standard deviation of each channel")
    return facts


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write height and width, such as 224x224")
    height, width = int(match[1]), int(match[2] or match[1])
    if not 1 <= min(height, width) <= max(height, width) <= _LONGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; a side has 1 to {_LONGEST_SIDE} pixels")
    return height, width
