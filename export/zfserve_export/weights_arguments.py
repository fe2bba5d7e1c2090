"""This module defines the arguments for weights files that do not describe themselves.

`zfserve export` and `zfserve evaluate` share them.
"""

import argparse
from pathlib import Path

from zfserve_model.checkpoint import Checkpoint
from zfserve_model.labels import read_labels
from zfserve_model.networks import ARCHITECTURES
from zfserve_model.weights_import import load_weights


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--architecture", choices=ARCHITECTURES, help="architecture of a bare state_dict whose shapes fit several"
    )
    parser.add_argument(
        "--contrast-norm",
        action="store_true",
        help="the bare state_dict has contrast norm, which its tensors do not show",
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="lines of <class id><tab><label>, or a JSON object")


def read_weights(file: Path, arguments: argparse.Namespace) -> Checkpoint:
    """Reads the weights in `file`, as the arguments describe them.

    Raises:
        CheckpointError: the file cannot be used.
        LabelsError: the labels cannot be read, or leave out a class.
    """
    labels = read_labels(arguments.labels) if arguments.labels else None
    return load_weights(
        file,
        architecture=arguments.architecture,
        class_names=labels,
        contrast_norm=arguments.contrast_norm or None,
    )
