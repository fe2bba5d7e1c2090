"""This module reads every kind of weights file that zfserve can use.

`zfserve export`, `zfserve evaluate` and `zfserve train --from` call it. It reads

- a checkpoint of ours (`zfserve_model.checkpoint`), which describes itself;
- a bare `state_dict` (.safetensors, or .pt/.pth through `torch.load(weights_only=True)`) of `Network`, with or without
  the prefixes `trunk.` and `head.`, or the `state.pt` of a training run;
- a `state_dict` of pytorchcv's `zfnet` or `zfnetb`.

A checkpoint and the state of a run name their network. For other files the shapes of the tensors give the architecture,
the width and the number of classes; such a network has all layers and the usual widths. No pickle is ever executed.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from zfserve_model.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_tensors,
    read_safetensors,
)
from zfserve_model.labels import label_classes, relabel
from zfserve_model.networks import ARCHITECTURES, Network, NetworkSpec, fold_batch_norm
from zfserve_model.preprocessing import Preprocessing

SUFFIXES = (".safetensors", ".pt", ".pth")

_LARGEST_VIEW = 2**20
"""The most elements that a tensor may have beyond the bytes of its storage. A view can repeat one number endlessly."""

CONTAINERS = ("state_dict", "model_state_dict", "model", "network")
"""The keys under which a file may hold the state_dict. Other tools write the first three, our `state.pt` the last."""

PYTORCHCV_LAYERS = {
    "features.stage1.unit1.conv": "trunk.conv1",
    "features.stage2.unit1.conv": "trunk.conv2",
    "features.stage3.unit1.conv": "trunk.conv3",
    "features.stage3.unit2.conv": "trunk.conv4",
    "features.stage3.unit3.conv": "trunk.conv5",
    "output.fc1.fc": "head.fc6",
    "output.fc2.fc": "head.fc7",
    "output.fc3": "head.fc8",
}
# pytorchcv evaluates with a resize to 224 / 0.875 = 256, a centre crop, and torchvision's normalisation.
PYTORCHCV_PREPROCESSING = Preprocessing(resize="crop", shorter_side=256)


class UnknownLayout(CheckpointError):
    """The file holds the state_dict of another network than ours. A state_dict alone does not define a network."""


def load_weights(
    file: Path,
    architecture: str | None = None,
    class_names: Mapping[str, str] | None = None,
    contrast_norm: bool | None = None,
    preprocessing: Preprocessing | None = None,
) -> Checkpoint:
    """Reads any of the weights files that this module's docstring lists.

    Args:
        file: the weights file.
        architecture: a key of `ARCHITECTURES`. It is needed only if the shapes of the convolutions fit several.
        class_names: the label of each class id. A checkpoint of ours takes the labels of its own class ids. For other
            files the mapping's order is the order of the network's outputs, and without a mapping their classes are
            0, 1, ...
        contrast_norm: True if the network has contrast norm, which leaves no tensor in a `state_dict`. None takes the
            value from the state of a training run, True for weights of pytorchcv, and False for other files.
        preprocessing: how a photo becomes the input. None takes the checkpoint's own, a centre crop for weights of
            pytorchcv, and a squash for other files.

    Raises:
        CheckpointError: the file cannot be read safely, or tensors are missing, unknown or of the wrong shape. The
            message names all of them.
        UnknownLayout: the file holds weights of another network.
        LabelsError: `class_names` leaves out a class of a checkpoint of ours.
    """
    if architecture is not None and architecture not in ARCHITECTURES:
        raise CheckpointError(f"architecture {architecture!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    tensors, layout, planned = _read_tensors(file)
    if layout == FORMAT:
        return _own_checkpoint(file, architecture, class_names, contrast_norm, preprocessing)
    if planned is not None:
        _require_agreement(file, planned, architecture, contrast_norm)
    tensors = {_strip_wrappers(name): tensor for name, tensor in tensors.items()}
    foreign = any(name.rpartition(".")[0] in PYTORCHCV_LAYERS for name in tensors)
    rename = _from_pytorchcv if foreign else _with_part
    tensors = {rename(name): tensor.float() for name, tensor in tensors.items()}
    if not planned and architecture is None and not any(_fitting_convolutions(tensors).values()):
        raise UnknownLayout(f"{file} holds the state_dict of another network than {', '.join(ARCHITECTURES)}")
    norm = foreign if contrast_norm is None else contrast_norm
    network = Network(planned or infer_spec(tensors, architecture, norm))
    load_tensors(network, tensors, network.spec.description)
    ids = tuple(class_names) if class_names else tuple(str(index) for index in range(network.spec.classes))
    return Checkpoint(
        fold_batch_norm(network),
        ids,
        label_classes(ids, class_names),
        preprocessing or (PYTORCHCV_PREPROCESSING if foreign else Preprocessing()),
    )


def infer_spec(tensors: Mapping[str, Tensor], architecture: str | None, contrast_norm: bool) -> NetworkSpec:
    """Returns the spec that fits `tensors` best. `load_tensors` later names the tensors that do not fit.

    Raises:
        CheckpointError: no architecture is given, and the convolutions do not identify one.
    """
    hidden_width = _first_size(tensors, ("head.fc6.weight", "head.fc7.weight"), NetworkSpec.hidden_width)
    return NetworkSpec(
        architecture or _infer_architecture(tensors),
        classes=_first_size(tensors, ("head.fc8.weight", "head.fc8.bias"), NetworkSpec.classes),
        hidden_width=hidden_width,
        contrast_norm=contrast_norm,
        batch_norm=any(name.startswith("trunk.bn") for name in tensors),
    )


def _infer_architecture(tensors: Mapping[str, Tensor]) -> str:
    """Returns the architecture whose convolutions fit best, so that one damaged tensor does not matter."""
    fitting = _fitting_convolutions(tensors)
    best = [name for name, count in fitting.items() if count == max(fitting.values())]
    if len(best) != 1:
        convolutions = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if tensor.ndim == 4]
        raise CheckpointError(
            f"the convolutions ({', '.join(convolutions) or 'none found'}) do not identify the architecture; "
            f"choose one of {', '.join(ARCHITECTURES)}"
        )
    return best[0]


def _fitting_convolutions(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns the number of convolutions of each architecture that have a tensor of their name and shape."""
    fitting = {}
    for name, stages in ARCHITECTURES.items():
        inputs = [3, *(stage.channels for stage in stages)]
        shapes = [(stage.channels, inputs[i], stage.kernel, stage.kernel) for i, stage in enumerate(stages)]
        held = [tensors.get(f"trunk.conv{i}.weight") for i in range(1, len(stages) + 1)]
        fitting[name] = sum(h is not None and tuple(h.shape) == s for h, s in zip(held, shapes, strict=True))
    return fitting


def _first_size(tensors: Mapping[str, Tensor], names: tuple[str, ...], default: int) -> int:
    """Returns the number of rows of the first tensor of `names` that exists. All of them have the same number."""
    return next((tensors[name].shape[0] for name in names if name in tensors and tensors[name].ndim), default)


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of any network by name, without the prefixes that `DataParallel` and `torch.compile` add.

    Raises:
        CheckpointError: the file cannot be read safely, or holds anything else.
    """
    tensors, _, _ = _read_tensors(file)
    return {_strip_wrappers(name): tensor for name, tensor in tensors.items()}


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], str | None, NetworkSpec | None]:
    """Returns the tensors by name, the format in the file's metadata, and the spec in the plan of a training run.

    The spec is None if the file is not the state of a training run.
    """
    if file.suffix == ".safetensors":
        tensors, metadata = read_safetensors(file)
        return tensors, metadata.get("format"), None
    if file.suffix == ".pt2":
        raise CheckpointError(
            f"{file} is an archive of torch.export, and loading it can run any code; save `model.state_dict()`, or "
            "export the module to ONNX"
        )
    if file.suffix not in SUFFIXES:
        raise CheckpointError(f"{file}: weights are read from .safetensors, .pt and .pth files only")
    if not file.is_file():
        raise CheckpointError(f"there is no file of weights at {file}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file of an old protocol is read, or refused below
            document = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} holds more than plain tensors, and loading it could run any code; save `model.state_dict()` alone"
        ) from error
    planned = _spec_of_plan(document)
    for key in CONTAINERS:
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict) or not document or not all(isinstance(v, Tensor) for v in document.values()):
        raise CheckpointError(f"{file} holds no state_dict; it must hold tensors by name and nothing else")
    for name, tensor in document.items():
        _require_plain(file, str(name), tensor)
    return {str(name): tensor for name, tensor in document.items()}, None, planned


def _require_plain(file: Path, name: str, tensor: Tensor) -> None:
    """Checks that a tensor holds one real number for each element.

    Raises:
        CheckpointError: it is sparse, quantised, complex or without values, or a small storage stands for a huge one.
    """
    plain = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_complex() or tensor.is_meta)
    if not plain or tensor.numel() > max(tensor.untyped_storage().nbytes(), _LARGEST_VIEW):
        raise CheckpointError(
            f"the tensor {name} of {file} is no dense tensor of real numbers; save the `state_dict()` of the module in "
            "float32"
        )


def _spec_of_plan(document: object) -> NetworkSpec | None:
    """Returns the network of a training run, or None if the document is not the state of one."""
    if not isinstance(document, dict):
        return None
    try:
        return NetworkSpec(**document["plan"]["network"])
    except (KeyError, TypeError, IndexError, ValueError):
        return None


def _require_agreement(file: Path, spec: NetworkSpec, architecture: str | None, contrast_norm: bool | None) -> None:
    """Raises CheckpointError if an option contradicts what the file says about its network."""
    if architecture not in (None, spec.architecture) or contrast_norm not in (None, spec.contrast_norm):
        norm = "with" if spec.contrast_norm else "without"
        raise CheckpointError(f"{file} says it is {spec.description}, {norm} contrast norm; leave out those options")


def _own_checkpoint(
    file: Path,
    architecture: str | None,
    class_names: Mapping[str, str] | None,
    contrast_norm: bool | None,
    preprocessing: Preprocessing | None,
) -> Checkpoint:
    checkpoint = load_checkpoint(file)
    _require_agreement(file, checkpoint.network.spec, architecture, contrast_norm)
    if class_names is not None:
        checkpoint = relabel(checkpoint, class_names)
    return replace(checkpoint, preprocessing=preprocessing) if preprocessing else checkpoint


def _strip_wrappers(name: str) -> str:
    """Removes the prefixes that `DataParallel` and `torch.compile` add."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def _from_pytorchcv(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    return f"{PYTORCHCV_LAYERS[layer]}.{parameter}" if layer in PYTORCHCV_LAYERS else name


def _with_part(name: str) -> str:
    """Adds the missing prefix: `conv1.weight` becomes `trunk.conv1.weight`, `fc6.weight` becomes `head.fc6.weight`."""
    return re.sub(r"^(conv|bn)(?=[1-5]\.)", r"trunk.\1", re.sub(r"^(fc|bn)(?=[6-8]\.)", r"head.\1", name))
