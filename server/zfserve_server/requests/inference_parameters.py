"""Reads the parameters of an inference request: timeout, priority and form of the answer. Used by `inference_service`.

It ignores unknown parameters, as Triton and KServe do, because clients send data of their own in them.
"""

import time
from dataclasses import replace

from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.deadline import Deadline

from zfserve_server.admission.caller_identity import CallerIdentity, Priority
from zfserve_server.requests.inference_tensors import is_typed

_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")

_TYPE_OF = {
    "bool_param": "a boolean",
    "string_param": "text",
    "int64_param": "a whole number",
    "uint64_param": "a whole number",
}


def refuse_sequences(request: pb.ModelInferRequest) -> None:
    """Raises InvalidInput for a request of a sequence, whose answer would depend on the requests before it."""
    for name in _SEQUENCE:
        if name in request.parameters and _value(request.parameters[name]):  # 0, "" and false mean no sequence
            raise InvalidInput(
                f"the model keeps no state between requests; leave the parameter {name} out",
                field=f"parameters[{name}]",
            )


def narrow_deadline(request: pb.ModelInferRequest, deadline: Deadline) -> Deadline:
    """Returns the earlier of the call's deadline and the parameter `timeout`: microseconds from now, 0 for no timeout.

    Raises:
        InvalidInput: `timeout` is negative or not a whole number.
    """
    timeout_us = read_whole_number(request, "timeout")
    if not timeout_us:
        return deadline
    until_s = time.monotonic() + timeout_us / 1e6
    return deadline if deadline.at_s is not None and deadline.at_s <= until_s else Deadline(until_s)


def choose_priority(request: pb.ModelInferRequest, caller: CallerIdentity) -> CallerIdentity:
    """Returns the caller with the priority of the parameter `priority`.

    1 is interactive, more is bulk, and 0 changes nothing.

    Raises:
        InvalidInput: `priority` is negative or not a whole number.
    """
    level = read_whole_number(request, "priority")
    return replace(caller, priority=Priority.INTERACTIVE if level == 1 else Priority.BULK) if level else caller


def wants_typed(request: pb.ModelInferRequest) -> bool:
    """Returns True to answer in typed contents, False to answer in raw contents.

    The answer has the form of the request, unless KServe's parameter `binary_data_output` says otherwise. MLServer and
    KServe answer in the form of the request; Triton always answers raw.

    Raises:
        InvalidInput: the parameter is not a boolean.
    """
    if "binary_data_output" not in request.parameters:
        return is_typed(request)
    parameter = request.parameters["binary_data_output"]
    _check_type("binary_data_output", parameter, "bool_param")
    return not parameter.bool_param


def read_text(request: pb.ModelInferRequest, name: str) -> str | None:
    """Returns a parameter that is text, or None if the request does not have it.

    Raises:
        InvalidInput: the parameter is no text.
    """
    if name not in request.parameters:
        return None
    parameter = request.parameters[name]
    _check_type(name, parameter, "string_param")
    return parameter.string_param


def read_whole_number(request: pb.ModelInferRequest, name: str) -> int:
    """Returns a parameter that is a whole number, or 0 if the request does not have it.

    Raises:
        InvalidInput: the parameter is negative or not a whole number.
    """
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    kind = "uint64_param" if parameter.HasField("uint64_param") else "int64_param"
    _check_type(name, parameter, kind)
    value: int = getattr(parameter, kind)
    if value < 0:
        raise InvalidInput(f"the parameter {name} is {value}; send 0 or more", field=f"parameters[{name}]")
    return value


def _value(parameter: pb.InferParameter) -> object:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _check_type(name: str, parameter: pb.InferParameter, kind: str) -> None:
    if parameter.WhichOneof("parameter_choice") != kind:
        raise InvalidInput(f"the parameter {name} is {_TYPE_OF[kind]}; send it as {kind}", field=f"parameters[{name}]")
