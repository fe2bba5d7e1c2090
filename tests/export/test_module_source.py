from collections.abc import Callable

import onnx
import pytest
import torch
from fakes.tiny_networks import TwoHeads, tiny_residual
from torch import nn
from zfserve_export.sources import module_source
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.module_source import BuiltModule, open_module
from zfserve_export.sources.source import SourceOptions
from zfserve_model.labels import imagenet_labels
from zfserve_model.preprocessing import PRESETS, PreprocessingFacts

THREE = {"a": "ant", "b": "bee", "c": "cat"}
SIZE: PreprocessingFacts = {"height": 8, "width": 8}
TORCH = SIZE | PRESETS["imagenet-torch"]


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Replaces torch's exporter, which takes seconds, by one that traces nothing. Collects the modules."""
    found: list[nn.Module] = []

    def export(module: nn.Module, description: str, size: tuple[int, int]) -> tuple[onnx.ModelProto, list[str]]:
        found.append(module)
        scores = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 3])
        node = onnx.helper.make_node("Gemm", ["images", "weight"], ["scores"])
        return onnx.helper.make_model(onnx.helper.make_graph([node], "toy", [], [scores])), ["a note"]

    monkeypatch.setattr(module_source, "export_module", export)
    return found


def build(module: nn.Module, facts: PreprocessingFacts, *, imagenet: bool = False) -> BuiltModule:
    return BuiltModule(module, "mine:build", "my net", facts, imagenet=imagenet, notes=["built"])


def test_the_source_has_what_the_library_and_the_user_said(exports: list[nn.Module]) -> None:
    options = SourceOptions(labels=THREE, preprocessing={"resize": "squash"})
    source = open_module(build(tiny_residual().train(), TORCH), options)
    assert (source.name, source.description, source.notes) == ("my-net", "mine:build", ("built", "a note"))
    assert (source.class_ids, source.labels) == (("a", "b", "c"), ("ant", "bee", "cat"))
    assert (source.preprocessing.resize, source.preprocessing.height) == ("squash", 8)
    assert not exports[0].training
    assert not any(parameter.requires_grad for parameter in exports[0].parameters())


@pytest.mark.parametrize("module", [tiny_residual, TwoHeads])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_module_for_parity_reads_rgb_and_gives_one_tensor(
    exports: list[nn.Module], module: Callable[[], nn.Module], order: str
) -> None:
    network = module().eval()
    options = SourceOptions(labels=THREE, preprocessing={"channel_order": order})  # type: ignore[typeddict-item]
    source = open_module(build(network, TORCH), options)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = network(images.flip(1) if order == "bgr" else images)
    assert source.module is not None
    assert torch.equal(source.module(images), expected[0] if isinstance(expected, tuple) else expected)
    assert source.preprocessing.channel_order == order


def test_a_thousand_classes_of_a_library_are_imagenets(exports: list[nn.Module]) -> None:
    source = open_module(build(tiny_residual(1000), TORCH, imagenet=True), SourceOptions())
    assert source.class_ids == tuple(imagenet_labels())
    with pytest.raises(SourceError, match=r"add --labels imagenet \(or --labels FILE\)$"):
        open_module(build(tiny_residual(1000), TORCH), SourceOptions())
    with pytest.raises(SourceError, match=r"add --labels FILE \(with 3 labels, one a line\)$"):
        open_module(build(tiny_residual(), TORCH, imagenet=True), SourceOptions())
    assert len(exports) == 1, "nothing is exported before everything is known"


def test_without_a_size_everything_is_asked_for_before_the_module_runs() -> None:
    with pytest.raises(SourceError, match=r"add --size HxW, --preprocessing .* and --labels FILE"):
        open_module(build(tiny_residual(), {}), SourceOptions())
    with pytest.raises(SourceError, match="has 3 classes, and the number of labels is 1"):
        open_module(build(tiny_residual(), TORCH), SourceOptions(labels={"a": "ant"}))


class Evil(nn.Module):
    def eval(self) -> "Evil":
        raise KeyError("a")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Evil, "KeyError: 'a'"),
        (lambda: nn.LazyLinear(3), "ValueError: Attempted to use an uninitialized parameter"),
        (lambda: nn.Linear(2, 3, device="meta"), "NotImplementedError: Cannot copy out of meta tensor"),
    ],
)
def test_a_module_that_cannot_be_prepared_is_one_sentence(module: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(SourceError) as raised:
        open_module(build(module(), TORCH), SourceOptions(labels=THREE))
    assert f"mine:build cannot be put into evaluation mode on the CPU: {reason}" in str(raised.value)
    assert str(raised.value).endswith("; return an ordinary nn.Module whose weights have values")


def test_a_module_that_leaves_the_program_fails_and_an_interrupt_does_not() -> None:
    class Leaves(nn.Module):
        def __init__(self, error: BaseException) -> None:
            super().__init__()
            self.error = error

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise self.error

    options = SourceOptions(labels=THREE)
    with pytest.raises(SourceError, match="fails on an image of 8 x 8: SystemExit: 0"):
        open_module(build(Leaves(SystemExit(0)), TORCH), options)
    for error in (KeyboardInterrupt(), SystemExit(143)):
        with pytest.raises(type(error)):
            open_module(build(Leaves(error), TORCH), options)
