"""A checkpoint is one safetensors file that holds trained weights and describes itself.

`zfserve train` writes it. `zfserve_model.weights_import.load_weights` reads it, and also reads files of other
libraries. The worker reads the copy in the bundle. The file's metadata has the `NetworkSpec`, the classes and the
preprocessing, so a reader needs nothing else.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from zfserve_model.networks import Network, NetworkSpec, fold_batch_norm
from zfserve_model.preprocessing import Preprocessing

FORMAT = "zfserve-checkpoint-1"

_MOST_FAULTS = 20


class CheckpointError(ValueError):
    """The weights cannot be used. The message says what is wrong with them."""


@dataclass(frozen=True)
class Checkpoint:
    """Holds a network in evaluation mode, in float32, with its preprocessing and its classes.

    `class_ids` and `labels` have one entry per class, in the order of the logits.
    """

    network: Network
    class_ids: tuple[str, ...]
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        classes = self.network.spec.classes
        if not len(self.class_ids) == len(self.labels) == classes:
            raise CheckpointError(
                f"the network has {classes} classes, but {len(self.class_ids)} class ids and "
                f"{len(self.labels)} labels were given"
            )


def save_checkpoint(checkpoint: Checkpoint, file: Path, dtype: torch.dtype = torch.float16) -> None:
    """Folds batch norm into the weights and writes them in `dtype`.

    The file is written under a temporary name and then renamed. Equal weights and classes give equal files.

    Raises:
        CheckpointError: a weight is not finite, or is too large for `dtype`.
    """
    network = fold_batch_norm(checkpoint.network)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
    if wrong := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise CheckpointError(
            f"{', '.join(wrong)} would hold values that are not finite in {dtype}: the run diverged; lower --rate"
        )
    metadata = {
        "format": FORMAT,
        # Networks without changes have the spec of earlier releases, so that those can read them.
        "spec": json.dumps({name: value for name, value in asdict(network.spec).items() if value != ()}),
        "class_ids": json.dumps(checkpoint.class_ids),
        "labels": json.dumps(checkpoint.labels, ensure_ascii=False),
        "preprocessing": json.dumps(asdict(checkpoint.preprocessing)),
    }
    partial = file.with_suffix(".partial")
    partial.write_bytes(
        _with_sorted_header(save(tensors, metadata))
    )  # save_file would make a file that only its owner can read
    partial.replace(file)


def _with_sorted_header(content: bytes) -> bytes:
    """Sorts the header of a safetensors file. The library writes its entries in a random order.

    The file begins with the header's length, 8 bytes, little-endian. The header is JSON, padded with spaces to a
    multiple of 8 bytes. Source: the page of the safetensors format.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def load_checkpoint(file: Path) -> Checkpoint:
    """Reads a checkpoint of this package.

    Raises:
        CheckpointError: the file does not exist, is not a checkpoint of ours, or has tensors that do not fit its spec.
    """
    tensors, metadata = read_safetensors(file)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{file} was not written by this release of zfserve; `load_weights` imports a state_dict")
    try:
        spec = NetworkSpec(**json.loads(metadata["spec"]))
        preprocessing = json.loads(metadata["preprocessing"])
        # JSON has no tuples.
        mean, std = tuple(preprocessing.pop("mean")), tuple(preprocessing.pop("std"))
        preprocessing = Preprocessing(**preprocessing, mean=mean, std=std)
        class_ids, labels = (tuple(json.loads(metadata[key])) for key in ("class_ids", "labels"))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} lacks the metadata of a checkpoint: {error}") from error
    network = Network(spec)
    load_tensors(network, tensors, spec.description)
    return Checkpoint(network.eval(), class_ids, labels, preprocessing)


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a safetensors file, by name, and its metadata.

    Raises:
        CheckpointError: the file does not exist, or is not a whole safetensors file.
    """
    if not file.is_file():
        raise CheckpointError(f"there is no file of weights at {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            # The opened file is no dictionary; it offers keys() only.
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a safetensors file, or it is truncated: {error}") from error


def file_digest(file: Path) -> str:
    """Returns the sha256 of a file in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], architecture: str) -> None:
    """Copies `tensors`, of any floating-point dtype, into `network`, whose architecture an error names.

    The counters of batch norm, which only training reads, may be missing.

    Raises:
        CheckpointError: tensors are missing, unknown, of another shape or not finite. The message names all of them, or
            the first few of many.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    counters = {name for name in wanted if name.endswith(".num_batches_tracked")}
    faults = [f"{name} is missing" for name in wanted if name not in tensors and name not in counters]
    faults += [f"{name} is not part of {architecture}" for name in tensors if name not in wanted]
    for name, shape in wanted.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            faults.append(f"{name} has shape {tuple(tensors[name].shape)} where {shape} is needed")
        elif name in tensors and not torch.isfinite(tensors[name]).all():
            faults.append(f"{name} holds values that are not finite")
    if faults:
        more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
        raise CheckpointError("the weights do not fit: " + "; ".join(faults[:_MOST_FAULTS]) + more)
    network.load_state_dict(tensors, strict=False)


def weights_fingerprint(network: Network) -> str:
    """Returns the sha256, in hex, of the names, shapes and float32 values of all weights, sorted by name.

    Server and worker each state the fingerprint of their weights. They work together only if the two are equal.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
