from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fakes.tiny_networks import TinyResidual, TwoHeads, tiny_residual
from torch import Tensor, nn
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.torch_export import export_module, first_tensor, run_once

SIZE = (8, 6)


class DataDependent(nn.Module):
    """Has a loop that depends on values. Only the older exporter, which traces, takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean(dim=(2, 3))
        if float(means.sum()) > 0:
            means = means * 2
        scores: Tensor = self.fc(means)
        return scores


class Failing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("size mismatch\nand more")


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    """Returns the ONNX model of `tiny_residual`. Tests only read it."""
    model, notes = export_module(tiny_residual(), "toy", SIZE)
    assert not notes
    return model


@pytest.mark.parametrize("batch", [1, 3])
def test_the_model_computes_what_the_module_computes_at_any_batch_size(exported: onnx.ModelProto, batch: int) -> None:
    images = torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(exported.SerializeToString())
    assert [value.name for value in session.get_inputs()] == ["images"]
    (scores,) = session.run(["scores"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(scores, tiny_residual()(images).numpy(), atol=1e-6)


def test_the_names_of_the_modules_are_kept(exported: onnx.ModelProto) -> None:
    metadata = [entry for node in exported.graph.node for entry in node.metadata_props]
    assert any("'block.2'" in entry.value for entry in metadata if entry.key.endswith("name_scopes"))


def test_the_first_output_of_several_is_the_scores() -> None:
    module = TwoHeads().eval()
    assert run_once(module, "toy", SIZE) == 3
    model, _ = export_module(module, "toy", SIZE)
    images = torch.ones(2, 3, *SIZE)
    (scores,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["scores"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(scores, module(images)[0].numpy(), atol=1e-6)


def test_the_older_exporter_takes_over_with_a_note() -> None:
    model, notes = export_module(DataDependent().eval(), "toy", SIZE)
    assert "torch's current exporter does not take toy" in notes[0]
    assert model.graph.output[0].name == "scores"


def test_a_module_that_no_exporter_takes_is_one_sentence() -> None:
    with pytest.raises(SourceError) as raised:
        export_module(Failing(), "toy", SIZE)
    assert str(raised.value).startswith(
        "torch cannot export toy to ONNX: RuntimeError: size mismatch; change the operation"
    )
    assert "\n" not in str(raised.value)


def test_weights_past_two_gigabytes_are_refused_before_the_export() -> None:
    with torch.device("meta"):
        module = nn.Linear(40_000, 20_000)
    with pytest.raises(SourceError, match=r"toy has 3\.0 GiB of weights, and one ONNX file holds at most 2"):
        export_module(module, "toy", SIZE)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Failing(), "toy fails on an image of 8 x 6: RuntimeError: size mismatch; give the size that it takes"),
        (nn.Conv2d(3, 4, 1), "toy gives a tensor of shape (2, 4, 8, 6) for two images, and a classifier gives"),
        (nn.Flatten(0), "a tensor of shape (288,) for two images"),
    ],
)
def test_a_module_that_is_no_classifier_is_one_sentence(module: nn.Module, sentence: str) -> None:
    with pytest.raises(SourceError) as raised:
        run_once(module, "toy", SIZE)
    assert sentence in str(raised.value)


def test_a_module_without_a_tensor_is_refused() -> None:
    assert first_tensor({"logits": (torch.ones(1), torch.zeros(1))}) == torch.ones(1)
    assert first_tensor({"loss": None}) is None


@pytest.mark.parametrize(("size", "nodes"), [(5, {"LRN": 1}), (4, {})])
def test_local_response_norm_is_one_node_where_onnx_means_the_same(size: int, nodes: Mapping[str, int]) -> None:
    """A window of an even size is placed differently by torch and ONNX."""
    module = nn.Sequential(
        TinyResidual().stem, nn.LocalResponseNorm(size), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    model, _ = export_module(module, "toy", SIZE)
    found = [node.op_type for node in model.graph.node]
    assert {name: found.count(name) for name in ("LRN",) if name in found} == nodes
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    (scores,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["scores"], {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(scores, module(images).numpy(), atol=1e-6)
    assert isinstance(module[1], nn.LocalResponseNorm), "the module itself stays as it is"
