"""Packages called `timm` and `torchvision` with the part of their interface that the export uses.

They are written to a folder and put on the path. Their functions take the arguments that the real ones document, and
refuse others.
"""

from pathlib import Path

import pytest

_TIMM = """
from fakes.tiny_networks import TinyResidual

NETWORKS = ["tiny_net", "tiny_squash", "tiny_border"]


def list_models(filter="", module="", pretrained=False, exclude_filters="", name_matches_cfg=False, include_tags=None):
    return NETWORKS


def create_model(model_name, pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, checkpoint_path=None,
                 cache_dir=None, scriptable=None, exportable=None, no_jit=None, **kwargs):
    if model_name.split(".")[0] not in NETWORKS:
        raise RuntimeError(f"Unknown model ({model_name})")
    if model_name == "tiny_net.unknown_tag":
        raise RuntimeError("Invalid pretrained tag (unknown_tag) for tiny_net.")
    if pretrained:
        raise RuntimeError(f"No pretrained weights exist for {model_name}. Use `pretrained=False` for random init.")
    network = TinyResidual(kwargs.pop("num_classes", 1000))
    assert not kwargs
    network.pretrained_cfg = {"architecture": model_name}
    return network
"""

_TIMM_DATA = """
def resolve_model_data_config(model, args=None, pretrained_cfg=None, use_test_size=False, verbose=False):
    mode = {"tiny_net": "center", "tiny_squash": "squash", "tiny_border": "border"}
    crop_mode = mode[model.pretrained_cfg["architecture"].split(".")[0]]
    return {"input_size": (3, 8, 8), "interpolation": "bicubic", "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3),
            "crop_pct": 1.0 if crop_mode == "squash" else 0.95, "crop_mode": crop_mode}
"""

_TORCHVISION_MODELS = """
import sys
from enum import Enum

from fakes.tiny_networks import TinyResidual


class InterpolationMode(Enum):
    BILINEAR = "bilinear"


class ImageClassification:
    def __init__(self, *, crop_size, resize_size=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
                 interpolation=InterpolationMode.BILINEAR, antialias=True):
        self.crop_size = [crop_size]
        self.resize_size = [resize_size]
        self.mean = list(mean)
        self.std = list(std)
        self.interpolation = interpolation
        self.antialias = antialias


class Weights:
    def __init__(self, url, resize_size):
        self.url = url
        self.transforms = lambda: ImageClassification(crop_size=8, resize_size=resize_size)
        self.meta = {"categories": []}


class TinyNet_Weights(Enum):
    IMAGENET1K_V1 = "one"
    IMAGENET1K_V2 = "two"
    DEFAULT = "two"

    @property
    def url(self):
        return f"https://download.example/models/tiny_net-{self.value}.pth"

    @property
    def transforms(self):
        return lambda: ImageClassification(crop_size=8, resize_size=9 if self.value == "one" else 10)


def list_models(module=None, include=None, exclude=None):
    return ["tiny_net"] if module is sys.modules[__name__] else ["tiny_net", "tiny_net_detector"]


def get_model(name, **config):
    if name not in list_models():
        raise ValueError(f"Unknown model {name}")
    assert config.pop("weights") is None
    return TinyResidual(config.pop("num_classes", 1000), **config)


def get_model_weights(name):
    return TinyNet_Weights
"""


def install_libraries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes both packages to `folder`, and lets this test import them."""
    files = {
        "timm/__init__.py": _TIMM,
        "timm/data.py": _TIMM_DATA,
        "torchvision/__init__.py": "",
        "torchvision/models.py": _TORCHVISION_MODELS,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
