"""Parameters of an inference request: how long it may wait, how urgent it is, how to answer. Called by
`inference_service`.

Those that are not known here are ignored, as Triton and KServe do: clients send notes of their own in them.
"""

import time
from dataclasses import replace

from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.deadline import Deadline

from zfserve_server.admission.senders import Priority, Sender
from zfserve_server.requests.inference_tensors import is_typed

_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")

_TYPE_OF = {"bool_param": "a boolean", "int64_param": "a whole number", "uint64_param": "a whole number"}


def refuse_sequences(request: pb.ModelInferRequest) -> None:
    """Raises InvalidInput where the request is one of a sequence: its answer would depend on those before it."""
    for name in _SEQUENCE:
        if name in request.parameters and _value(request.parameters[name]):  # 0, "" and false say that it is none
            raise InvalidInput(
                f"the model keeps no state between requests; leave the parameter {name} out",
                field=f"parameters[{name}]",
            )


def narrow_deadline(request: pb.ModelInferRequest, deadline: Deadline) -> Deadline:
    """The sooner one of the call's deadline and of the parameter `timeout`, microseconds from now; 0 is none.

    Raises:
        InvalidInput: it is no whole number, or negative.
    """
    timeout_us = _whole(request, "timeout")
    if not timeout_us:
        return deadline
    until_s = time.monotonic() + timeout_us / 1e6
    return deadline if deadline.at_s is not None and deadline.at_s <= until_s else Deadline(until_s)


def choose_priority(request: pb.ModelInferRequest, sender: Sender) -> Sender:
    """The sender with the priority of the parameter `priority`: 1 is interactive and more is bulk; 0 changes nothing.

    Raises:
        InvalidInput: it is no whole number, or negative.
    """
    level = _whole(request, "priority")
    return replace(sender, priority=Priority.INTERACTIVE if level == 1 else Priority.BULK) if level else sender


def wants_typed(request: pb.ModelInferRequest) -> bool:
    """Whether to answer in typed contents: as the request came, unless its parameter `binary_data_output` says.

    MLServer and KServe answer as they were asked, Triton always raw; the parameter is KServe's.

    Raises:
        InvalidInput: the parameter is no boolean.
    """
    if "binary_data_output" not in request.parameters:
        return is_typed(request)
    parameter = request.parameters["binary_data_output"]
    _check_type("binary_data_output", parameter, "bool_param")
    return not parameter.bool_param


def _whole(request: pb.ModelInferRequest, name: str) -> int:
    """A parameter that is a whole number, 0 where it is not sent."""
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    kind = "uint64_param" if parameter.HasField("uint64_param") else "int64_param"
    _check_type(name, parameter, kind)
    value: int = getattr(parameter, kind)
    if value < 0:
        raise InvalidInput(f"the parameter {name} is {value}; it is 0 or more", field=f"parameters[{name}]")
    return value


def _value(parameter: pb.InferParameter) -> object:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _check_type(name: str, parameter: pb.InferParameter, kind: str) -> None:
    if parameter.WhichOneof("parameter_choice") != kind:
        raise InvalidInput(f"the parameter {name} is {_TYPE_OF[kind]}; send it as {kind}", field=f"parameters[{name}]")
