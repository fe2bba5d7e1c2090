import pickle
from pathlib import Path

import pytest
import torch
from pytorchcv.models.zfnet import zfnet, zfnetb
from safetensors.torch import save_file
from torch import Tensor
from zfserve_model.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from zfserve_model.labels import LabelsError
from zfserve_model.networks import Network, NetworkSpec, build_network, fold_batch_norm
from zfserve_model.preprocessing import Preprocessing
from zfserve_model.weights_import import UnknownLayout, load_weights, read_state_dict

CROP = Preprocessing(resize="crop", shorter_side=256)
SMALL = NetworkSpec("alexnet", classes=3, hidden_width=5)


def small_network(spec: NetworkSpec = SMALL) -> Network:
    return build_network(spec, torch.Generator().manual_seed(1)).eval()


def same_weights(first: Network, second: Network) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("reference", "architecture"), [(zfnet, "zfnet-fig3"), (zfnetb, "zfnet")])
def test_pytorchcv_weights_give_pytorchcvs_numbers(reference: type, architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = reference().eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    imported = load_weights(tmp_path / "weights.pth")
    assert imported.network.spec == NetworkSpec(architecture, 1000, 4096, contrast_norm=True)
    assert imported.preprocessing == CROP
    assert imported.class_ids[:2] == ("0", "1")
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        expected, logits = theirs(images), imported.network(images)
    assert expected.std() > 1e-3, "the comparison must not be one of zeros"
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_pytorchcvs_own_faults_are_named(tmp_path: Path) -> None:
    # These tensors are made by hand, because pytorchcv fixes the width at 4096.
    tensors = small_network(NetworkSpec("zfnet-fig3", 2, 3)).state_dict()
    names = {
        "trunk.conv1": "features.stage1.unit1.conv", "trunk.conv2": "features.stage2.unit1.conv",
        "trunk.conv3": "features.stage3.unit1.conv", "trunk.conv4": "features.stage3.unit2.conv",
        "trunk.conv5": "features.stage3.unit3.conv",
        "head.fc6": "output.fc1.fc", "head.fc7": "output.fc2.fc", "head.fc8": "output.fc3",
    }  # fmt: skip
    foreign = {f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": t for name, t in tensors.items()}
    del foreign["output.fc1.fc.bias"]
    foreign["features.stage4.unit1.conv.weight"] = torch.zeros(1)
    save_file(foreign, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"fc6\.bias is missing; features\.stage4\.unit1\.conv\.weight is not"):
        load_weights(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("parts", [True, False])
def test_a_bare_state_dict_needs_no_further_word(suffix: str, prefix: str, parts: bool, tmp_path: Path) -> None:
    network = small_network()
    tensors = {
        prefix + (name if parts else name.partition(".")[2]): tensor.half()
        for name, tensor in network.state_dict().items()
    }
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)
    loaded = load_weights(file)
    assert loaded.network.spec == SMALL
    assert loaded.preprocessing == Preprocessing()
    assert (loaded.class_ids, loaded.labels) == (("0", "1", "2"), ("0", "1", "2"))
    assert same_weights(loaded.network, network.half().float())


def test_batch_norm_and_a_surrounding_dictionary_are_taken(tmp_path: Path) -> None:
    network = small_network(NetworkSpec("alexnet", 3, 5, batch_norm=True))
    torch.save({"network": network.state_dict(), "next_step": 7}, tmp_path / "state.pt")
    loaded = load_weights(tmp_path / "state.pt")
    assert loaded.network.spec == SMALL
    assert same_weights(loaded.network, fold_batch_norm(network))


def test_options_reach_a_bare_state_dict(tmp_path: Path) -> None:
    save_file(small_network().state_dict(), tmp_path / "weights.safetensors")
    names = {"b": "Birne", "a": "Apfel", "c": "Citrone"}
    loaded = load_weights(tmp_path / "weights.safetensors", "alexnet", names, contrast_norm=True, preprocessing=CROP)
    assert loaded.class_ids == ("b", "a", "c")
    assert loaded.labels == ("Birne", "Apfel", "Citrone")
    assert loaded.network.spec.contrast_norm
    assert loaded.preprocessing == CROP
    with pytest.raises(CheckpointError, match="has 3 classes, but 1 class ids"):
        load_weights(tmp_path / "weights.safetensors", class_names={"a": "Apfel"})


def test_our_checkpoints_describe_themselves(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_checkpoint(Checkpoint(small_network(), ("x", "y", "z"), ("x", "y", "z"), CROP), file)
    assert load_weights(file).class_ids == ("x", "y", "z")
    assert load_weights(file).preprocessing == CROP
    relabelled = load_weights(file, class_names={"z": "Zitrone", "y": "Yamswurzel", "x": "?", "unused": "!"})
    assert (relabelled.class_ids, relabelled.labels) == (("x", "y", "z"), ("?", "Yamswurzel", "Zitrone"))
    with pytest.raises(CheckpointError, match="says it is alexnet, without contrast norm"):
        load_weights(file, "zfnet")
    with pytest.raises(LabelsError, match="no label for y, z"):
        load_weights(file, class_names={"x": "x"})


def spoil_one(tensors: dict[str, Tensor]) -> None:
    tensors["trunk.conv3.weight"] = torch.zeros(384, 256, 5, 5)


def drop_heads(tensors: dict[str, Tensor]) -> None:
    for name in ("head.fc6.weight", "head.fc8.weight"):
        del tensors[name]


def test_faults_are_named_even_where_the_architecture_is_inferred(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    for spoil, message in (
        (spoil_one, r"conv3\.weight has shape \(384, 256, 5, 5\) where \(384, 256, 3, 3\)"),
        (drop_heads, r"fc6\.weight is missing; head\.fc8\.weight is missing$"),
    ):
        tensors = small_network().state_dict()
        spoil(tensors)
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=message):
            load_weights(file)


def test_a_state_dict_of_another_network_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    """The first two convolutions of zfnet and zfnet-fig3 are alike."""
    file = tmp_path / "weights.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, file)
    with pytest.raises(UnknownLayout, match="another network than zfnet, zfnet-fig3, alexnet"):
        load_weights(file)
    with pytest.raises(CheckpointError, match=r"conv1\.weight has shape \(64, 3, 7, 7\) where"):
        load_weights(file, architecture="zfnet")
    with pytest.raises(CheckpointError, match="'resnet' is unknown"):
        load_weights(file, architecture="resnet")
    save_file({"conv1.weight": torch.zeros(96, 3, 7, 7)}, file)
    with pytest.raises(CheckpointError, match=r"\(96, 3, 7, 7\)\) do not identify the architecture"):
        load_weights(file)


def test_a_state_dict_of_any_network_can_be_read(tmp_path: Path) -> None:
    torch.save({"model": {"module._orig_mod.fc.weight": torch.ones(2, 3)}, "epoch": 3}, tmp_path / "weights.pth")
    tensors = read_state_dict(tmp_path / "weights.pth")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"fc.weight": (2, 3)}


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    torch.save({"conv1.weight": Payload(proof)}, tmp_path / "torch.pt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(proof), protocol=2))
    for name in ("torch.pt", "plain.pth"):
        with pytest.raises(CheckpointError, match="loading it could run any code"):
            load_weights(tmp_path / name)
    assert not proof.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"conv1.weight": 3}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        load_weights(tmp_path / "weights.pt")


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"not a zip")
    (tmp_path / "weights.safetensors").write_bytes(b"not tensors")
    for name, message in (
        ("weights.pt", "plain tensors"),
        ("weights.safetensors", "not a safetensors file"),
        ("weights.onnx", "only"),
        ("weights.pt2", "an archive of torch.export, and loading it can run any code"),
        ("absent.pt", "there is no file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(tmp_path / name)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(1).as_strided((10**6, 10**6), (0, 0)),
    ],
)
def test_a_tensor_that_is_not_dense_is_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"a.weight": tensor}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"a\.weight of .*net\.pth is no dense tensor of real numbers; save the"):
        read_state_dict(tmp_path / "net.pth")


def test_a_file_of_one_tensor_is_no_state_dict(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        read_state_dict(tmp_path / "net.pth")
