from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from zfserve_export.sources.checkpoint_file import open_checkpoint
from zfserve_export.sources.errors import SourceError
from zfserve_export.sources.source import SourceOptions
from zfserve_model.checkpoint import Checkpoint, save_checkpoint
from zfserve_model.importing.importer import import_graph
from zfserve_model.networks import NetworkSpec, build_network
from zfserve_model.preprocessing import Preprocessing


def test_a_checkpoint_brings_its_classes_its_preprocessing_and_the_names_of_its_layers(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    save_checkpoint(checkpoint, file)
    source = open_checkpoint(file, SourceOptions(preprocessing={"interpolation": "bicubic"}))
    assert (source.name, source.description) == ("zfnet-fig3", "weights.safetensors")
    assert (source.class_ids, source.labels) == (checkpoint.class_ids, checkpoint.labels)
    assert (source.layout, source.dtype, source.softmax, source.fixed_batch) == ("NCHW", "float32", False, 0)
    assert source.preprocessing.resize == checkpoint.preprocessing.resize
    assert source.preprocessing.interpolation == "bicubic", "the user's word wins"
    scopes = [entry.value for node in source.model.graph.node for entry in node.metadata_props if "scopes" in entry.key]
    assert any("'conv5'" in value for value in scopes)
    assert not any("trunk" in value for value in scopes)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(source.model.SerializeToString())
    (scores,) = session.run([source.scores], {source.input_name: images.numpy()})
    assert source.module is not None
    with torch.no_grad():
        torch.testing.assert_close(source.module(images), checkpoint.network(images))
        torch.testing.assert_close(torch.from_numpy(scores), source.module(images), rtol=1e-3, atol=1e-4)


def test_a_variant_is_exported_like_any_network(tmp_path: Path) -> None:
    """The last maps enter the output layer, because there is no hidden layer: 6 x 6 of 5 maps."""
    removed = ("conv3", "conv4", "fc6", "fc7")
    spec = NetworkSpec("zfnet-fig3", 3, removed=removed, maps=(4, 4, 4, 4, 5))
    network = build_network(spec, torch.Generator().manual_seed(3)).eval().half().float()
    file = tmp_path / "weights.safetensors"
    save_checkpoint(Checkpoint(network, ("a", "b", "c"), ("a", "b", "c"), Preprocessing()), file)
    source = open_checkpoint(file, SourceOptions())
    assert source.name == "zfnet-fig3-with-4-4-4-4-5-maps-without-conv3-conv4-fc6-fc7"
    graph = import_graph(source.model)
    assert graph.features is not None
    assert (graph.shapes[graph.features], graph.shapes[graph.logits]) == ((1, 180), (1, 3))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(source.model.SerializeToString())
    (scores,) = session.run([source.scores], {source.input_name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(scores), network(images), rtol=1e-3, atol=1e-4)


def test_a_state_dict_of_another_network_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "resnet.safetensors"
    save_file(nn.Conv2d(3, 64, 7).state_dict(), file)
    with pytest.raises(SourceError) as raised:
        open_checkpoint(file, SourceOptions())
    assert str(raised.value) == (
        f"{file} holds the state_dict of another network than zfnet, zfnet-fig3, alexnet, and a state_dict does not "
        "say which; name the network with pytorchcv:NAME, timm:NAME, torchvision:NAME or package.module:function and "
        f"add --weights {file}, or export it to ONNX"
    )


def test_another_size_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_checkpoint(checkpoint, file)
    with pytest.raises(SourceError, match=r"fails on an image of 100 x 100: .*; give the size that it takes with"):
        open_checkpoint(file, SourceOptions(preprocessing={"height": 100, "width": 100}))
