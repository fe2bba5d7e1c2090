"""This module opens sources that zfserve knows by name, with weights from a package. `opening` calls it."""

from zfserve_model.efficientnet_lite import PREPROCESSING, load_efficientnet_lite0
from zfserve_model.preprocessing import PreprocessingFacts
from zfserve_protos.extras import not_installed

from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.module_source import BuiltModule, open_module
from zfserve_export.sources.source import Source, SourceOptions
from zfserve_export.sources.source_path import EFFICIENTNET_LITE0


def open_efficientnet_lite0(options: SourceOptions) -> Source:
    """Opens EfficientNet-Lite0 with ImageNet's weights, labels and preprocessing (docs/efficientnet-lite0.md).

    Raises:
        SourceError: the packages with the network and its weights are not installed.
    """
    try:
        network = load_efficientnet_lite0()
    except ModuleNotFoundError as error:
        raise SourceError(f"{EFFICIENTNET_LITE0}: {not_installed(str(error.name), 'export')}") from error
    stated = PREPROCESSING
    facts = PreprocessingFacts(
        resize=stated.resize,
        shorter_side=stated.shorter_side,
        mean=stated.mean,
        std=stated.std,
        height=stated.height,
        width=stated.width,
        interpolation=stated.interpolation,
    )
    return open_module(BuiltModule(network, EFFICIENTNET_LITE0, EFFICIENTNET_LITE0, facts, imagenet=True), options)
