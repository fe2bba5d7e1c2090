"""This module reads the options of `zfserve train` that choose a network, and builds it.

A network is one of the architectures or a variant of it, with random weights, or the network of a file of weights.
"""

import argparse
from pathlib import Path

import torch

from zfserve_model.networks import ARCHITECTURES, CONVOLUTIONS, HIDDEN_LAYERS, Network, NetworkSpec, build_network
from zfserve_model.training.recipe import RecipeError
from zfserve_model.training.transfer import freeze_through, start_from
from zfserve_model.weights_import import load_weights

DEFAULT_ARCHITECTURE = "zfnet"
DEFAULT_HIDDEN_WIDTH = 256
WIDER_CONVOLUTIONS = 3
"""Three numbers of maps are those of the last three convolutions, as in table 3 of the paper."""


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument("--architecture", choices=ARCHITECTURES, help="default: zfnet, or the architecture of --from")
    network.add_argument(
        "--without", metavar="LAYERS",
        help="train without these layers, for example conv3,conv4 or fc6,fc7; the ReLU of each goes with it",
    )  # fmt: skip
    network.add_argument(
        "--maps", metavar="N,N,N", help="maps of conv3, conv4 and conv5, for example 512,1024,512; or of all five"
    )
    network.add_argument("--hidden-width", type=int, help="units in each hidden layer (default: 256)")
    network.add_argument("--contrast-norm", action="store_true", help="normalise across maps in stages 1 and 2")
    network.add_argument(
        "--from", type=Path, dest="start", metavar="WEIGHTS", help="start from these weights and fine-tune them"
    )
    network.add_argument(
        "--freeze-through", metavar="LAYER", help="with --from: freeze every layer up to and including LAYER"
    )


def build_from_options(
    arguments: argparse.Namespace, class_ids: tuple[str, ...], generator: torch.Generator
) -> Network:
    """Returns the network in which training begins.

    Raises:
        RecipeError: the options contradict each other, or name no possible network.
        CheckpointError: the file of `--from` cannot be used.
    """
    if not arguments.start:
        if arguments.freeze_through:
            raise RecipeError("--freeze-through needs --from: frozen random weights would never be trained")
        return build_network(_read_spec(arguments, len(class_ids)), generator)
    for option in ("hidden_width", "without", "maps"):
        if getattr(arguments, option) is not None:
            flag = f"--{option.replace('_', '-')}"
            raise RecipeError(f"with --from the weights fix the layers and their widths; leave out {flag}")
    weights = load_weights(arguments.start, arguments.architecture, contrast_norm=arguments.contrast_norm or None)
    network = start_from(weights, class_ids, generator)
    if arguments.freeze_through:
        freeze_through(network, arguments.freeze_through)
    return network


def _read_spec(arguments: argparse.Namespace, classes: int) -> NetworkSpec:
    architecture = arguments.architecture or DEFAULT_ARCHITECTURE
    removed = parse_layers(arguments.without) if arguments.without is not None else ()
    if arguments.hidden_width is not None and {f"fc{number}" for number in HIDDEN_LAYERS} <= set(removed):
        raise RecipeError("a network without fc6 and fc7 has no hidden layer; leave out --hidden-width")
    width = DEFAULT_HIDDEN_WIDTH if arguments.hidden_width is None else arguments.hidden_width
    if width < 1:
        raise RecipeError("the hidden width must be at least 1")
    maps = parse_maps(arguments.maps, architecture) if arguments.maps is not None else ()
    try:
        return NetworkSpec(architecture, classes, width, arguments.contrast_norm, True, removed, maps)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def parse_layers(text: str) -> tuple[str, ...]:
    """Parses the names of layers. `"conv3,conv4"` means two. `NetworkSpec` checks that they exist.

    Raises:
        RecipeError: a name is empty or stands twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise RecipeError(f"--without {text!r} must name layers, each once, as in conv3,conv4")
    return names


def parse_maps(text: str, architecture: str) -> tuple[int, ...]:
    """Parses numbers of maps. Three are those of conv3, conv4 and conv5; five are those of all convolutions.

    Returns five numbers. The first two are those of `architecture` if the text has three.

    Raises:
        RecipeError: the text is not three or five numbers of at least 1.
    """
    try:
        numbers = tuple(int(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (WIDER_CONVOLUTIONS, len(CONVOLUTIONS)) or min(numbers) < 1:
        raise RecipeError(f"--maps {text!r} must be three or five numbers of at least 1, as in 512,1024,512")
    usual = tuple(conv.channels for conv in ARCHITECTURES[architecture])
    return usual[: len(usual) - len(numbers)] + numbers
