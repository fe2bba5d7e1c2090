"""This module makes the batch axis of an ONNX network dynamic, and its opset one that all engines read.

Each change is kept only if ONNX Runtime then computes the same for batches of 1, 2 and 3 images. `onnx_wrap` calls it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from zfserve_model.graph.errors import GraphError

from zfserve_export.onnx_edits import (
    as_ints,
    constants,
    infer_types,
    int64_constant,
    known_shape,
    set_shape,
    tensor_names,
    unused_name,
)
from zfserve_export.onnx_session import open_session, run_session

BATCH_AXIS = "N"
"""The name of a dynamic batch axis."""

OPSET = 18
"""The opset of converted models. TensorRT 10 reads it."""

LOWEST_OPSET = 13
"""The first opset in which DequantizeLinear has an axis, which INT8 needs. Older models are converted to `OPSET`."""

_BATCH_SIZES = (1, 2, 3)
_TOLERANCE = 1e-3
"""The largest difference of a row between batch sizes, relative to the largest value. Kernels for other batch sizes sum
in another order. A row that got values of another row differs much more."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BatchedModel:
    """Holds a network whose batch axis was examined.

    Attributes:
        model: the network.
        batch_size: the only batch size that it takes. 0 if it takes any.
        shapes: the shape of each examined tensor, without the batch axis.
        types: the type of each examined tensor.
    """

    model: ModelProto
    batch_size: int
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, np.dtype[Any]]


def with_dynamic_batch(model: ModelProto, tensors: Sequence[str], fixed_batch: int) -> BatchedModel:
    """Returns a model that takes any batch size, or else one image at a time.

    Args:
        model: a network with one input, whose shape is known except for the batch.
        tensors: the names of the tensors that are compared, the scores first.
        fixed_batch: the only batch size that `model` takes. 0 if its input declares any.

    Raises:
        GraphError: ONNX Runtime cannot run the model, its scores are not numbers, or it takes only batches of more than
            one image.
    """
    images = _random_images(model.graph.input[0], max(3, fixed_batch))
    expected = _run(model, tensors, images, fixed_batch or 1)
    if not np.isfinite(expected[tensors[0]]).all():
        raise GraphError("the network's scores are not numbers; look for NaN and infinity among its weights")
    for batch_size, variant in _variants(model, fixed_batch):
        sizes = (batch_size,) if batch_size else _BATCH_SIZES
        try:
            for size in sizes:
                _require_equal(expected, _run(variant, tensors, images, size))
        except GraphError as error:
            log.debug("a variant of the network was discarded: %s", error)
            continue
        shapes = {name: rows.shape[1:] for name, rows in expected.items()}
        return BatchedModel(variant, batch_size, shapes, {name: rows.dtype for name, rows in expected.items()})
    if fixed_batch > 1:
        raise GraphError(
            f"the network takes only batches of {fixed_batch} images, and another batch size changes its results; "
            "export it to ONNX with a dynamic batch axis or with a batch of 1"
        )
    raise GraphError("the network gives another result each time it runs; export it in evaluation mode")


def _variants(model: ModelProto, fixed_batch: int) -> Iterator[tuple[int, ModelProto]]:
    """Yields models with the batch size that they take, the most useful first."""
    modern = _upgraded(model)
    for candidate in (modern, model):
        if candidate is not None:
            yield 0, _unbaked(candidate, fixed_batch or 1)
    if fixed_batch <= 1:
        for candidate in (modern, model):
            if candidate is not None:
                fixed = _copy(candidate)
                _set_batch(fixed, 1)
                yield 1, fixed


def _upgraded(model: ModelProto) -> ModelProto | None:
    """Returns the model in `OPSET`, if its own is below `LOWEST_OPSET` and ONNX can convert it."""
    (version,) = (opset.version for opset in model.opset_import if opset.domain == "")
    if version >= LOWEST_OPSET:
        return None
    try:
        converted = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's errors have no common class below Exception
        log.debug("opset %d cannot be converted: %s", version, error)
        return None
    converted.ir_version = model.ir_version
    return converted


def _unbaked(model: ModelProto, batch: int) -> ModelProto:
    """Returns a copy whose reshapes keep the batch axis, where they name it as `batch` before and after.

    Exporters write the batch size of the example into the target of a Reshape. 0 stands for the size of the input.
    """
    copy = _copy(model)
    graph, types = copy.graph, infer_types(_with_batch(copy, batch))
    values, taken = constants(graph), tensor_names(graph)
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in values:
            continue
        target, shape = as_ints(values[node.input[1]]), known_shape(types.get(node.input[0]))
        if not shape or not target or target[0] != batch or shape[0] != batch:
            continue
        if any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute):
            continue
        name = unused_name(f"{node.input[1]}.batched", taken)
        taken.add(name)
        graph.initializer.append(int64_constant(name, [0, *target[1:]]))
        node.input[1] = name
    _set_batch(copy, BATCH_AXIS)
    return copy


def _set_batch(model: ModelProto, batch: int | str) -> None:
    """Sets the batch axis of the input, and forgets shapes that were inferred with another one."""
    del model.graph.value_info[:]
    (value,) = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    set_shape(value, [batch, *shape[1:]])
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")


def _with_batch(model: ModelProto, batch: int) -> ModelProto:
    copy = _copy(model)
    _set_batch(copy, batch)
    return copy


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _random_images(value: onnx.ValueInfoProto, count: int) -> NDArray[Any]:
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    generator = np.random.default_rng(0)
    if value.type.tensor_type.elem_type == TensorProto.UINT8:
        return generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    return generator.standard_normal((count, *shape), dtype=np.float32)


def _run(model: ModelProto, tensors: Sequence[str], images: NDArray[Any], batch: int) -> dict[str, NDArray[Any]]:
    """Runs the model on `images` in batches of `batch`, and returns `tensors` for all of them.

    Raises:
        GraphError: ONNX Runtime cannot load or run the model, or an output has not one row for each image.
    """
    session, name = open_session(model, tensors), model.graph.input[0].name
    whole = len(images) // batch * batch
    parts = [run_session(session, tensors, {name: images[i : i + batch]}) for i in range(0, whole, batch)]
    if any(np.shape(rows)[:1] != (batch,) for part in parts for rows in part):
        raise GraphError("an output of the network has not one row for each image")
    return {name: np.concatenate([part[index] for part in parts]) for index, name in enumerate(tensors)}


def _require_equal(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> None:
    """Raises GraphError where a row differs. Compares the rows that both have."""
    for name, rows in expected.items():
        others = found[name]
        count = min(len(rows), len(others))
        if rows.shape[1:] != others.shape[1:]:
            raise GraphError(f"{name} has another shape")
        scale = max(1e-6, float(np.abs(rows[:count]).max()))
        if not float(np.abs(rows[:count].astype(np.float64) - others[:count]).max()) <= _TOLERANCE * scale:
            raise GraphError(f"{name} has other values")
