import pytest
import torch
from zfserve_model.checkpoint import Checkpoint, CheckpointError
from zfserve_model.networks import Network, NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing
from zfserve_model.training.recipe import RecipeError
from zfserve_model.training.transfer import freeze_through, start_from

SPEC = NetworkSpec("zfnet-fig3", classes=2, hidden_width=4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(preprocessing: Preprocessing | None = None) -> Checkpoint:
    return Checkpoint(build_network(SPEC, seeded(1)), ("a", "b"), ("a", "b"), preprocessing or Preprocessing())


def frozen_layers(network: Network) -> list[str]:
    return sorted({name.split(".")[1] for name, p in network.named_parameters() if not p.requires_grad})


def test_other_classes_get_a_new_output_layer_and_nothing_else() -> None:
    checkpoint = trained()
    for class_ids in (("a", "b", "c"), ("b", "a")):
        network = start_from(checkpoint, class_ids, seeded(2))
        assert network.spec.classes == len(class_ids)
        old, new = checkpoint.network.state_dict(), network.state_dict()
        differing = {
            name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])
        }
        assert "head.fc8.weight" in differing
        assert differing <= {"head.fc8.weight", "head.fc8.bias"}


def test_the_same_classes_keep_the_output_layer() -> None:
    checkpoint = trained()
    network = start_from(checkpoint, ("a", "b"), seeded(2))
    assert torch.equal(network.state_dict()["head.fc8.weight"], checkpoint.network.state_dict()["head.fc8.weight"])


def test_weights_made_for_other_input_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"need mean \(0\.5, 0\.5, 0\.5\)"):
        start_from(trained(Preprocessing(mean=(0.5, 0.5, 0.5))), ("a", "b"), seeded(2))


@pytest.mark.parametrize(
    ("layer", "batch_norm", "frozen"),
    [
        ("conv3", False, ["conv1", "conv2", "conv3"]),
        ("conv2", True, ["bn1", "bn2", "conv1", "conv2"]),
        ("pool1", False, ["conv1"]),
        ("fc7", True, [*(f"bn{i}" for i in range(1, 8)), *(f"conv{i}" for i in range(1, 6)), "fc6", "fc7"]),
    ],
)
def test_everything_up_to_the_named_layer_freezes(layer: str, batch_norm: bool, frozen: list[str]) -> None:
    network = Network(NetworkSpec("zfnet-fig3", 2, 4, batch_norm=batch_norm))
    freeze_through(network, layer)
    assert frozen_layers(network) == frozen


@pytest.mark.parametrize("layer", ["fc8", "conv6", ""])
def test_layers_after_which_nothing_learns_are_refused(layer: str) -> None:
    with pytest.raises(RecipeError, match="choose one of conv1, relu1"):
        freeze_through(Network(SPEC), layer)
