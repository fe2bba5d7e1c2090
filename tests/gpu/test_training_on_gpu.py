"""Training on the card: the default network, as `zfserve train` does it there by itself."""

import csv
import json
from pathlib import Path

import pytest
import torch
from fakes.toy_run import write_toy_photos
from processes import zfserve
from zfserve_model.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch is without CUDA here: make TORCH_INDEX=..."),
]


def test_the_default_network_learns_two_colours(tmp_path: Path) -> None:
    """Twelve photos, forty epochs, one of each colour from the other: chance is a half."""
    write_toy_photos(tmp_path / "photos")
    trained = zfserve(
        *("train", "--data", tmp_path / "photos", "--output", tmp_path / "run"),
        *("--stages", "224:40", "--batch-size", "12"),
        timeout_s=600,
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    (session,) = recipe["sessions"]
    assert session["device"] == torch.cuda.get_device_name()
    with (tmp_path / "run" / "log.csv").open() as opened:
        epochs = list(csv.DictReader(opened))
    assert len(epochs) == 40
    assert float(epochs[-1]["train_loss"]) < float(epochs[0]["train_loss"])
    network = load_checkpoint(tmp_path / "run" / "weights.safetensors").network.eval()
    assert network.spec.architecture == "zfnet"
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    colours = torch.tensor([[210.0, 60, 40], [40, 60, 210]]) / 255
    flat = colours[:, :, None, None].expand(2, 3, 224, 224)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        answered = network((flat - mean[:, None, None]) / std[:, None, None]).argmax(dim=1)
    assert answered.tolist() == [0, 1]
