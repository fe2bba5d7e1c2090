import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from zfserve_model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_tensors, save_checkpoint
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing

SPEC = NetworkSpec("zfnet-fig3", classes=2, hidden_width=4)
PREPROCESSING = Preprocessing("crop", 256, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def make_checkpoint(spec: NetworkSpec = SPEC) -> Checkpoint:
    network = build_network(spec, torch.Generator().manual_seed(1))
    return Checkpoint(network, ("n1", "n2"), ("tench", "Waldhorn, französisch"), PREPROCESSING)


def rewrite(file: Path, **metadata: str) -> None:
    """Saves the file again with changed metadata."""
    held = {
        "format": "zfserve-checkpoint-1",
        "spec": json.dumps(vars(SPEC)),
        "class_ids": '["n1", "n2"]',
        "labels": '["a", "b"]',
        "preprocessing": json.dumps(vars(Preprocessing())),
    }
    save_file(load_file(file), file, held | metadata)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    saved = make_checkpoint()
    save_checkpoint(saved, file, dtype=torch.float32)
    loaded = load_checkpoint(file)
    assert (loaded.class_ids, loaded.labels, loaded.preprocessing) == (saved.class_ids, saved.labels, PREPROCESSING)
    assert loaded.network.spec == SPEC
    assert not loaded.network.training
    for name, tensor in saved.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor)
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_a_variant_is_saved_and_networks_without_changes_can_be_read_by_earlier_releases(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_checkpoint(make_checkpoint(), file)
    with safe_open(file, framework="pt") as opened:
        assert "removed" not in opened.metadata()["spec"]
    spec = NetworkSpec("zfnet-fig3", 2, 4, removed=("conv4", "fc6"), maps=(8, 8, 8, 8, 8))
    save_checkpoint(make_checkpoint(spec), file)
    assert load_checkpoint(file).network.spec == spec


def test_batch_norm_is_folded_away_and_halves_are_the_default(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_checkpoint(make_checkpoint(NetworkSpec("zfnet-fig3", 2, 4, batch_norm=True)), file)
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    loaded = load_checkpoint(file)
    assert loaded.network.spec == SPEC
    assert {tensor.dtype for tensor in loaded.network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "other"}, "was not written by this release"),
        ({"spec": "{"}, "lacks the metadata of a checkpoint"),
        ({"spec": '{"architecture": "resnet"}'}, "resnet"),
        ({"spec": '{"depth": 3}'}, "depth"),
        ({"preprocessing": "{}"}, "mean"),
        ({"preprocessing": json.dumps(vars(Preprocessing()) | {"resize": "stretch"})}, "stretch"),
        ({"class_ids": '["n1"]'}, "has 2 classes, but 1 class ids"),
    ],
)
def test_a_file_that_does_not_describe_itself_is_refused(
    tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    file = tmp_path / "weights.safetensors"
    save_checkpoint(make_checkpoint(), file)
    rewrite(file, **metadata)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(file)


def test_a_checkpoint_of_an_earlier_release_is_bilinear_rgb_at_224(tmp_path: Path) -> None:
    """The preprocessing of such a file has four keys only."""
    file = tmp_path / "weights.safetensors"
    save_checkpoint(make_checkpoint(), file)
    old = {"resize": "crop", "shorter_side": 230, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    rewrite(file, preprocessing=json.dumps(old))
    assert load_checkpoint(file).preprocessing == Preprocessing(
        "crop", 230, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 224, 224, "bilinear", "rgb"
    )


def test_missing_and_truncated_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match="there is no file"):
        load_checkpoint(file)
    save_checkpoint(make_checkpoint(), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(file)


def test_every_tensor_that_does_not_fit_is_named() -> None:
    network = build_network(SPEC)
    tensors = network.state_dict()
    tensors["head.fc9.bias"] = tensors.pop("head.fc7.bias")
    tensors["trunk.conv2.bias"] = torch.zeros(7)
    tensors["head.fc8.bias"] = torch.tensor([0.0, float("nan")])
    with pytest.raises(CheckpointError) as raised:
        load_tensors(network, tensors, "zfnet-fig3")
    for fault in (
        "head.fc7.bias is missing",
        "head.fc9.bias is not part of zfnet-fig3",
        "trunk.conv2.bias has shape (7,) where (256,) is needed",
        "head.fc8.bias holds values that are not finite",
    ):
        assert fault in str(raised.value)


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for file in files:
        save_checkpoint(make_checkpoint(), file)
    assert len({file.read_bytes() for file in files}) == 1
    assert load_checkpoint(files[0]).labels == ("tench", "Waldhorn, französisch")


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float) -> None:
    checkpoint = make_checkpoint()
    with torch.no_grad():
        checkpoint.network.state_dict()["head.fc7.bias"][1] = value
    with pytest.raises(CheckpointError, match=r"head\.fc7\.bias would hold .* not finite in torch\.float16"):
        save_checkpoint(checkpoint, tmp_path / "weights.safetensors")
    assert not list(tmp_path.iterdir())
