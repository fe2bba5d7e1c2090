"""Runs the command line with a CPU engine that compiles for ever and never reports, as a library may.

Run as a program, in a process of its own.
"""

import sys
import threading
from dataclasses import replace

from zfserve_cli.main import main
from zfserve_engines import catalogue
from zfserve_engines.contract import Engine
from zfserve_engines.opening import EngineOptions, Phase, Report, Step
from zfserve_runtime.bundle import Precision


def never_open(options: EngineOptions, precision: Precision, report: Report) -> list[Engine]:
    report(Step("onnx-cpu", Phase.COMPILING))
    threading.Event().wait()
    raise AssertionError("the event is never set")


if __name__ == "__main__":
    stuck = replace(catalogue.ENGINE_KINDS["onnx-cpu"], open=never_open)
    catalogue.ENGINE_KINDS = {**catalogue.ENGINE_KINDS, "onnx-cpu": stuck}
    sys.exit(main(sys.argv[1:]))
