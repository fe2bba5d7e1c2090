"""Runs the command line with a CPU engine that is lost at a white photo, as a GPU is after an illegal access.

Run as a program, in a process of its own.
"""

import sys
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from zfserve_cli.main import main
from zfserve_engines import catalogue
from zfserve_engines.contract import Engine, EngineInfo, EngineOutputs
from zfserve_engines.onnx.kinds import open_onnx_cpu
from zfserve_engines.opening import EngineOptions, Report
from zfserve_runtime.bundle import Precision
from zfserve_runtime.errors import EngineLost


@dataclass
class FragileEngine:
    """Runs `engine` until a batch contains a white photo."""

    engine: Engine

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def run(self, pixels: npt.NDArray[np.uint8]) -> EngineOutputs:
        if (pixels == 255).all(axis=(1, 2, 3)).any():
            raise EngineLost("an illegal memory access")
        return self.engine.run(pixels)

    def close(self) -> None:
        self.engine.close()


def open_fragile(options: EngineOptions, precision: Precision, report: Report) -> list[Engine]:
    return [FragileEngine(engine) for engine in open_onnx_cpu(options, precision, report)]


if __name__ == "__main__":
    fragile = replace(catalogue.ENGINE_KINDS["onnx-cpu"], open=open_fragile)
    catalogue.ENGINE_KINDS = {**catalogue.ENGINE_KINDS, "onnx-cpu": fragile}
    sys.exit(main(sys.argv[1:]))
