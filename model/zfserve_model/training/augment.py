"""Random crops, flips and light, for a whole batch at once on the training device.

Called by the training loop. A view is drawn once and shown at each size that is wanted: a teacher may see it larger
than the network that learns. The crop is Szegedy et al.'s random resized crop (CVPR 2015, section 6), done as one
affine resampling per batch; all randomness comes from the generator that is passed in.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from zfserve_model.networks import INPUT_SIZE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """How far a training photo may differ from the original.

    Attributes:
        min_area: smallest share of the photo's area a crop may cover, in (0, 1].
        min_area_full_size: the same for the stage at 224 pixels. Crops enlarge objects, and at the size that is
            served they should look as large as they will when served (Touvron et al., NeurIPS 2019).
        max_ratio: crops have an aspect ratio within [1 / max_ratio, max_ratio].
        light: brightness and contrast are scaled by a factor within [1 - light, 1 + light].
    """

    min_area: float = 0.3
    min_area_full_size: float = 0.6
    max_ratio: float = 4 / 3
    light: float = 0.2


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W): scaled to [0, 1], then ImageNet mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device)
    std = torch.tensor(IMAGENET_STD, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def denormalise(images: Tensor) -> Tensor:
    """The inverse of `normalise`, but channels first: float32 (N, 3, H, W), in [0, 255] where that came from pixels."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return 255 * (images * std + mean)


@dataclass(frozen=True)
class Views:
    """What was drawn for a batch of photos.

    Attributes:
        crops: affine matrices (N, 2, 3), in the [-1, 1] coordinates of `affine_grid`; a flip is a negative width.
        brightness, contrast: factors, (N,).
    """

    crops: Tensor
    brightness: Tensor
    contrast: Tensor


def draw_views(count: int, size: int, settings: Augmentation, generator: torch.Generator) -> Views:
    """A random view for each of `count` photos learned from at `size` pixels, on the CPU as `generator` is."""
    min_area = settings.min_area if size < INPUT_SIZE else settings.min_area_full_size
    crops = _crop_matrices(count, min_area, settings.max_ratio, generator)
    brightness, contrast = (1 + settings.light * _uniform(count, -1, 1, generator) for _ in range(2))
    return Views(crops, brightness, contrast)


def show_views(pixels: Tensor, views: Views, size: int) -> Tensor:
    """The photos as drawn.

    Args:
        pixels: uint8 (N, H, W, 3), RGB.
        size: side of the result, in pixels.

    Returns:
        float32 (N, 3, size, size), normalised, channels last in memory.
    """
    images = normalise(pixels)
    # Bilinear sampling reads 2x2 neighbours: shrink by whole pixels first where the step would skip some.
    shrink = int(0.75 * min(images.shape[-2:]) // size)
    if shrink > 1:
        images = functional.avg_pool2d(images, shrink)
    grid = functional.affine_grid(views.crops.to(pixels.device), [len(pixels), 3, size, size], align_corners=False)
    shown = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    brightness, contrast = (
        factor.to(pixels.device)[:, None, None, None] for factor in (views.brightness, views.contrast)
    )
    mean = shown.mean(dim=(2, 3), keepdim=True)
    shown = (shown - mean) * contrast + mean * brightness
    return shown.contiguous(memory_format=torch.channels_last)


def _crop_matrices(count: int, min_area: float, max_ratio: float, generator: torch.Generator) -> Tensor:
    """Affine matrices (N, 2, 3), in the [-1, 1] coordinates of `affine_grid`, of random crops and flips."""
    area = _uniform(count, min_area, 1, generator)
    log_ratio = _uniform(count, -1, 1, generator) * math.log(max_ratio)
    width = torch.sqrt(area * torch.exp(log_ratio)).clamp(max=1)
    height = torch.sqrt(area * torch.exp(-log_ratio)).clamp(max=1)
    shift_x = (1 - width) * _uniform(count, -1, 1, generator)
    shift_y = (1 - height) * _uniform(count, -1, 1, generator)
    flip = torch.where(_uniform(count, -1, 1, generator) < 0, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * flip, shift_x
    theta[:, 1, 1], theta[:, 1, 2] = height, shift_y
    return theta


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
