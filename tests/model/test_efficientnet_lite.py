from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from zfserve_model.efficientnet_lite import DEVIATION, MEAN, PREPROCESSING, load_efficientnet_lite0
from zfserve_model.labels import imagenet_labels

SAMPLES = Path("samples")


def test_the_preprocessing_is_that_of_its_authors() -> None:
    pixels = np.array([0.0, 127.0, 255.0])
    normalised = (pixels / 255 - PREPROCESSING.mean[0]) / PREPROCESSING.std[0]
    np.testing.assert_allclose(normalised, (pixels - MEAN) / DEVIATION, atol=1e-12)
    assert PREPROCESSING.shorter_side == 224 + 32  # CROP_PADDING


@pytest.mark.parametrize(("photo", "class_id"), [("spaniels", "n02102318"), ("garbage-truck", "n03417042")])
def test_it_knows_the_photos_of_the_repository(photo: str, class_id: str) -> None:
    """A wrong order of labels or channels, or a wrong normalisation, would give another class."""
    image = Image.open(SAMPLES / f"{photo}.jpg").convert("RGB")
    pixels = np.asarray(ImageOps.fit(image, (224, 224), Image.Resampling.BICUBIC, bleed=1 / 16), dtype=np.float32)
    with torch.inference_mode():
        logits = load_efficientnet_lite0()(torch.from_numpy((pixels - MEAN) / DEVIATION).permute(2, 0, 1)[None])
    assert list(imagenet_labels())[int(logits.argmax())] == class_id
