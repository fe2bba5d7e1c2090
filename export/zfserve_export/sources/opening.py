"""This module opens the source that a text names. `zfserve export` and `zfserve evaluate` call it."""

from pathlib import Path

from zfserve_export.sources.checkpoint_file import open_checkpoint
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.libraries import LIBRARIES, open_library
from zfserve_export.sources.named import open_efficientnet_lite0
from zfserve_export.sources.onnx_file import open_onnx
from zfserve_export.sources.source import Source, SourceOptions
from zfserve_export.sources.source_path import EFFICIENTNET_LITE0, is_code, require_source
from zfserve_export.sources.user_module import open_user_module


def open_source(text: str, options: SourceOptions) -> Source:
    """Opens the source that `text` names.

    Raises:
        SourceError: the text names no source, or the source cannot be exported.
        CheckpointError, LabelsError, GraphError: the weights, the labels or the ONNX file cannot be used.
    """
    library, _, name = text.partition(":")
    if library in LIBRARIES and name:
        return open_library(library, name, options)
    if is_code(text):
        return open_user_module(text, options)
    if options.weights or options.pretrained or options.random_weights:
        raise SourceError(
            "--weights, --pretrained and --random-weights go with pytorchcv:NAME, timm:NAME, torchvision:NAME and "
            f"package.module:function, and {text} is none of them; leave them out"
        )
    if text == EFFICIENTNET_LITE0:
        return open_efficientnet_lite0(options)
    require_source(text)
    file = Path(text)
    return open_onnx(file, options) if file.suffix == ".onnx" else open_checkpoint(file, options)
