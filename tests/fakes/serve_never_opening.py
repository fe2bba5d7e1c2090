"""The command line, whose CPU engine compiles for ever and never looks up, as a library may.

Run as a program, in a process of its own.
"""

import sys
import threading

from zfserve_cli.main import main
from zfserve_engines import catalogue as engine_catalogue
from zfserve_engines.catalogue import Opening, Phase, Report, Step
from zfserve_engines.contract import Engine
from zfserve_runtime.bundle import Precision


def never_open(opening: Opening, precision: Precision, report: Report) -> list[Engine]:
    report(Step("onnx-cpu", Phase.COMPILING))
    threading.Event().wait()
    raise AssertionError("nobody sets the event")


if __name__ == "__main__":
    engine_catalogue.OPENERS = dict(engine_catalogue.OPENERS) | {"onnx-cpu": never_open}
    sys.exit(main(sys.argv[1:]))
