"""Reads the options of requests to companion models, which are parameters. Used by `inference_companions`.

An unknown parameter is ignored, as in requests to the models themselves.
"""

import re

from zfserve_protos.inference import grpc_service_pb2 as oip
from zfserve_protos.v1 import zfserve_pb2 as pb
from zfserve_runtime.errors import InvalidInput

from zfserve_server.requests.inference_companion_metadata import Companion
from zfserve_server.requests.inference_outputs import CLASSIFICATION, check_outputs
from zfserve_server.requests.inference_parameters import read_text, read_whole_number

MAX_MAPS = 64
"""The largest number of maps of one request. All pictures of a request are in one answer, and so in memory at once."""

_METHODS = {
    "integrated-gradients": pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS,
    "grad-cam": pb.EXPLANATION_METHOD_GRAD_CAM,
}
_NUMBER = r"\s*[0-9]{1,9}\s*"
_NUMBERS = re.compile(f"{_NUMBER}(,{_NUMBER})*")
_POSITION = re.compile(f"{_NUMBER},{_NUMBER}")


def read_project_request(request: oip.ModelInferRequest) -> pb.ProjectRequest:
    """Returns the request for `Project`, without the photo.

    Raises:
        InvalidInput: an option has another type or form than documented, or asks for more than `MAX_MAPS` maps.
    """
    message = pb.ProjectRequest(layer=read_text(request, "layer") or "last", format=pb.PICTURE_FORMAT_PNG)
    count = read_whole_number(request, "strongest")
    maps, for_class = read_text(request, "maps"), read_text(request, "for_class")
    if maps is not None and for_class is not None:
        raise InvalidInput("send the parameter maps or for_class, but not both", field="parameters[for_class]")
    if maps is not None:
        message.selection.indices.extend(_read_numbers(maps, "maps"))
        count = len(message.selection.indices)
    elif for_class is not None:
        message.for_class.CopyFrom(pb.ClassMaps(class_name=for_class, count=min(count, MAX_MAPS + 1)))
    elif "strongest" in request.parameters:
        message.strongest = min(count, MAX_MAPS + 1)
    if count > MAX_MAPS:
        raise InvalidInput(
            f"ask for at most {MAX_MAPS} maps in one request; the method Project of zfserve.v1 streams more",
            field=f"parameters[{'strongest' if maps is None else 'maps'}]",
        )
    _read_unit(request, message.unit)
    return message


def read_explain_request(request: oip.ModelInferRequest) -> pb.ExplainRequest:
    """Returns the request for `Explain`, without the photo.

    Raises:
        InvalidInput: an option is no text, or there is no such method.
    """
    method = read_text(request, "method") or "integrated-gradients"
    if method not in _METHODS:
        raise InvalidInput(f"there is no such method; send {' or '.join(_METHODS)}", field="parameters[method]")
    return pb.ExplainRequest(
        layer=read_text(request, "layer") or "",
        class_name=read_text(request, "class_name") or "",
        method=_METHODS[method],
    )


def read_companion_outputs(request: oip.ModelInferRequest, companion: Companion) -> list[str]:
    """Returns the names of the outputs that a request asks for, in its order; all outputs if it names none.

    Raises:
        InvalidInput: an output does not exist, is asked for twice, or is asked for as text.
        Unimplemented: the request asks for an output in shared memory.
    """
    names = [output.name for output in companion.outputs]
    check_outputs(request, names)
    for output in request.outputs:
        if CLASSIFICATION in output.parameters:
            raise InvalidInput(
                f"the output {output.name!r} has no classes; leave the parameter classification out",
                field=f"outputs[{output.name}]",
            )
    return [output.name for output in request.outputs] or names


def _read_unit(request: oip.ModelInferRequest, unit: pb.UnitRule) -> None:
    text = read_text(request, "unit") or "strongest"
    if text == "whole":
        unit.whole_map.SetInParent()
    elif _POSITION.fullmatch(text):
        row, column = _read_numbers(text, "unit")
        unit.position.CopyFrom(pb.Position(row=row, column=column))
    elif text == "strongest":
        unit.strongest.SetInParent()
    else:
        raise InvalidInput(
            'there is no such unit; send "strongest", "whole", or a row and a column such as "3,4"',
            field="parameters[unit]",
        )


def _read_numbers(text: str, name: str) -> list[int]:
    if not _NUMBERS.fullmatch(text):
        raise InvalidInput(
            f'the parameter {name} is a list of whole numbers; send it as text such as "5,12"',
            field=f"parameters[{name}]",
        )
    return [int(number) for number in text.split(",")]
