import numpy as np
import torch
from zfserve_model.training.dataset import Split
from zfserve_model.training.photos import PhotoBatches


def test_rows_are_drawn_with_their_labels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
    pixels.flags.writeable = False  # the file of decoded photos is read-only too
    batches = PhotoBatches(Split(pixels, np.arange(6)), torch.device("cpu"))
    rows = np.array([5, 0, 3, 0])
    drawn, labels = batches.draw(rows)
    assert len(batches) == 6
    assert (drawn.dtype, labels.dtype) == (torch.uint8, torch.int64)
    np.testing.assert_array_equal(drawn, pixels[rows])
    np.testing.assert_array_equal(labels, rows)
