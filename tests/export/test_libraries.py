import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakes.library_packages import install_libraries
from fakes.tiny_networks import TinyResidual
from torch import nn
from zfserve_export.sources import libraries
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.libraries import LIBRARIES, open_library
from zfserve_export.sources.module_source import BuiltModule
from zfserve_export.sources.source import Source, SourceOptions
from zfserve_model.checkpoint import CheckpointError
from zfserve_model.preprocessing import PRESETS

THREE = {"a": "ant", "b": "bee", "c": "cat"}
RANDOM = SourceOptions(random_weights=True, labels=THREE)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the test import fakes of timm and torchvision, which are not installed here."""
    install_libraries(tmp_path / "packages", monkeypatch)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
        del sys.modules[name]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[BuiltModule]:
    """Collects what a library builds, instead of exporting it, which takes seconds."""
    found: list[BuiltModule] = []

    def keep(module: BuiltModule, options: SourceOptions) -> Source:
        found.append(module)
        raise SourceError("not exported in this test")

    monkeypatch.setattr(libraries, "open_module", keep)
    return found


def build(built: list[BuiltModule], library: str, name: str, options: SourceOptions) -> BuiltModule:
    with pytest.raises(SourceError, match="not exported in this test"):
        open_library(library, name, options)
    return built[-1]


def test_pytorchcv_gives_its_size_and_imagenets_preprocessing(built: list[BuiltModule]) -> None:
    """pytorchcv's `model_provider` imports torchvision, which is not installed here."""
    module = build(built, "pytorchcv", "inceptionv3", SourceOptions(random_weights=True))
    assert module.facts == {**PRESETS["imagenet-torch"], "height": 299, "width": 299}
    assert (module.description, module.name) == ("pytorchcv:inceptionv3", "inceptionv3")
    assert module.notes == ["pytorchcv:inceptionv3 has random weights; its answers mean nothing"]
    assert "torchvision" not in sys.modules


def test_the_labels_give_the_number_of_classes_and_other_data_sets_their_own_preprocessing(
    built: list[BuiltModule],
) -> None:
    module = build(built, "pytorchcv", "resnet10", RANDOM)
    assert module.module.get_submodule("output").weight.shape[0] == 3  # type: ignore[index]
    assert module.facts == {"height": 224, "width": 224}, "three classes are not ImageNet's"


def test_timm_gives_its_data_configuration(installed: None, built: list[BuiltModule]) -> None:
    module = build(built, "timm", "tiny_net.some_tag", RANDOM)
    assert module.facts == {
        "height": 8,
        "width": 8,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.1, 0.2, 0.3),
        "interpolation": "bicubic",
        "resize": "crop",
        "shorter_side": 8,
    }, "timm resizes to floor(8 / 0.95)"
    assert build(built, "timm", "tiny_squash", RANDOM).facts["resize"] == "squash"
    assert "resize" not in build(built, "timm", "tiny_border", RANDOM).facts, "borders are no rule of ours"


def test_torchvision_gives_the_transforms_of_the_weights_with_the_name_of_the_file(
    installed: None, built: list[BuiltModule], tmp_path: Path
) -> None:
    file = tmp_path / "tiny_net-one.pth"
    torch.save(TinyResidual().state_dict(), file)
    module = build(built, "torchvision", "tiny_net", SourceOptions(weights=file, labels=THREE))
    assert (module.facts["resize"], module.facts["shorter_side"], module.facts["height"]) == ("crop", 9, 8)
    assert build(built, "torchvision", "tiny_net", RANDOM).facts["shorter_side"] == 10, "the default weights"


def test_weights_are_loaded_and_those_of_another_network_are_named(
    installed: None, built: list[BuiltModule], tmp_path: Path
) -> None:
    file, network = tmp_path / "weights.pth", TinyResidual()
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, file)
    module = build(built, "timm", "tiny_net", SourceOptions(weights=file, labels=THREE)).module
    assert torch.equal(module.fc.weight, network.fc.weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(CheckpointError) as raised:
        open_library("timm", "tiny_net", SourceOptions(weights=file))
    assert str(raised.value) == (
        "the weights do not fit: fc.weight has shape (3, 4) where (1000, 4) is needed; fc.bias has shape (3,) where "
        "(1000,) is needed; for a network of other classes give their labels with --labels"
    )


@pytest.mark.parametrize(
    ("library", "name", "options", "sentence"),
    [
        (
            "pytorchcv",
            "resnet10",
            SourceOptions(),
            "names a network without weights; add --weights FILE or",
        ),
        (
            "pytorchcv",
            "resnet10",
            SourceOptions(pretrained=True, random_weights=True),
            "--weights, --pretrained and --random-weights exclude each other; keep one",
        ),
        (
            "pytorchcv",
            "resnet11",
            RANDOM,
            "pytorchcv cannot build resnet11: ValueError: there is no such network; did",
        ),
        ("timm", "tiny_nut", RANDOM, "RuntimeError: Unknown model (tiny_nut); did you mean timm:tiny_net?"),
        (
            "timm",
            "tiny_net.some_tag",
            SourceOptions(pretrained=True),
            "timm gives no weights of tiny_net.some_tag: RuntimeError: No pretrained weights exist for "
            "tiny_net.some_tag. Use `pretrained=False` for random init.; download their file where that works, and add "
            "--weights FILE instead of --pretrained",
        ),
        ("timm", "tiny_net.unknown_tag", RANDOM, "Invalid pretrained tag (unknown_tag) for tiny_net."),
        ("torchvision", "tiny_nets", RANDOM, "no such classifier of photos; did you mean torchvision:tiny_net?"),
        ("torchvision", "tiny_net_detector", RANDOM, "ValueError: there is no such classifier of photos"),
    ],
)
def test_what_a_library_refuses_is_one_sentence(
    installed: None, library: str, name: str, options: SourceOptions, sentence: str
) -> None:
    with pytest.raises(SourceError) as raised:
        open_library(library, name, options)
    assert sentence in str(raised.value)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SourceError, match=r"timm:tiny_net needs the package timm, which is not installed; install it"):
        open_library("timm", "tiny_net", RANDOM)


def test_every_network_of_pytorchcv_can_be_found() -> None:
    names = LIBRARIES["pytorchcv"].names()
    assert {"resnet18", "mobilenetv2_w1", "densenet121", "seresnet50", "efficientnet_b0"} <= set(names)
    assert not any(issubclass(type(name), nn.Module) for name in names)
