"""This module opens and runs sessions of ONNX Runtime that return any tensor of a model. Checks of graphs call it."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, helper
from zfserve_model.graph.errors import GraphError, readable

_REMEDY = "export it again, in float32, so that ONNX Runtime runs it"

LONGEST_RUN_S = 600.0
"""The longest time that one batch may take. A file can hold a loop that never ends."""

_PLACE = re.compile(r"(?:[\w.-]*/)*[\w.-]+\.(?:cc|h|cpp|hpp):\d+(?: .*?\)(?: const)?(?: \[with .*?\])?)? ")
"""Matches a place in ONNX Runtime's own source, with the function that follows it."""

onnxruntime.set_default_logger_severity(4)  # an error is raised too, and the log would stand above its sentence


def open_session(model: ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """Opens a session on the CPU whose outputs include `tensors`.

    Raises:
        GraphError: ONNX Runtime cannot load the model.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    declared = {output.name for output in probe.graph.output}
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors if name not in declared)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common class below Exception
        raise GraphError(f"ONNX Runtime cannot load the network: {reason(error)}; {_REMEDY}") from error


def run_session(
    session: onnxruntime.InferenceSession, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Returns the tensors of one batch. An interrupt ends the run.

    Raises:
        GraphError: ONNX Runtime cannot run the network, or it takes too long.
    """
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    with ThreadPoolExecutor(1) as pool:  # the main thread stays free for an interrupt
        call = pool.submit(session.run, list(names), dict(inputs), options)
        try:
            found: list[NDArray[Any]] = call.result(LONGEST_RUN_S)
        except TimeoutError as error:
            options.terminate = True
            raise GraphError(
                f"ONNX Runtime has not finished one batch after {LONGEST_RUN_S:.0f} s; export a network without loops"
            ) from error
        except (KeyboardInterrupt, SystemExit):
            options.terminate = True
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common class below Exception
            raise GraphError(f"ONNX Runtime cannot run the network: {reason(error)}; {_REMEDY}") from error
    return found


def reason(error: Exception) -> str:
    """Returns what an error of ONNX Runtime says, without places in its own source, at most 300 characters."""
    line = readable(str(error))  # names may be so long that the patterns below take minutes
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    line = re.sub(
        r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: ", r"\1 '\2': ", line
    )
    return _PLACE.sub("", line)[:300].rstrip(" .") or type(error).__name__
