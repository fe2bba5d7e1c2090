"""Reads the values of a tensor in an ONNX file that may be hostile."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from zfserve_model.graph.errors import GraphError


def read_array(tensor: onnx.TensorProto) -> NDArray[np.generic]:
    """Returns the values of a tensor.

    Raises:
        GraphError: they are in another file, are no numbers, or do not fit the tensor's shape.
    """
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise GraphError(
            f"the weights {tensor.name!r} are in another file that was not read; read the model by its path"
        )
    if tensor.data_type == onnx.TensorProto.STRING or tensor.data_type not in onnx.TensorProto.DataType.values():
        raise GraphError(f"the constant {tensor.name!r} holds no numbers; export the network without it")
    try:
        array: NDArray[np.generic] = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise _misfit(tensor) from error
    if array.shape != tuple(tensor.dims):
        raise _misfit(tensor)
    return array


def _misfit(tensor: onnx.TensorProto) -> GraphError:
    return GraphError(f"the weights {tensor.name!r} do not fit their shape {tuple(tensor.dims)}; export the file again")
