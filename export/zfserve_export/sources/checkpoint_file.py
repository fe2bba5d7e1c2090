"""This module reads the weights of `zfserve_model.networks` as a source. `opening` calls it."""

from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

from torch import nn
from zfserve_model.networks import Network
from zfserve_model.preprocessing import PreprocessingFacts
from zfserve_model.weights_import import UnknownLayout, load_weights

from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.module_source import BuiltModule, open_module
from zfserve_export.sources.source import Source, SourceOptions


def open_checkpoint(file: Path, options: SourceOptions) -> Source:
    """Reads a checkpoint, a `state_dict` of one of our networks, or pytorchcv's weights of its zfnet.

    Raises:
        SourceError: the file holds the weights of another network, or the options do not fit.
        CheckpointError: the file cannot be used.
        LabelsError: the labels leave out a class.
    """
    try:
        checkpoint = load_weights(file, options.architecture, options.labels, options.contrast_norm)
    except UnknownLayout as error:
        raise SourceError(
            f"{error}, and a state_dict does not say which; name the network with pytorchcv:NAME, timm:NAME, "
            f"torchvision:NAME or package.module:function and add --weights {file}, or export it to ONNX"
        ) from error
    network = checkpoint.network
    labels = dict(zip(checkpoint.class_ids, checkpoint.labels, strict=True))
    facts = cast("PreprocessingFacts", asdict(checkpoint.preprocessing))
    built = BuiltModule(_one_sequence(network), file.name, network.spec.name, facts)
    return open_module(built, replace(options, labels=labels))


def _one_sequence(network: Network) -> nn.Sequential:
    """Returns the network as one sequence, so that its layers are called `conv5` and not `trunk.conv5`."""
    return nn.Sequential(OrderedDict([*network.trunk.named_children(), *network.head.named_children()]))
