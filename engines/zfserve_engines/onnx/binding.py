"""Binds the inputs and outputs of ONNX Runtime's sessions to memory of a device. `engine` uses it on GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from zfserve_runtime.bundle import GRAPH_INPUT

from zfserve_engines.cuda.batch_sizes import BatchProfile, plan_batch_sizes


@dataclass(frozen=True, eq=False)
class _Binding:
    """Holds a session that is bound for one batch size.

    Attributes:
        session: the session that runs the graph.
        pixels: the input, uint8 (size, H, W, 3), on the device.
        bound: the binding of the session, which holds the outputs on the device.
    """

    session: onnxruntime.InferenceSession
    pixels: Any
    bound: Any


def bound_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Returns the batch sizes that are bound, ascending."""
    return plan_batch_sizes([BatchProfile(1, max_batch_size)], max_batch_size)


class BoundSessions:
    """Runs batches of a few sizes only. Each size is bound once, before the first request.

    CUDA's libraries choose kernels for each new shape, which takes time. So the warm-up runs every bound size, and a
    batch of another size is padded to the next bound size. The padding is the old content of the buffer.

    Args:
        sessions: the sessions by batch size, ascending as in `bound_sizes`. One session may serve several sizes.
        device: the device that holds the memory, by ONNX Runtime's name: "cuda", or "cpu" in tests.
        widths: the width of each output by its name.
        host: uint8 (max_batch_size, H, W, 3), the buffer from which batches are copied to the device. The copy is
            fastest from page-locked memory.
    """

    def __init__(
        self,
        sessions: Mapping[int, onnxruntime.InferenceSession],
        device: str,
        widths: Mapping[str, int],
        host: npt.NDArray[np.uint8],
    ) -> None:
        self._host = host
        self._bindings = {
            size: _bind(session, device, widths, (size, *host.shape[1:])) for size, session in sessions.items()
        }

    def run(self, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """Returns the outputs for `pixels`, uint8 (N, H, W, 3), as float32 (N, width), in the order of `widths`."""
        count = len(pixels)
        size = next(size for size in self._bindings if size >= count)
        binding = self._bindings[size]
        self._host[:count] = pixels
        binding.pixels.update_inplace(self._host[:size])
        binding.session.run_with_iobinding(binding.bound)
        return [values[:count] for values in binding.bound.copy_outputs_to_cpu()]


def _bind(
    session: onnxruntime.InferenceSession,
    device: str,
    widths: Mapping[str, int],
    input_shape: tuple[int, ...],
) -> _Binding:
    new = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    pixels = new(input_shape, np.uint8, device, 0)
    bound = session.io_binding()
    bound.bind_ortvalue_input(GRAPH_INPUT, pixels)
    for name, width in widths.items():
        bound.bind_ortvalue_output(name, new((input_shape[0], width), np.float32, device, 0))
    return _Binding(session, pixels, bound)
