"""This module turns a PyTorch module into a source. The sources that build modules call it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from zfserve_model.labels import imagenet_labels
from zfserve_model.preprocessing import PreprocessingFacts

from zfserve_export.sources.errors import SourceError, first_line, is_interrupt
from zfserve_export.sources.facts import IMAGENET_CLASSES, classes_of, complete_facts, known_facts, require_facts
from zfserve_export.sources.onnx_interface import find_scores
from zfserve_export.sources.source import Source, SourceOptions, folder_name
from zfserve_export.sources.torch_export import IMAGES, export_module, first_tensor, run_once


@dataclass(frozen=True, eq=False)
class BuiltModule:
    """Holds a module with its weights, and what its library says about it.

    Attributes:
        description: the source, such as "pytorchcv:resnet18".
        name: the name of the network.
        facts: what the library says about the preprocessing.
        imagenet: True if a thousand classes are ImageNet's.
        notes: sentences about what was assumed, which the user should read.
    """

    module: nn.Module
    description: str
    name: str
    facts: PreprocessingFacts
    imagenet: bool = False
    notes: Sequence[str] = ()


def open_module(built: BuiltModule, options: SourceOptions) -> Source:
    """Exports a module to ONNX, and completes what its library says about it with what the user said.

    Raises:
        SourceError: the module cannot be run or exported, or something is open that the options do not say.
    """
    description = built.description
    module = _for_inference(built.module, description)
    facts = known_facts(built.facts, options.preprocessing)
    if "height" not in facts:
        require_facts(description, facts, options.labels)
    size = facts["height"], facts["width"]
    classes = run_once(module, description, size)
    labels = options.labels
    if labels is None and built.imagenet and classes == IMAGENET_CLASSES:
        labels = imagenet_labels()
    require_facts(description, facts, labels, classes)
    preprocessing = complete_facts(description, facts)
    class_ids, names = classes_of(description, labels or {}, classes)
    model, notes = export_module(module, description, size)
    scores = find_scores(model, description, model.graph.output[0].name)
    return Source(
        model=model,
        input_name=IMAGES,
        layout="NCHW",
        dtype="float32",
        scores=scores.name,
        softmax=scores.softmax,
        fixed_batch=0,
        preprocessing=preprocessing,
        class_ids=class_ids,
        labels=names,
        description=description,
        name=folder_name(built.name),
        module=_RgbScores(module, bgr=preprocessing.channel_order == "bgr").eval(),
        notes=(*built.notes, *notes),
    )


def _for_inference(module: nn.Module, description: str) -> nn.Module:
    """Returns the module in evaluation mode, in float32, on the CPU.

    Raises:
        SourceError: the module cannot be changed, as one of TorchScript, or has weights without values.
    """
    try:
        return module.eval().float().cpu().requires_grad_(requires_grad=False)
    except BaseException as error:  # the user's class may have its own methods
        if is_interrupt(error):
            raise
        raise SourceError(
            f"{description} cannot be put into evaluation mode on the CPU: {first_line(error)}; return an ordinary "
            "nn.Module whose weights have values"
        ) from error


class _RgbScores(nn.Module):
    """Gives the scores of `module` for images in RGB order, whatever order it reads and whatever else it returns."""

    def __init__(self, module: nn.Module, *, bgr: bool) -> None:
        super().__init__()
        self.module = module
        self.bgr = bgr

    def forward(self, images: Tensor) -> Tensor:
        scores = first_tensor(self.module(images.flip(1) if self.bgr else images))
        assert scores is not None, "run_once has seen a tensor"
        return scores
