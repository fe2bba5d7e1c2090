"""The command line, whose CPU engine is lost for good when it meets a white photo, as a GPU is by an illegal access.

Run as a program, in a process of its own.
"""

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from zfserve_cli.main import main
from zfserve_engines import catalogue as engine_catalogue
from zfserve_engines.catalogue import Opening, Report, open_onnx_cpu
from zfserve_engines.contract import Engine, EngineInfo, EngineOutputs
from zfserve_runtime.bundle import Precision
from zfserve_runtime.errors import EngineLost


@dataclass
class FragileEngine:
    """Any engine, until it meets a white photo."""

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


def open_fragile(opening: Opening, precision: Precision, report: Report) -> list[Engine]:
    return [FragileEngine(engine) for engine in open_onnx_cpu(opening, precision, report)]


if __name__ == "__main__":
    engine_catalogue.OPENERS = dict(engine_catalogue.OPENERS) | {"onnx-cpu": open_fragile}
    sys.exit(main(sys.argv[1:]))
