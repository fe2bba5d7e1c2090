"""This module loads batches of a split onto the training device. The training loop calls it."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zfserve_model.training.dataset import Split

MAX_MEMORY_SHARE = 0.25
"""The largest share of a GPU's free memory that a split may use."""
UPLOAD_BATCH = 256
"""The number of photos in one copy to the GPU."""


class PhotoBatches:
    """Loads rows of a split.

    On a GPU with enough memory all photos are uploaded once, because copying a batch from the host takes longer than
    one training step.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split = split
        self._device = device
        self._labels = torch.from_numpy(split.labels).to(device)
        self._uploaded = _upload(split.pixels, device) if _has_room(split.pixels.nbytes, device) else None

    def __len__(self) -> int:
        return len(self._labels)

    def draw(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns the photos `rows`, uint8 (N, 224, 224, 3), and their labels, int64 (N,), both on the device."""
        indices = torch.from_numpy(rows).to(self._device)
        if self._uploaded is not None:
            return self._uploaded[indices], self._labels[indices]
        return torch.from_numpy(self._split.pixels[rows]).to(self._device), self._labels[indices]


def _has_room(size_bytes: int, device: torch.device) -> bool:
    return device.type == "cuda" and size_bytes <= MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]


def _upload(pixels: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    uploaded = torch.empty(pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), UPLOAD_BATCH):
        part = slice(start, start + UPLOAD_BATCH)
        uploaded[part] = torch.from_numpy(np.array(pixels[part]))  # torch needs writable memory, so this copies
    return uploaded
