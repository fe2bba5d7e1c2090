"""This module checks what a source names, before anything heavy is imported. `export_command` and `opening` call it."""

import re
from pathlib import Path

from zfserve_export.sources.errors import SourceError

LIBRARY_NAMES = ("pytorchcv", "timm", "torchvision")
FUNCTION_PATTERN = re.compile(r"[\w./]+:[A-Za-z_]\w*")
"""Matches `package.module:function`, and also a path in place of the module, for which the error is a hint."""

EFFICIENTNET_LITE0 = "efficientnet-lite0"
"""The source that zfserve knows by name: `named` opens it."""

CHOICES = (
    "a file (.onnx, .safetensors, .pt, .pth), pytorchcv:NAME, timm:NAME, torchvision:NAME, package.module:function or "
    f"{EFFICIENTNET_LITE0}"
)
_FILE_SUFFIXES = (".onnx", ".safetensors", ".pt", ".pth")
_CODE_SUFFIXES = {".pt2": "an archive of torch.export", ".pkl": "a pickle", ".pickle": "a pickle", ".bin": "a pickle"}
_KERAS_SUFFIXES = (".h5", ".hdf5", ".keras", ".pb", ".tflite")


def is_code(text: str) -> bool:
    """Returns True if `text` names a function of a library or of the user, and no file."""
    library, _, name = text.partition(":")
    return (library in LIBRARY_NAMES and bool(name)) or (
        FUNCTION_PATTERN.fullmatch(text) is not None and not Path(text).exists()
    )


def require_source(text: str) -> None:
    """Checks that `text` names code, a known network, or a file of a kind that can be read safely.

    Raises:
        SourceError: there is no such file, or it is of another kind.
    """
    if text == EFFICIENTNET_LITE0:
        return
    try:
        if not is_code(text):
            _require_kind(text, Path(text))
    except OSError as error:
        raise SourceError(f"{text} cannot be read: {error.strerror}; give {CHOICES}") from error


def _require_kind(text: str, file: Path) -> None:
    if file.suffix in _CODE_SUFFIXES:
        raise SourceError(
            f"{text} is {_CODE_SUFFIXES[file.suffix]}, and loading it can run any code; export the module to ONNX, or "
            "save `model.state_dict()` as .safetensors or .pth"
        )
    if file.suffix in _KERAS_SUFFIXES or (file / "saved_model.pb").is_file():
        raise SourceError(
            f"{text} is a model of Keras or TensorFlow; convert it to ONNX with tf2onnx, and give the .onnx file"
        )
    if (file / "manifest.json").is_file():
        raise SourceError(f"{text} is a bundle already; serve it, or rewrite an old one with --upgrade {text}")
    if file.suffix not in _FILE_SUFFIXES or file.is_dir():
        raise SourceError(f"{text} is no source; give {CHOICES}")
    require_file(file)


def require_file(file: Path) -> None:
    """Checks that a file exists.

    Raises:
        SourceError: it does not, or it is a folder.
    """
    if not file.is_file():
        raise SourceError(f"there is no file {file}")
