"""This module loads a file of weights into a PyTorch module. `libraries` and `user_module` call it."""

from pathlib import Path

from torch import nn
from zfserve_model.checkpoint import CheckpointError, load_tensors
from zfserve_model.weights_import import read_state_dict


def load_module_weights(module: nn.Module, file: Path, description: str) -> None:
    """Loads a safetensors file, or a `state_dict` of plain tensors, into `module`.

    Raises:
        CheckpointError: the file cannot be read safely, or its tensors do not fit.
    """
    tensors = read_state_dict(file)
    try:
        load_tensors(module, tensors, description)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; for a network of other classes give their labels with --labels") from error
