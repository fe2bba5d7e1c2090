"""Defines the `ReadingEngine` that runs a graph with readings. `opening` builds it, with a runtime behind it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from zfserve_runtime.bundle import GRAPH_INPUT, Manifest
from zfserve_runtime.errors import EngineFailed, EngineLost

from zfserve_engines.contract import EngineInfo, EngineName
from zfserve_engines.readings.names import KEEP, VALUES, output_names
from zfserve_engines.readings.plan import Reading, ReadingPlan, ReadOutputs, ReadValues, Replacement

log = logging.getLogger(__name__)

Arrays = Mapping[str, npt.NDArray[np.generic]]


class Runtime(Protocol):
    """Runs one graph. Several threads may use it at once."""

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> Sequence[npt.NDArray[np.generic]]:
        """Returns the outputs with these names, in this order. Raises any exception."""


class GraphReadingEngine:
    """Implements `ReadingEngine` on a runtime.

    Args:
        name: the kind of the engine.
        info: describes the engine.
        plan: the readings and the ablation that the graph has.
        manifest: the manifest of the bundle.
        runtime: runs the graph.
    """

    def __init__(self, name: EngineName, info: EngineInfo, plan: ReadingPlan, manifest: Manifest, runtime: Runtime):
        self._name = name
        self._info = info
        self._plan = plan
        self._manifest = manifest
        self._runtime: Runtime | None = runtime
        self._reading_outputs = output_names(plan)
        self._outputs = [*manifest.output_widths, *(name for names in self._reading_outputs for name in names)]

    @property
    def name(self) -> EngineName:
        return self._name

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def plan(self) -> ReadingPlan:
        return self._plan

    @property
    def closed(self) -> bool:
        return self._runtime is None

    def run(self, pixels: npt.NDArray[np.uint8], replacement: Replacement | None = None) -> ReadOutputs:
        """See `ReadingEngine.run`."""
        self._info.check_batch(pixels, self._manifest.input)
        runtime = self._runtime  # `close` in another thread does not free it while it runs
        if runtime is None:
            raise EngineFailed("the engine that reads layers was closed; try again")
        inputs = self._inputs(pixels, replacement)
        try:
            outputs = dict(zip(self._outputs, runtime.run(inputs, self._outputs), strict=True))
        except Exception as error:
            # The exceptions of the runtimes have no common class below Exception.
            log.exception("the engine that reads layers failed on a batch of %d", len(pixels))
            if self._info.device != "CPU" and not self._can_still_run(runtime, pixels):
                raise EngineLost("the GPU is lost; try another instance, or try again shortly") from error
            raise EngineFailed("the engine failed on this batch; try again, or see the server's log") from error
        named = ReadOutputs.of(
            {name: outputs[name].astype(np.float32, copy=False) for name in self._manifest.output_widths}
        )
        readings = tuple(
            _values(reading, [outputs[name] for name in names])
            for reading, names in zip(self._plan.readings, self._reading_outputs, strict=True)
        )
        return ReadOutputs(named.probabilities, named.features, readings)

    def close(self) -> None:
        """See `ReadingEngine.close`."""
        self._runtime = None

    def _inputs(self, pixels: npt.NDArray[np.uint8], replacement: Replacement | None) -> Arrays:
        channels = self._plan.ablated_channels
        if not channels:
            assert replacement is None, "the plan ablates no layer"
            return {GRAPH_INPUT: pixels}
        replaced = replacement or Replacement.nothing(len(pixels), channels)
        assert replaced.keep.shape == replaced.values.shape == (len(pixels), channels)
        return {
            GRAPH_INPUT: pixels,
            KEEP: replaced.keep[:, :, None, None],
            VALUES: replaced.values[:, :, None, None],
        }

    def _can_still_run(self, runtime: Runtime, pixels: npt.NDArray[np.uint8]) -> bool:
        """Returns True if one black photo still runs, as in `zfserve_engines.onnx.engine.can_still_run`."""
        try:
            runtime.run(self._inputs(np.zeros_like(pixels[:1]), None), self._outputs)
        except Exception:
            log.exception("the engine that reads layers also fails on one black photo")
            return False
        return True


def _values(reading: Reading, outputs: Sequence[npt.NDArray[np.generic]]) -> ReadValues:
    """Returns the values of one reading, from its outputs of the graph (see `output_names`)."""
    values = outputs[0].astype(np.float32, copy=False)
    if reading.form != "strongest":
        return ReadValues(values)
    rows, columns = np.divmod(outputs[1].astype(np.int64, copy=False)[:, :, 0], reading.width)
    return ReadValues(values[:, :, 0], rows, columns)
