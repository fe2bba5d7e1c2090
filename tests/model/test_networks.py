import pytest
import torch
from torch import nn
from zfserve_model.networks import (
    ARCHITECTURES,
    INPUT_SIZE,
    Network,
    NetworkSpec,
    build_network,
    count_parameters,
    fold_batch_norm,
)

# The channels and the side of every trunk layer's output at 224 pixels.
SIZES = {"conv1": 110, "pool1": 55, "conv2": 26, "pool2": 13, "conv3": 13, "conv4": 13, "conv5": 13, "pool5": 6}
ALEXNET_SIZES = SIZES | {"conv1": 55, "pool1": 27, "conv2": 27}
CHANNELS = {
    "zfnet": (96, 256, 512, 1024, 512),
    "zfnet-fig3": (96, 256, 384, 384, 256),
    "alexnet": (96, 256, 384, 384, 256),
}
PARAMETERS = {"zfnet": 107_627_624, "zfnet-fig3": 62_357_608, "alexnet": 62_378_344}


def build_on_meta(architecture: str) -> Network:
    """Builds a network on the meta device, which computes shapes without memory or arithmetic."""
    with torch.device("meta"):
        return Network(NetworkSpec(architecture, classes=1000, hidden_width=4096))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_has_the_shape_of_the_table(architecture: str) -> None:
    network = build_on_meta(architecture)
    activations = torch.empty(1, 3, INPUT_SIZE, INPUT_SIZE, device="meta")
    shapes = {}
    for name, layer in network.trunk.named_children():
        activations = layer(activations)
        shapes[name] = tuple(activations.shape[1:])
    sizes = ALEXNET_SIZES if architecture == "alexnet" else SIZES
    stage_channels = CHANNELS[architecture]
    assert {name: shapes[name] for name in sizes} == {
        name: (stage_channels[int(name[-1]) - 1], side, side) for name, side in sizes.items()
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_of_the_full_width(architecture: str) -> None:
    # pytorchcv states the same first two numbers for its zfnetb and zfnet.
    assert sum(p.numel() for p in build_on_meta(architecture).parameters()) == PARAMETERS[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_order_of_layers(architecture: str) -> None:
    network = build_on_meta(architecture)
    trunk = " ".join(name for name, _ in network.trunk.named_children())
    assert trunk == "conv1 relu1 pool1 conv2 relu2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5"
    assert [*dict(network.head.named_children())] == [
        "flatten",
        "fc6",
        "relu6",
        "drop6",
        "fc7",
        "relu7",
        "drop7",
        "fc8",
    ]
    assert [layer.p for layer in network.head if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_contrast_norm_stands_between_relu_and_pool_of_the_first_two_stages() -> None:
    network = Network(NetworkSpec(classes=2, hidden_width=8, contrast_norm=True))
    names = [name for name, _ in network.trunk.named_children()]
    assert names[:8] == ["conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2"]
    assert not {"norm3", "norm4", "norm5"} & set(names)
    norm = network.trunk.get_submodule("norm1")
    assert isinstance(norm, nn.LocalResponseNorm)
    assert (norm.size, norm.k) == (5, 2.0)


@pytest.mark.parametrize("contrast_norm", [False, True])
def test_folding_batch_norm_keeps_the_function(contrast_norm: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    spec = NetworkSpec("zfnet-fig3", classes=3, hidden_width=8, contrast_norm=contrast_norm, batch_norm=True)
    network = build_network(spec, generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(generator=generator)
    images = torch.randn(2, 3, INPUT_SIZE, INPUT_SIZE, generator=generator)
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in folded.modules())
    assert folded.spec == NetworkSpec("zfnet-fig3", 3, 8, contrast_norm)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network.eval()(images), rtol=1e-4, atol=1e-5)


def test_features_are_the_activations_of_the_last_hidden_layer() -> None:
    network = build_network(
        NetworkSpec("zfnet-fig3", classes=3, hidden_width=8), torch.Generator().manual_seed(1)
    ).eval()
    images = torch.randn(2, 3, INPUT_SIZE, INPUT_SIZE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits, features = network.forward_with_features(images)
        torch.testing.assert_close(logits, network(images))
        torch.testing.assert_close(logits, network.head.get_submodule("fc8")(features))
    assert features.shape == (2, 8)
    assert bool((features >= 0).all())


def test_the_generator_decides_the_weights() -> None:
    first, again, other = (
        build_network(NetworkSpec("alexnet", 2, 4), torch.Generator().manual_seed(seed)).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["trunk.conv1.weight"], other["trunk.conv1.weight"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"architecture": "resnet"}, "choose one of zfnet"),
        ({"classes": 0}, "classes"),
        ({"hidden_width": 0}, "width"),
        ({"removed": ("conv3", "conv6")}, "there is no layer 'conv6' to remove; choose from conv1, conv2, .* fc6, fc7"),
        ({"removed": ("fc8",)}, "there is no layer 'fc8'"),
        ({"removed": ("conv1", "conv2", "conv3", "conv4", "conv5")}, "keep at least one"),
        ({"maps": (512, 1024, 512)}, "five numbers"),
        ({"maps": (96, 256, 0, 1024, 512)}, "at least 1"),
    ],
)
def test_impossible_specs_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSpec(**wrong)  # type: ignore[arg-type]


def names_of(network: Network) -> str:
    return " ".join(name for part in (network.trunk, network.head) for name, _ in part.named_children())


@pytest.mark.parametrize(
    ("removed", "names", "flat", "features"),
    [
        (
            ("conv3", "conv4"),
            "conv1 relu1 pool1 conv2 relu2 pool2 conv5 relu5 pool5 flatten fc6 relu6 drop6 fc7 relu7 drop7 fc8",
            256 * 36,
            8,
        ),
        (
            ("fc7", "fc6"),
            "conv1 relu1 pool1 conv2 relu2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 flatten fc8",
            256 * 36,
            256 * 36,
        ),
        # conv4's 384 maps are the last. The sides: 224 -> 110 -> 55 -> 27 -> 13.
        (
            ("conv2", "conv5", "fc7"),
            "conv1 relu1 norm1 pool1 pool2 conv3 relu3 conv4 relu4 pool5 flatten fc6 relu6 drop6 fc8",
            384 * 13**2,
            8,
        ),
        # pool1 reads the pixels: 224 -> 112 -> 54 -> 27 -> 13.
        (
            ("conv1",),
            "pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5 "
            "flatten fc6 relu6 drop6 fc7 relu7 drop7 fc8",
            256 * 13**2,
            8,
        ),
    ],
)
def test_removed_layers_change_the_sizes_behind_them(
    removed: tuple[str, ...], names: str, flat: int, features: int
) -> None:
    spec = NetworkSpec("zfnet-fig3", 3, 8, contrast_norm="norm" in names, removed=removed)
    with torch.device("meta"):
        network = Network(spec)
        images = torch.empty(2, 3, INPUT_SIZE, INPUT_SIZE)
    assert names_of(network) == names
    assert network.trunk(images).flatten(1).shape == (2, flat)
    logits, hidden = network.forward_with_features(images)
    assert (logits.shape, hidden.shape) == ((2, 3), (2, features))
    assert (spec.flat_width, spec.feature_width) == (flat, features)
    assert count_parameters(spec) == sum(p.numel() for p in network.parameters())


def test_maps_replace_the_widths_of_the_architecture() -> None:
    wide = NetworkSpec("zfnet-fig3", 1000, 4096, maps=(96, 256, 512, 1024, 512))
    assert count_parameters(wide) == PARAMETERS["zfnet"]
    assert [conv.channels for conv in wide.convolutions.values()] == [96, 256, 512, 1024, 512]


def test_a_variant_is_described_and_named() -> None:
    spec = NetworkSpec("zfnet-fig3", removed=("fc7", "conv4", "conv3"), maps=(96, 256, 512, 1024, 512))
    assert spec.removed == ("conv3", "conv4", "fc7")
    assert spec.description == "zfnet-fig3 with 96-256-512-1024-512 maps, without conv3, conv4, fc7"
    assert spec.name == "zfnet-fig3-with-96-256-512-1024-512-maps-without-conv3-conv4-fc7"
    assert NetworkSpec().description == NetworkSpec().name == "zfnet"


@pytest.mark.parametrize("removed", [("conv3", "conv4", "fc6", "fc7"), ("conv2", "fc7")])
def test_batch_norm_of_a_variant_folds_too(removed: tuple[str, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    network = build_network(NetworkSpec("zfnet-fig3", 3, 8, batch_norm=True, removed=removed), generator)
    images = torch.randn(2, 3, INPUT_SIZE, INPUT_SIZE, generator=generator)
    network(images)  # moves the running statistics
    folded = fold_batch_norm(network)
    assert folded.spec == NetworkSpec("zfnet-fig3", 3, 8, removed=removed)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network.eval()(images), rtol=1e-4, atol=1e-5)
