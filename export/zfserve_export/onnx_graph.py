"""This module describes and checks the graphs of a bundle. The exporter calls it for each file that it writes."""

import onnx
from onnx import ModelProto
from zfserve_model.graph.errors import GraphError
from zfserve_runtime.bundle import GRAPH_INPUT

PRODUCER = "zfserve"
_LARGEST_PROTOBUF_BYTES = 2**31 - 1


def describe_model(model: ModelProto, fingerprint: str) -> None:
    """Writes the producer and the fingerprint of the network into the model."""
    model.producer_name = PRODUCER
    model.producer_version = f"onnx {onnx.__version__}"
    onnx.helper.set_model_props(model, {"fingerprint": fingerprint})


def check_graph(model: ModelProto) -> None:
    """Checks a model with ONNX's checker and shape inference, and checks its size, input and outputs.

    Raises:
        GraphError: a check fails.
    """
    if model.ByteSize() > _LARGEST_PROTOBUF_BYTES:
        raise GraphError("the model is larger than 2 GiB and cannot be one ONNX file; choose a smaller network")
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:300]
        raise GraphError(f"the graph is not valid ONNX: {reason}; export the network to ONNX again") from error
    readers = [node.op_type for node in model.graph.node if GRAPH_INPUT in node.input]
    if readers != ["Cast"]:
        raise GraphError(f"`pixels` must be read by exactly one Cast, but is read by {', '.join(readers) or 'nothing'}")
    outputs = [output.name for output in model.graph.output]
    if outputs not in (["probabilities", "features"], ["probabilities"]):
        raise GraphError(f"the outputs are {', '.join(outputs)} instead of probabilities and features")
