"""This module writes a network as an ONNX graph that takes raw pixels. `exporter` calls it.

    pixels uint8 (N, H, W, 3) -> Cast -> scale and shift -> Transpose -> trunk -> head
        -> probabilities float32 (N, K), features float32 (N, F)

Cast comes first because TensorRT's parser refuses a uint8 Transpose. Trunk and head compute in the dtype of the
network's weights. If that is float16, normalisation, contrast norm and softmax still compute in float32, because
their squares and exponentials may exceed the range of float16. `onnxruntime.transformers.float16` could convert the
finished graph, but the nodes of its result are not in topological order, and it rounds the normalisation and the
probabilities to float16.
"""

import copy
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn
from zfserve_model.networks import INPUT_SIZE, Network
from zfserve_model.preprocessing import Preprocessing

OPSET = 18
"""The opset that torch's exporter writes natively. Newer ones need a version converter. TensorRT 10 reads this one."""

LARGEST_HALF = torch.finfo(torch.float16).max

PRODUCER = "zfserve"
_LARGEST_PROTOBUF_BYTES = 2**31 - 1


class GraphError(ValueError):
    """The exported graph is not valid, or not in the form that engines expect. The message says why."""


class PixelNetwork(nn.Module):
    """Adds normalisation before `network` and a softmax after it. This module is exported."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Network, preprocessing: Preprocessing) -> None:
        super().__init__()
        # This computes (x / 255 - mean) / std as one multiplication and one subtraction.
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (mean / std).float())
        self.trunk = nn.Sequential(
            OrderedDict((name, _for_onnx(layer)) for name, layer in network.trunk.named_children())
        )
        self.head = network.head
        self.dtype = next(network.parameters()).dtype

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns probabilities, float32 (N, K), and features, float32 (N, F), of `pixels`, uint8 (N, H, W, 3)."""
        images = (pixels.to(torch.float32) * self.scale - self.shift).to(self.dtype).permute(0, 3, 1, 2)
        features = self.head[:-2](self.trunk(images))
        return torch.softmax(self.head[-2:](features).float(), dim=1), features.float()


class ContrastNormNode(nn.Module):
    """Exports contrast norm as one ONNX node, `LRN`. Torch's exporter decomposes it, which costs 30 % of the speed."""

    def __init__(self, norm: nn.LocalResponseNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, activations: Tensor) -> Tensor:
        norm = self.norm
        normalised: Tensor = torch.onnx.ops.symbolic(
            "LRN",
            (activations.float(),),
            {"size": norm.size, "alpha": norm.alpha, "beta": norm.beta, "bias": float(norm.k)},
            dtype=torch.float32,
            shape=activations.shape,
            version=13,
        )
        return normalised.to(activations.dtype)


def _for_onnx(layer: nn.Module) -> nn.Module:
    return ContrastNormNode(layer) if isinstance(layer, nn.LocalResponseNorm) else layer


def export_graph(network: Network, preprocessing: Preprocessing, fingerprint: str) -> onnx.ModelProto:
    """Exports a network in evaluation mode and checks the ONNX model. The same weights give the same bytes.

    Raises:
        GraphError: the graph fails ONNX's checker or shape inference, or is too large for one file.
    """
    module = PixelNetwork(network, preprocessing).eval()
    # torch.export would treat a batch of one as a constant, so the example has two images.
    example = torch.zeros(2, INPUT_SIZE, INPUT_SIZE, 3, dtype=torch.uint8)
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["probabilities", "features"],
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _forget_origin(model.graph)
    describe_model(model, fingerprint)
    check_graph(model)
    return model


def half_network(network: Network) -> Network:
    """Returns a copy with its weights in float16.

    Raises:
        GraphError: a weight is too large for float16.
    """
    half = copy.deepcopy(network).half()
    for name, weights in half.state_dict().items():
        if not weights.isfinite().all():
            largest = float(network.state_dict()[name].abs().max())
            raise GraphError(
                f"{name} holds a weight of {largest:.3g}, and the largest float16 is {LARGEST_HALF:.0f}; "
                "leave out the fp16 file with --no-fp16"
            )
    return half


def describe_model(model: onnx.ModelProto, fingerprint: str) -> None:
    """Writes the producer and the fingerprint of the weights into the model."""
    model.producer_name = PRODUCER
    model.producer_version = f"torch {torch.__version__}, onnx {onnx.__version__}"
    onnx.helper.set_model_props(model, {"fingerprint": fingerprint})


def _forget_origin(graph: onnx.GraphProto) -> None:
    """Removes the exporter's metadata, because its stack traces have file paths of this machine."""
    del graph.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]


def check_graph(model: onnx.ModelProto) -> None:
    """Checks a model with ONNX's checker and shape inference, and checks its size, input and outputs.

    Raises:
        GraphError: a check fails.
    """
    if model.ByteSize() > _LARGEST_PROTOBUF_BYTES:
        raise GraphError("the model is larger than 2 GiB and cannot be one ONNX file; choose a smaller hidden width")
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the exported graph is not valid ONNX: {error}") from error
    readers = [node.op_type for node in model.graph.node if "pixels" in node.input]
    if readers != ["Cast"]:
        raise GraphError(f"`pixels` must be read by exactly one Cast, but is read by {', '.join(readers) or 'nothing'}")
    outputs = [output.name for output in model.graph.output]
    if outputs != ["probabilities", "features"]:
        raise GraphError(f"the outputs are {', '.join(outputs)} instead of probabilities, features")


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences the log of torch's exporter, which has no information about our graph.

    Once per process the exporter logs each torchvision operator that it skips, and a deprecated call of its own.
    """
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            yield
    finally:
        log.setLevel(level)
