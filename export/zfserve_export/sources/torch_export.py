"""This module exports PyTorch modules to ONNX, with torch's own exporters. `module_source` calls it.

Torch has two exporters. The current one (`dynamo=True`) keeps the paths of the modules, and is tried first. The older
one traces, and takes some modules that the current one refuses.
"""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zfserve_export.sources.errors import SourceError, first_line, is_interrupt

OPSET = 18
"""The opset that torch's exporter writes natively. Newer ones need a version converter. TensorRT 10 reads this one."""

IMAGES, SCORES = "images", "scores"

_LARGEST_PROTOBUF_BYTES = 2**31 - 1


def run_once(module: nn.Module, description: str, size: tuple[int, int]) -> int:
    """Runs a module on two black images of `size`, (height, width), and returns the number of its scores.

    Raises:
        SourceError: the module fails, or its first output is not (N, K).
    """
    try:
        with torch.no_grad():
            output = module(torch.zeros(2, 3, *size))
    except BaseException as error:  # the user's code may raise anything
        if is_interrupt(error):
            raise
        raise SourceError(
            f"{description} fails on an image of {size[0]} x {size[1]}: {first_line(error)}; give the size that it "
            "takes with --size"
        ) from error
    scores = first_tensor(output)
    if scores is None or scores.ndim != 2 or scores.shape[0] != 2:
        found = "no tensor" if scores is None else f"a tensor of shape {tuple(scores.shape)}"
        raise SourceError(
            f"{description} gives {found} for two images, and a classifier gives (2, number of classes); export a "
            "module whose first output is that"
        )
    return int(scores.shape[1])


def first_tensor(output: object) -> Tensor | None:
    """Returns a module's output, or the first tensor of a tuple, a list or a dictionary. None if there is no tensor."""
    return next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)


def export_module(module: nn.Module, description: str, size: tuple[int, int]) -> tuple[onnx.ModelProto, Sequence[str]]:
    """Exports a module in evaluation mode to ONNX, and returns the model and notes for the user.

    The model's input is `images`, float32 (N, 3, H, W) with a dynamic N, and its first output is `scores`. The same
    weights give the same bytes.

    Raises:
        SourceError: neither exporter of torch takes the module, or its weights are too large for one file.
    """
    weights = [value for value in module.state_dict().values() if isinstance(value, Tensor)]
    stored = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    if stored > _LARGEST_PROTOBUF_BYTES:
        raise SourceError(
            f"{description} has {stored / 2**30:.1f} GiB of weights, and one ONNX file holds at most 2; choose a "
            "smaller network"
        )
    module = _with_single_norms(module)
    # torch.export would treat a batch of one as a constant, so the example has two images.
    example = torch.zeros(2, 3, *size)
    notes = []
    with _quiet_exporter():
        try:
            model = _export_current(module, example)
        except Exception as first:  # the exporters' errors have no common class below Exception
            try:
                model = _export_traced(module, example)
            except Exception as second:
                raise SourceError(
                    f"torch cannot export {description} to ONNX: {first_line(second)}; change the operation that it "
                    "names, or export the network to ONNX yourself and give the .onnx file"
                ) from first
            notes.append(
                f"torch's current exporter does not take {description} ({first_line(first)}); its older one did, so "
                "layers may have other names"
            )
    model.graph.output[0].name, old = SCORES, model.graph.output[0].name
    for node in model.graph.node:
        node.input[:] = [SCORES if name == old else name for name in node.input]
        node.output[:] = [SCORES if name == old else name for name in node.output]
    return model, notes


def _export_current(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[IMAGES],
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _export_traced(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        module,
        (example,),
        file,  # type: ignore[arg-type] # a file in memory is allowed
        dynamo=False,
        opset_version=OPSET,
        input_names=[IMAGES],
        dynamic_axes={IMAGES: {0: "N"}},
    )
    return onnx.load_model_from_string(file.getvalue())


class ContrastNormNode(nn.Module):
    """Exports local response norm as one ONNX node, `LRN`. Torch's exporters take it apart, which costs 30 % of the
    speed."""

    def __init__(self, norm: nn.LocalResponseNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, activations: Tensor) -> Tensor:
        norm = self.norm
        normalised: Tensor = torch.onnx.ops.symbolic(
            "LRN",
            (activations.float(),),
            {"size": norm.size, "alpha": norm.alpha, "beta": norm.beta, "bias": float(norm.k)},
            dtype=torch.float32,
            shape=activations.shape,
            version=13,
        )
        return normalised.to(activations.dtype)


def _with_single_norms(module: nn.Module) -> nn.Module:
    """Returns a module whose local response norms become one node each.

    Torch and ONNX place a window of an even size differently, so such a norm stays as it is.
    """
    if not any(isinstance(part, nn.LocalResponseNorm) for part in module.modules()):
        return module
    changed = copy.deepcopy(module)
    for parent in list(changed.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LocalResponseNorm) and child.size % 2 == 1:
                setattr(parent, name, ContrastNormNode(child))
    return changed


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences warnings and logs of torch's exporters, which say nothing that a user could act on."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
