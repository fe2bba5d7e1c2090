"""This module augments a whole batch at once, on the training device, by random crops, flips, brightness and contrast.

The training loop calls it. A view is drawn once and can be rendered at several sizes, because a teacher may need it
larger than the student. The crop is the random resized crop of Szegedy et al. (CVPR 2015, section 6), computed as one
affine resampling per batch. All randomness comes from the generator that the caller passes.
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
    """Bounds how far a training photo may differ from the original.

    Attributes:
        min_area: the smallest share of the photo's area that a crop may cover, in (0, 1].
        min_area_full_size: the same for the stage at 224 pixels. Crops enlarge objects, and at the served size objects
            should be about as large as in serving (Touvron et al., NeurIPS 2019).
        max_ratio: the bound of a crop's aspect ratio, which lies within [1 / max_ratio, max_ratio].
        light: the bound of the factor for brightness and contrast, which lies within [1 - light, 1 + light].
    """

    min_area: float = 0.3
    min_area_full_size: float = 0.6
    max_ratio: float = 4 / 3
    light: float = 0.2


def normalise(pixels: Tensor) -> Tensor:
    """Turns pixels, uint8 (N, H, W, 3), into float32 (N, 3, H, W), normalised by ImageNet's mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device)
    std = torch.tensor(IMAGENET_STD, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def denormalise(images: Tensor) -> Tensor:
    """Inverts `normalise`. The result stays channels first: float32 (N, 3, H, W), in [0, 255]."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return 255 * (images * std + mean)


@dataclass(frozen=True)
class Views:
    """Holds the random views of a batch of photos.

    Attributes:
        crops: affine matrices, float32 (N, 2, 3), in the [-1, 1] coordinates of `affine_grid`. A flip is a negative
            width.
        brightness, contrast: one factor per photo, float32 (N,).
    """

    crops: Tensor
    brightness: Tensor
    contrast: Tensor


def draw_views(count: int, size: int, settings: Augmentation, generator: torch.Generator) -> Views:
    """Draws a random view for each of `count` photos, on the CPU. `size` is the side of the views, in pixels."""
    min_area = settings.min_area if size < INPUT_SIZE else settings.min_area_full_size
    crops = _crop_matrices(count, min_area, settings.max_ratio, generator)
    brightness, contrast = (1 + settings.light * _uniform(count, -1, 1, generator) for _ in range(2))
    return Views(crops, brightness, contrast)


def show_views(pixels: Tensor, views: Views, size: int) -> Tensor:
    """Renders the views of the photos.

    Args:
        pixels: the photos, uint8 (N, H, W, 3), RGB.
        views: the views to render, one per photo.
        size: the side of the result, in pixels.

    Returns:
        float32 (N, 3, size, size), normalised, channels last in memory.
    """
    images = normalise(pixels)
    # Bilinear sampling reads 2x2 neighbours. If its step would skip pixels, the photo is shrunk first.
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
    """Draws affine matrices of random crops and flips, (N, 2, 3), in the [-1, 1] coordinates of `affine_grid`."""
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
