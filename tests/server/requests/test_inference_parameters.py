"""Inference requests carry a timeout, a priority and the form of the answer as parameters."""

import time

import pytest
from fakes.inference_requests import Parameter, raw_request, typed_request
from zfserve_protos.inference import grpc_service_pb2 as pb
from zfserve_runtime.errors import InvalidInput
from zfserve_runtime.grpc.deadline import Deadline
from zfserve_server.admission.caller_identity import CallerIdentity, Priority
from zfserve_server.requests.inference_parameters import choose_priority, narrow_deadline, refuse_sequences, wants_typed


def parametrised(**parameters: Parameter) -> pb.ModelInferRequest:
    return raw_request(1, parameters=parameters)


def test_the_earlier_deadline_holds() -> None:
    soon, late = Deadline.after(10), Deadline.after(1000)
    request = parametrised(timeout=Parameter(int64_param=100_000_000))  # microseconds
    assert narrow_deadline(request, soon) == soon
    for deadline in (late, Deadline()):
        before = time.monotonic()
        at_s = narrow_deadline(request, deadline).at_s
        assert at_s is not None
        assert before + 100 <= at_s <= time.monotonic() + 100
    assert narrow_deadline(parametrised(timeout=Parameter(uint64_param=0)), late) == late
    assert narrow_deadline(raw_request(1), late) == late


@pytest.mark.parametrize(
    ("level", "priority"), [(0, Priority.BULK), (1, Priority.INTERACTIVE), (2, Priority.BULK), (9, Priority.BULK)]
)
def test_priority_by_level(level: int, priority: Priority) -> None:
    """Level 0 keeps the priority of the metadata."""
    caller = CallerIdentity("someone", Priority.BULK)
    chosen = choose_priority(parametrised(priority=Parameter(uint64_param=level)), caller)
    assert chosen == CallerIdentity("someone", priority)


def test_the_form_of_the_answer() -> None:
    assert wants_typed(typed_request(1))
    assert not wants_typed(raw_request(1))
    assert wants_typed(parametrised(binary_data_output=Parameter(bool_param=False)))


def test_neutral_and_unknown_parameters_are_accepted() -> None:
    """Some clients send such parameters with every request."""
    refuse_sequences(
        parametrised(
            sequence_id=Parameter(int64_param=0),
            sequence_start=Parameter(bool_param=False),
            my_note=Parameter(string_param="ignored"),
        )
    )


def read_all(request: pb.ModelInferRequest) -> None:
    refuse_sequences(request)
    narrow_deadline(request, Deadline())
    choose_priority(request, CallerIdentity())
    wants_typed(request)


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        ("sequence_id", Parameter(string_param="a"), "no state"),
        ("sequence_end", Parameter(bool_param=True), "no state"),
        ("timeout", Parameter(string_param="1s"), "whole number"),
        ("timeout", Parameter(int64_param=-1), "0 or more"),
        ("priority", Parameter(bool_param=True), "whole number"),
        ("binary_data_output", Parameter(int64_param=1), "boolean"),
    ],
)
def test_an_invalid_parameter_is_named(parameter: str, value: Parameter, words: str) -> None:
    request = parametrised(**{parameter: value})
    with pytest.raises(InvalidInput, match=words) as refused:
        read_all(request)
    assert refused.value.field == f"parameters[{parameter}]"
