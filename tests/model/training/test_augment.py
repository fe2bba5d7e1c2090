import numpy as np
import pytest
import torch
from torch import Tensor
from zfserve_model.training.augment import Augmentation, draw_views, normalise, show_views

PIXELS = torch.randint(0, 256, (6, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
NOTHING = Augmentation(min_area=1, min_area_full_size=1, max_ratio=1, light=0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augment(pixels: Tensor, size: int, settings: Augmentation, generator: torch.Generator) -> Tensor:
    return show_views(pixels, draw_views(len(pixels), size, settings, generator), size)


def test_normalised_values_by_hand() -> None:
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 1, 1, 3)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(normalise(pixels).flatten(), expected, rtol=1e-5)


def test_without_freedom_each_view_is_the_photo_or_its_mirror_image() -> None:
    views = augment(PIXELS, 224, NOTHING, seeded(1))
    images = normalise(PIXELS)
    mirrored = [torch.allclose(view, image.flip(-1), atol=1e-3) for view, image in zip(views, images, strict=True)]
    kept = [torch.allclose(view, image, atol=1e-3) for view, image in zip(views, images, strict=True)]
    assert [a != b for a, b in zip(mirrored, kept, strict=True)] == [True] * 6
    assert any(mirrored)
    assert any(kept)


@pytest.mark.parametrize("size", [64, 128, 224])
def test_views_have_the_asked_size_and_lie_channels_last(size: int) -> None:
    views = augment(PIXELS, size, Augmentation(), seeded(2))
    assert (views.shape, views.dtype) == ((6, 3, size, size), torch.float32)
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert bool(torch.isfinite(views).all())


def test_the_generator_decides_the_views() -> None:
    first, again, other = (augment(PIXELS, 64, Augmentation(), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crops_keep_to_their_smallest_area() -> None:
    # The photo is a ramp from left to right, so the range of a view shows the width of its crop.
    ramp = torch.arange(224, dtype=torch.uint8)[None, None, :, None].expand(64, 224, 224, 3).contiguous()
    spread = float(np.ptp(normalise(ramp)[0, 0].numpy()))
    settings = Augmentation(min_area=0.25, min_area_full_size=0.81, max_ratio=1, light=0)
    for size, least in ((64, 0.5), (224, 0.9)):
        views = augment(ramp, size, settings, seeded(3))
        widths = (views[:, 0].amax(dim=(1, 2)) - views[:, 0].amin(dim=(1, 2))) / spread
        assert least - 0.03 < widths.min() < least + 0.1
        assert widths.max() > 0.95


def test_light_changes_within_bounds() -> None:
    grey = torch.full((64, 224, 224, 3), 200, dtype=torch.uint8)
    views = augment(grey, 64, Augmentation(light=0.2), seeded(4))
    gains = views.mean(dim=(2, 3)) / normalise(grey).mean(dim=(2, 3))
    assert 0.8 - 1e-3 <= gains.min() < 0.85
    assert 1.15 < gains.max() <= 1.2 + 1e-3


def test_a_view_is_the_same_at_every_size() -> None:
    smooth = torch.nn.functional.interpolate(normalise(PIXELS[:, ::32, ::32]), (224, 224), mode="bicubic")
    pixels = ((smooth.permute(0, 2, 3, 1) + 3) * 40).clamp(0, 255).to(torch.uint8)
    views = draw_views(6, 64, Augmentation(), seeded(5))
    small, large = (show_views(pixels, views, size) for size in (64, 224))
    reduced = torch.nn.functional.interpolate(large, (64, 64), mode="bilinear", antialias=True)
    assert (reduced - small).abs().mean() < 0.02 * large.std()
    other = show_views(pixels, draw_views(6, 64, Augmentation(), seeded(6)), 64)
    assert (reduced - other).abs().mean() > 0.3 * large.std()
