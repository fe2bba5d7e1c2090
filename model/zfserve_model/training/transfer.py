"""Transfer learning starts a network from a trained one.

`zfserve train --from` calls this module. Layers that were trained on one data set also work on others. Only the last
layers need training there (Zeiler & Fergus, section 5.2).
"""

from dataclasses import replace

import torch
from torch import nn

from zfserve_model.checkpoint import Checkpoint, CheckpointError, load_tensors
from zfserve_model.networks import Network, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_model.training.recipe import RecipeError

OUTPUT_LAYER = "fc8"


def start_from(checkpoint: Checkpoint, class_ids: tuple[str, ...], generator: torch.Generator) -> Network:
    """Returns the checkpoint's network. Its `fc8` gets random weights unless the classes are the same.

    Raises:
        CheckpointError: the checkpoint's normalisation differs from that of the training loop.
    """
    usual = Preprocessing()
    if (checkpoint.preprocessing.mean, checkpoint.preprocessing.std) != (usual.mean, usual.std):
        raise CheckpointError(
            f"the weights need mean {checkpoint.preprocessing.mean} and std {checkpoint.preprocessing.std}; "
            f"training continues only from weights made for {usual.mean} and {usual.std}"
        )
    if class_ids == checkpoint.class_ids:
        return checkpoint.network
    network = build_network(replace(checkpoint.network.spec, classes=len(class_ids)), generator)
    prefix = f"head.{OUTPUT_LAYER}."
    fresh = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(prefix)}
    load_tensors(network, {**checkpoint.network.state_dict(), **fresh}, network.spec.description)
    return network


def freeze_through(network: Network, layer: str) -> None:
    """Freezes every layer up to and including `layer`. The batch norm of a convolution freezes with it.

    Raises:
        RecipeError: there is no such layer, or no layer would be left to train.
    """
    layers = [*network.trunk.named_children(), *network.head.named_children()]
    names = [name for name, _ in layers]
    allowed = names[: names.index(OUTPUT_LAYER)]
    if layer not in allowed:
        raise RecipeError(f"cannot freeze through {layer!r}; choose one of {', '.join(allowed)}")
    last = names.index(layer)
    if isinstance(layers[last + 1][1], nn.BatchNorm2d | nn.BatchNorm1d):
        last += 1
    for _, module in layers[: last + 1]:
        module.requires_grad_(False)
