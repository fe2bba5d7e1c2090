"""This module builds the networks of libraries as sources: `pytorchcv:NAME`, `timm:NAME` and `torchvision:NAME`.

The libraries are the user's own choice, and are imported only when one is named. `opening` calls this module.
"""

import difflib
import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from zfserve_model.preprocessing import PRESETS, PreprocessingFacts

from zfserve_export.sources.errors import SourceError, first_line
from zfserve_export.sources.facts import IMAGENET_CLASSES
from zfserve_export.sources.module_source import BuiltModule, open_module
from zfserve_export.sources.module_weights import load_module_weights
from zfserve_export.sources.source import Source, SourceOptions


@dataclass(frozen=True)
class Library:
    """Describes how a library builds a network.

    Attributes:
        names: returns the names of the networks.
        build: builds a network from its name, the number of classes (None for the library's own) and True to download
            its weights.
        facts: returns what the library says about the preprocessing of a network, from its name, the module and the
            file of weights.
    """

    names: Callable[[], Sequence[str]]
    build: Callable[[str, int | None, bool], nn.Module]
    facts: Callable[[str, nn.Module, Path | None], PreprocessingFacts]


def open_library(library: str, name: str, options: SourceOptions) -> Source:
    """Builds the network `name` of a library of `LIBRARIES`, with the weights that the options name.

    Raises:
        SourceError: the library is not installed or has no such network, or the network cannot be exported.
        CheckpointError: the weights cannot be read, or do not fit.
    """
    description = f"{library}:{name}"
    _require_one_kind_of_weights(description, options)
    entry = LIBRARIES[library]
    classes = None if options.labels is None or options.pretrained else len(options.labels)
    try:
        module = entry.build(name, classes, options.pretrained)
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{description} needs the package {error.name}, which is not installed; install it beside zfserve "
            f"(`pip install {error.name}`), or export the network to ONNX elsewhere and give the .onnx file"
        ) from error
    except Exception as error:  # libraries raise anything, also where a download fails
        known = name.partition(".")[0] in entry.names()  # behind the dot, timm names the weights
        if known and options.pretrained:
            raise SourceError(
                f"{library} gives no weights of {name}: {first_line(error)}; download their file where that works, and "
                "add --weights FILE instead of --pretrained"
            ) from error
        hint = "" if known else _hint(entry, library, name)
        raise SourceError(f"{library} cannot build {name}: {first_line(error)}{hint}") from error
    if options.weights:
        load_module_weights(module, options.weights, description)
    notes = [f"{description} has random weights; its answers mean nothing"] if options.random_weights else []
    facts = entry.facts(name, module, options.weights)
    return open_module(BuiltModule(module, description, name, facts, imagenet=True, notes=notes), options)


def _hint(entry: Library, library: str, name: str) -> str:
    near = difflib.get_close_matches(name, entry.names(), n=1)
    return f"; did you mean {library}:{near[0]}?" if near else ""


def _require_one_kind_of_weights(description: str, options: SourceOptions) -> None:
    given = [bool(options.weights), options.pretrained, options.random_weights].count(True)
    if given == 0:
        raise SourceError(
            f"{description} names a network without weights; add --weights FILE or --pretrained, or --random-weights "
            "to try a network that knows nothing"
        )
    if given > 1:
        raise SourceError("--weights, --pretrained and --random-weights exclude each other; keep one")


def _sizes(classes: int | None) -> Mapping[str, int]:
    return {} if classes is None else {"num_classes": classes}


# pytorchcv. Its `model_provider` imports torchvision for a few networks, so the constructor is looked up in the files.


def _pytorchcv_files() -> dict[str, str]:
    """Returns the name of the module that defines each network."""
    models = importlib.import_module("pytorchcv.models")
    found = {}
    for module in pkgutil.iter_modules(models.__path__):
        if module.ispkg:
            continue
        text = Path(models.__path__[0], f"{module.name}.py").read_text(encoding="utf-8")
        exported = re.search(r"^__all__ = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)
        for name in re.findall(r"'(\w+)'", exported.group(1)) if exported else ():
            if name == name.lower():  # the others are classes
                found[name] = module.name
    return found


def _pytorchcv_build(name: str, classes: int | None, pretrained: bool) -> nn.Module:
    files = _pytorchcv_files()
    if name not in files:
        raise ValueError("there is no such network")
    module = importlib.import_module(f"pytorchcv.models.{files[name]}")
    network: nn.Module = getattr(module, name)(pretrained=pretrained, **_sizes(classes))
    return network


def _pytorchcv_facts(name: str, module: nn.Module, weights: Path | None) -> PreprocessingFacts:
    """Returns the size that a network states. For ImageNet the library evaluates with torchvision's preprocessing."""
    facts = PreprocessingFacts()
    size, classes = getattr(module, "in_size", None), getattr(module, "num_classes", None)
    if isinstance(size, tuple) and len(size) == 2:
        facts["height"], facts["width"] = size
    return facts | PRESETS["imagenet-torch"] if classes == IMAGENET_CLASSES else facts


# timm


def _timm() -> ModuleType:
    return importlib.import_module("timm")


def _timm_build(name: str, classes: int | None, pretrained: bool) -> nn.Module:
    network: nn.Module = _timm().create_model(name, pretrained=pretrained, **_sizes(classes))
    return network


def _timm_facts(name: str, module: nn.Module, weights: Path | None) -> PreprocessingFacts:
    """Returns the data configuration of a network. A squash of more than the input is left to the user."""
    config: Mapping[str, Any] = importlib.import_module("timm.data").resolve_model_data_config(module)
    _, height, width = config["input_size"]
    facts = PreprocessingFacts(height=height, width=width, mean=tuple(config["mean"]), std=tuple(config["std"]))
    if config["interpolation"] in ("bilinear", "bicubic"):
        facts["interpolation"] = config["interpolation"]
    if config["crop_mode"] == "center":
        facts["resize"] = "crop"
        facts["shorter_side"] = math.floor(max(height, width) / config["crop_pct"])
    elif config["crop_mode"] == "squash" and config["crop_pct"] == 1:
        facts["resize"] = "squash"
    return facts


# torchvision


def _torchvision() -> ModuleType:
    return importlib.import_module("torchvision.models")


def _torchvision_names() -> list[str]:
    """Returns the names of the classifiers of photos. Networks for other tasks are in modules below."""
    names: list[str] = _torchvision().list_models(module=_torchvision())
    return names


def _torchvision_build(name: str, classes: int | None, pretrained: bool) -> nn.Module:
    if name not in _torchvision_names():
        raise ValueError("there is no such classifier of photos")
    network: nn.Module = _torchvision().get_model(name, weights="DEFAULT" if pretrained else None, **_sizes(classes))
    return network


def _torchvision_facts(name: str, module: nn.Module, weights: Path | None) -> PreprocessingFacts:
    """Returns the transforms of the weights whose file has the name of `weights`, else those of the default weights."""
    entries = _torchvision().get_model_weights(name)
    same = [entry for entry in entries if weights and entry.url.rpartition("/")[2] == weights.name]
    transforms = (same[0] if same else entries.DEFAULT).transforms()
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    facts = PreprocessingFacts(height=crop, width=crop, resize="crop", shorter_side=resize)
    facts["mean"], facts["std"] = tuple(transforms.mean), tuple(transforms.std)
    if transforms.interpolation.value in ("bilinear", "bicubic"):
        facts["interpolation"] = transforms.interpolation.value
    return facts


LIBRARIES: Mapping[str, Library] = {
    "pytorchcv": Library(lambda: list(_pytorchcv_files()), _pytorchcv_build, _pytorchcv_facts),
    "timm": Library(lambda: _timm().list_models(), _timm_build, _timm_facts),
    "torchvision": Library(_torchvision_names, _torchvision_build, _torchvision_facts),
}
