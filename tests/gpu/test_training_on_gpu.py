"""Tests training on a GPU: the default network, as `zfserve train` trains it."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.toy_run import write_toy_photos
from processes import zfserve
from zfserve_model.checkpoint import load_checkpoint
from zfserve_model.training.dataset import Split
from zfserve_model.training.photos import UPLOAD_BATCH, PhotoBatches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch has no CUDA here; see TORCH_INDEX in Makefile"),
]


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_batches_are_drawn_from_gpu_or_host_memory(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zfserve_model.training.photos.MAX_MEMORY_SHARE", share)
    count = 2 * UPLOAD_BATCH + 1
    pixels = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    drawn, labels = PhotoBatches(Split(pixels, np.arange(count)), torch.device("cuda")).draw(np.array([count - 1, 0]))
    assert drawn.device.type == labels.device.type == "cuda"
    np.testing.assert_array_equal(drawn.cpu(), pixels[[count - 1, 0]])
    np.testing.assert_array_equal(labels.cpu(), [count - 1, 0])


def test_the_default_network_learns_two_colours(tmp_path: Path) -> None:
    """Trains on twelve photos of two colours for 120 steps. Guessing has an accuracy of 0.5 and a loss of ln 2."""
    write_toy_photos(tmp_path / "photos")
    trained = zfserve(
        *("train", "--data", tmp_path / "photos", "--output", tmp_path / "run"),
        *("--stages", "128:100,224:20", "--batch-size", "12"),
        timeout_s=280,
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    (session,) = json.loads((tmp_path / "run" / "recipe.json").read_text())["sessions"]
    assert session["device"] == torch.cuda.get_device_name()
    with (tmp_path / "run" / "log.csv").open() as opened:
        epochs = list(csv.DictReader(opened))
    assert len(epochs) == 120
    assert float(epochs[-1]["train_loss"]) < 0.6 * math.log(2)
    assert float(epochs[-1]["val_top1"]) == 1.0
    network = load_checkpoint(tmp_path / "run" / "weights.safetensors").network
    assert network.spec.architecture == "zfnet"
    assert all(parameter.isfinite().all() for parameter in network.parameters())
