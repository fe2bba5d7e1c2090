"""Trained weights on disk: one safetensors file that says what it holds.

Called by `zfserve train` (writes), `zfserve export`, `zfserve evaluate` and the worker (read).
The file's metadata carries the `NetworkSpec`, the classes and the preprocessing, so the weights alone suffice.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from zfserve_model.networks import Network, NetworkSpec, fold_batch_norm

FORMAT = "zfserve-checkpoint-1"


class CheckpointError(ValueError):
    """The weights cannot be used; the message names what is wrong with them."""


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the network's input.

    Attributes:
        resize: `squash` (both sides to 224, aspect ratio lost) or `crop` (the shorter side to `shorter_side`,
            then the central 224 x 224).
        shorter_side: pixels, at least 224; used by `crop` only.
        mean, std: per channel in RGB order, on values scaled to [0, 1].
    """

    resize: str = "squash"
    shorter_side: int = 256
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Checkpoint:
    """A network in eval mode, float32, with what is needed to feed it and to read its output.

    `class_ids` and `labels` have one entry per class, in the order of the logits.
    """

    network: Network
    class_ids: tuple[str, ...]
    labels: tuple[str, ...]
    preprocessing: Preprocessing


def save_checkpoint(checkpoint: Checkpoint, file: Path, dtype: torch.dtype = torch.float16) -> None:
    """Fold batch norm away and write the weights in `dtype`, to a temporary name and then renamed."""
    network = fold_batch_norm(checkpoint.network)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "spec": json.dumps(asdict(network.spec)),
        "class_ids": json.dumps(checkpoint.class_ids),
        "labels": json.dumps(checkpoint.labels),
        "preprocessing": json.dumps(asdict(checkpoint.preprocessing)),
    }
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.replace(file)


def load_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint of this package.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, or tensors that do not fit its own spec.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no checkpoint at {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file, or it is truncated: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file} was not written by zfserve; import a bare state_dict with --architecture")
    network = Network(NetworkSpec(**json.loads(metadata["spec"])))
    load_tensors(network, tensors)
    preprocessing = json.loads(metadata["preprocessing"])
    return Checkpoint(
        network.eval(),
        tuple(json.loads(metadata["class_ids"])),
        tuple(json.loads(metadata["labels"])),
        Preprocessing(
            preprocessing["resize"],
            preprocessing["shorter_side"],
            tuple(preprocessing["mean"]),
            tuple(preprocessing["std"]),
        ),
    )


def load_tensors(network: Network, tensors: dict[str, torch.Tensor]) -> None:
    """Copy `tensors` into `network`.

    Raises:
        CheckpointError: tensors are missing, extra or of another shape; all of them are named.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is not part of {network.spec.architecture}" for name in tensors if name not in wanted]
    faults += [
        f"{name} has shape {tuple(tensors[name].shape)} where {shape} is needed"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        raise CheckpointError("the weights do not fit: " + "; ".join(faults))
    network.load_state_dict(tensors)
